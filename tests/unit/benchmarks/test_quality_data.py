"""Collections are cut to a size without losing documents that count."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality.data import MEDQUAD, MEDQUAD_ALL_QUERIES, Workspace
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


def reduced(work: Path, *, corpus: int, queries: int = 0, name: str = MEDQUAD) -> tuple[Collection, set[str]]:
    found = Workspace(work, work, corpus, pairs=0, queries=queries).collection(name)
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


def test_all_queries_take_as_many_documents_as_they_need(work: Path) -> None:
    found, documents = reduced(work, corpus=10, name=MEDQUAD_ALL_QUERIES)
    assert found.name == MEDQUAD_ALL_QUERIES
    assert len(found.queries) == QUERIES
    assert documents == {document for grades in found.qrels.values() for document in grades}
    for size in (QUERIES * JUDGED + 3, 0):
        assert reduced(work, corpus=size, name=MEDQUAD_ALL_QUERIES)[1] == reduced(work, corpus=size)[1]


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
