"""What a release is verified by, without a cluster."""

from __future__ import annotations

import random

import pytest

from oskit.data.collection import Collection
from oskit.data.documents import Document, Refusal
from oskit.evaluation.live.release_proof import Sample, compare_quality
from oskit.evaluation.offline.result import RunFigures

DOCS = [
    Document(f"d{n}", f"text of {n} and more words than eight of them", "title" * (n % 2)) for n in range(300)
]


def test_a_sample_is_the_same_in_any_order_and_lets_everything_pass() -> None:
    shuffled: list[Document | Refusal] = [*DOCS, *DOCS[:50], Refusal("f:1", "broken")]
    random.Random(3).shuffle(shuffled)
    sample, other = Sample(20), Sample(20)
    assert list(sample.watch(shuffled)) == shuffled
    assert list(other.watch(DOCS)) == DOCS
    found = {document.id for document in sample.collection().documents()}
    assert len(found) == 20
    assert found == {document.id for document in other.collection().documents()}
    everything = Sample(1000)
    list(everything.watch(DOCS))
    assert len(list(everything.collection().documents())) == 300


def test_what_comes_with_two_contents_or_was_refused_is_not_looked_at() -> None:
    sample = Sample(10)
    list(sample.watch([*DOCS, *(Document(document.id, "other") for document in DOCS[:150])]))
    left = {document.id for document in sample.collection().documents()}
    assert 0 < len(left) < 10
    assert left.isdisjoint(document.id for document in DOCS[:150])
    gone = next(iter(left))
    assert {document.id for document in sample.collection([gone]).documents()} == left - {gone}


def test_queries_are_titles_or_first_words_and_find_their_document() -> None:
    sample = Sample(4)
    list(sample.watch([DOCS[2], DOCS[3], Document("empty", "")]))
    collection = sample.collection(more={"theirs": "a query"})
    made = {"a query", "text of 2 and more words than eight", "title"}
    assert set(collection.queries.values()) == made
    assert sorted(map(list, collection.qrels.values())) == [["d2"], ["d3"]]


@pytest.mark.parametrize(
    ("lost", "margin", "fits"), [(0.0, 0.0, True), (0.02, 0.01, False), (0.02, 0.02, True)]
)
def test_a_release_may_lose_no_more_than_the_margin(lost: float, margin: float, fits: bool) -> None:
    judged = Collection({"a": "x", "b": "y"}, {"a": {"d": 1}, "b": {"d": 1}}, ())

    def figures(name: str, value: float) -> RunFigures:
        per_query = {query: {"nDCG@10": value} for query in "ab"}
        return RunFigures(name, {"nDCG@10": value}, per_query)

    told, why = compare_quality(figures("new", 0.5 - lost), figures("old", 0.5), judged, margin)
    assert (why is None) == fits
    assert told["difference"] == pytest.approx(-lost)
    assert compare_quality(figures("new", 0.1), None, judged)[1] is None, "the first release has no rival"
