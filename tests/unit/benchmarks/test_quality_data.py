"""Collections are cut to a size without losing documents that count."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from benchmarks.quality.data import FAQ_ENGLISH, FAQ_SWEDISH, MEDQUAD, Workspace
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.errors import DataError

QUERIES, JUDGED, OTHERS = 6, 4, 10


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Six queries with four judged documents each, and ten documents that nobody judged."""
    judged = {f"q{q}": {f"d{q}-{d}": d % 2 for d in range(JUDGED)} for q in range(QUERIES)}
    names = [name for grades in judged.values() for name in grades]
    names += [f"other{number}" for number in range(OTHERS)]
    corpus = tuple(Document(name, f"text of {name}") for name in names)
    queries = {query: f"question {query}" for query in judged}
    Collection(queries, judged, corpus).write(tmp_path / "collections" / MEDQUAD)
    return tmp_path


def reduced(work: Path, *, corpus: int, queries: int = 0) -> tuple[Collection, set[str]]:
    found = Workspace(work, work, corpus=corpus, queries=queries).collection(MEDQUAD)
    return found, {document.id for document in found.documents()}


def test_queries_stay_whose_judged_documents_fit(work: Path) -> None:
    found, documents = reduced(work, corpus=10)
    assert len(documents) == 10
    assert len(found.queries) == len(found.qrels) == 2
    assert {document for grades in found.qrels.values() for document in grades} < documents
    assert reduced(work, corpus=10)[1] == documents


def test_all_queries_stay_where_there_is_room(work: Path) -> None:
    found, documents = reduced(work, corpus=QUERIES * JUDGED + 3)
    assert len(found.queries) == QUERIES
    assert len(documents) == QUERIES * JUDGED + 3


def test_no_limit_keeps_everything(work: Path) -> None:
    found, documents = reduced(work, corpus=0)
    assert len(found.queries) == QUERIES
    assert len(documents) == QUERIES * JUDGED + OTHERS


def test_queries_are_drawn_before_documents(work: Path) -> None:
    found, documents = reduced(work, corpus=9, queries=1)
    assert len(found.queries) == 1
    assert set(found.qrels[next(iter(found.queries))]) < documents
    assert len(documents) == 9


def test_too_few_documents_for_any_query_are_refused(work: Path) -> None:
    with pytest.raises(DataError, match="3 documents of medquad-liveqa are too few"):
        reduced(work, corpus=JUDGED - 1)


def texts(file: Path, key: str) -> list[str]:
    return [json.loads(line)[key] for line in file.read_text(encoding="utf-8").splitlines()]


def test_no_question_is_trained_on_watched_and_developed_on(tmp_path: Path) -> None:
    records = [{"query": f"question {n}", "pos": [f"answer {n}", f"another {n % 50}"]} for n in range(400)]
    with lzma.open(tmp_path / "medquad-pairs.jsonl.xz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    work = Workspace(tmp_path, tmp_path, "dev", pairs=100)
    dev = work.collection(MEDQUAD)
    watched = Collection.open(work.watched_folder())
    trained = set(texts(work.pairs_file(), "query"))
    sets = [set(dev.queries.values()), set(watched.queries.values()), trained]
    assert [len(found) for found in sets] == [150, 30, 100]
    assert not sets[0] & sets[1] and not sets[2] & (sets[0] | sets[1])
    by_text = {document.text: document.id for document in dev.documents()}
    for key, question in dev.queries.items():
        number = question.rsplit(" ", 1)[1]
        assert by_text[f"answer {number}"] in dev.qrels[key]
    # An answer that answers a question of the development set as well is not among the wrong ones.
    answers = {text for key in dev.qrels for text in (by_id(dev, name) for name in dev.qrels[key])}
    assert not answers & {by_id(dev, name) for name in by_text.values() if name.startswith("other-")}


def by_id(collection: Collection, name: str) -> str:
    return next(document.text for document in collection.documents() if document.id == name)


def test_the_faq_s_development_set_is_a_part_of_what_is_trained_on_for_the_test(tmp_path: Path) -> None:
    test, dev = (Workspace(tmp_path, tmp_path, on) for on in ("test", "dev"))
    for name in (FAQ_ENGLISH, FAQ_SWEDISH):
        asked = {
            on: set(work.collection(name).queries.values()) for on, work in (("test", test), ("dev", dev))
        }
        trained = {
            on: set(texts(work.faq_file(name), "query")) for on, work in (("test", test), ("dev", dev))
        }
        assert len(asked["dev"]) >= 100
        assert asked["dev"] <= trained["test"] and not asked["dev"] & trained["dev"]
        assert not asked["test"] & (trained["test"] | asked["dev"])
    with pytest.raises(DataError, match="xquad-es has no development set"):
        dev.collection("xquad-es")
