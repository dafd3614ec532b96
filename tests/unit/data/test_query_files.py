"""Files of queries, as people have them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from oskit.data.queries import read_queries
from oskit.errors import DataError


@pytest.mark.parametrize(
    ("name", "content", "queries"),
    [
        (
            "q.jsonl",
            '{"_id": "a", "text": "one"}\n\n{"_id": 7, "text": null, "query": "two"}',
            {"a": "one", "7": "two"},
        ),
        ("q.jsonl", '{"query": "no id"}', {"1": "no id"}),
        ("q", '{"qid": "a", "text": ""}', {"a": ""}),
        ("q.jsonl", '{"id": "a", "embedding": {"fox": 1.5}}', {"a": {"fox": 1.5}}),
        ("q.tsv", "a\tone\ttab\r\nb\ttwo", {"a": "one\ttab", "b": "two"}),
        ("q.tsv", "qid\tquery\na\tone", {"a": "one"}),
        ("q.txt", "one\n\n{not json}\n", {"1": "one", "3": "{not json}"}),
        ("queries.jsonl.gz", '{"_id": "a", "text": "ø"}', {"a": "ø"}),
    ],
)
def test_ids_and_texts_are_found(tmp_path: Path, name: str, content: str, queries: dict[str, object]):
    path = tmp_path / name
    data = content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    for source in (path, tmp_path) if name.startswith("queries") else (path,):
        assert {query.id: query.query for query in read_queries(source)} == queries


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "q.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}',
            r":2: the id 'a' came before",
        ),
        ("q.jsonl", '{"_id": "a b", "text": "x"}', r":1: the id 'a b' .*has a blank"),
        ("q.jsonl", '{"_id": "a"}', r":1: no field 'text', 'query' or 'embedding'"),
        ("q.jsonl", '{"_id": "a", "text": []}', r":1: the field 'text' holds a list"),
        ("q.jsonl", "[]", r":1: a JSON array"),
        ("q.tsv", "no tab", r":1: no tab"),
        ("q.txt", "\n", r"has no queries"),
    ],
)
def test_a_line_that_is_broken_is_named(tmp_path: Path, name: str, content: str, said: str):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        read_queries(path)


def test_a_folder_without_queries_is_none_of_beirs(tmp_path: Path):
    with pytest.raises(DataError, match=r"has no queries\.jsonl"):
        read_queries(tmp_path)
