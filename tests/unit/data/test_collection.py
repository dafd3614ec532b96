"""Collections in BEIR's layout, and duplicates."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.data.duplicates import DUPLICATES, DuplicateFilter, Duplicates
from oskit.data.vectors import Vector
from oskit.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection of two documents and two queries, of which the split judges one."""
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "d1", "title": "T", "text": "one", "metadata": {"x": 1}}\n{"_id": "d2", "text": "two"}\n'
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "what"}\n{"_id": "q2", "text": "why"}\n')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    return tmp_path


def test_open(folder: Path):
    collection = Collection.open(folder)
    assert list(collection.documents()) == [
        Document("d1", "one", "T", {"metadata": {"x": 1}}),
        Document("d2", "two"),
    ]
    assert collection.queries == {"q1": "what"}
    assert collection.qrels == {"q1": {"d1": 2, "d2": 0}}


def test_compressed_and_without_header(folder: Path):
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    (folder / "qrels" / "dev.tsv").write_text("q2\td2\t1\r\n")
    collection = Collection.open(folder, "dev")
    assert len(list(collection.documents())) == 2
    assert (collection.queries, collection.qrels) == ({"q2": "why"}, {"q2": {"d2": 1}})


def test_write_and_open_again(tmp_path: Path):
    collection = Collection(
        {"q": "häst\n"},
        {"q": {"a\u2028b": 3}},
        (Document("a\u2028b", "text\r\nline", "title", {"n": [1]}), Document("c", "")),
        "dev",
    )
    again = Collection.open(collection.write(tmp_path / "new"), "dev")
    assert list(again.documents()) == list(collection.documents())
    assert (again.queries, again.qrels) == (collection.queries, collection.qrels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\noops\n', r"corpus\.jsonl:2: not JSON"),
        ("corpus.jsonl", '{"text": "a"}\n', r"corpus\.jsonl:1: no id in the field '_id'"),
        (
            "corpus.jsonl",
            '{"_id": "d", "text": "a"}\n{"_id": "d", "text": "a"}\n',
            r":2: the id 'd' came before",
        ),
        ("queries.jsonl", '{"_id": "q1"}\n', r"queries\.jsonl:1: no field 'text'"),
        (
            "queries.jsonl",
            '{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}\n',
            r":2: the id 'q1' came",
        ),
        ("queries.jsonl", '{"_id": "other", "text": "a"}\n', r"judges 1 queries that queries\.jsonl lacks"),
        ("qrels/test.tsv", "h\th\ts\nq1\td1\tgood\n", r"test\.tsv:2: the score 'good' is not an integer"),
        ("qrels/test.tsv", "h\th\ts\nq1 d1 1\n", r"test\.tsv:2: 1 columns"),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td1\t2\n", r"test\.tsv:2: .* judged differently before"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", r"holds no judgements"),
    ],
)
def test_a_broken_line_is_named(folder: Path, name: str, content: str, message: str):
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(Collection.open(folder).documents())


def test_what_is_missing_is_named(folder: Path):
    with pytest.raises(DataError, match=r"split 'train'. It has: test"):
        Collection.open(folder, "train")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no queries\.jsonl"):
        Collection.open(folder)
    with pytest.raises(DataError, match="is not a folder"):
        Collection.open(folder / "queries.jsonl")


def test_duplicates_are_told_apart():
    seen = DuplicateFilter()
    assert seen.check(Document("1", "a", fields={"x": 1, "y": 2})) == "new"
    assert seen.check(Document("1", "a", fields={"y": 2, "x": 1})) == "same"
    assert seen.check(Document("1", "a", fields={"y": 2})) == "different"
    assert seen.check(Document("2", "a")) == "new"
    assert seen.check(Document("\ud800", "\udc00")) == "new"
    seen.close()


@pytest.mark.parametrize("keep", DUPLICATES)
def test_which_of_several_documents_with_one_id_is_taken(keep: Duplicates):
    """Whatever their order; a damaged source is judged up to there."""
    chosen = random.Random(3)
    documents = [Document(chosen.choice("abcdef\ud800"), chosen.choice("xyz")) for _ in range(60)]
    documents += [Document("1", "alone", fields={"n": 1 << 70}, vector=Vector("v", ("a",), b"{}"))]
    taken = {document.id: document for document in (documents if keep == "last" else reversed(documents))}

    def source() -> Iterator[Document]:
        yield from documents
        raise DataError("the file is damaged")

    judged: list[tuple[Document, str]] = []
    with closing(DuplicateFilter(keep)) as seen, pytest.raises(DataError, match="the file is damaged"):
        judged.extend(seen.judge(source()))
    assert [document for document, _ in judged] == documents
    assert {document.id: document for document, said in judged if said == "new"} == taken
    assert sum(said == "new" for _, said in judged) == len(taken)
    assert all((said == "different") == (document != taken[document.id]) for document, said in judged)
