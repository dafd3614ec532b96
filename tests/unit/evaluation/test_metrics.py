"""Measures against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.errors import DataError
from oskit.evaluation.offline.bm25 import Bm25Settings
from oskit.evaluation.offline.evaluate import evaluate
from oskit.evaluation.offline.exact_scores import themselves
from oskit.evaluation.offline.metrics import measures_for_depth, overlap, percentiles, quality

QRELS = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}, "q3": {"d": 0}}


def test_values_by_hand():
    run = {"q1": {"x": 9.0, "a": 8.0, "b": 7.0}, "q2": {"y": 1.0}}
    result = quality(run, QRELS)
    dcg = 1 / math.log2(3) + 1 / math.log2(4)
    ideal = 1 + 1 / math.log2(3)
    assert result.per_query["q1"] == pytest.approx({"nDCG@10": dcg / ideal, "MRR@10": 0.5, "R@100": 1.0})
    assert result.per_query["q2"] == {"nDCG@10": 0.0, "MRR@10": 0.0, "R@100": 0.0}
    assert result.mean["MRR@10"] == pytest.approx(0.25)
    assert result.queries == 2  # q3 has no relevant document


@pytest.mark.parametrize("order", [["a", "x"], ["x", "a"]])
def test_equal_scores_are_measured_in_the_order_given(order):
    result = quality({"q1": dict.fromkeys(order, 1.0)}, {"q1": {"a": 1}})
    assert result.per_query["q1"]["MRR@10"] == 1 / (order.index("a") + 1)
    assert result.per_query["q1"]["nDCG@10"] == pytest.approx(1 / math.log2(order.index("a") + 2))


def test_a_query_without_hits_counts_as_zero():
    assert quality({}, QRELS).mean == {"nDCG@10": 0.0, "MRR@10": 0.0, "R@100": 0.0}
    assert quality({"q1": {"a": 1.0}}, QRELS).mean["MRR@10"] == 0.5


def test_unjudgeable_collections_are_refused():
    with pytest.raises(DataError, match="no query has a relevant document"):
        quality({"q3": {"d": 1.0}}, {"q3": {"d": 0}})


def test_a_deep_run_is_measured_deeply():
    assert measures_for_depth(100) == ("nDCG@10", "MRR@10", "R@100")
    assert measures_for_depth(1000)[-1] == "R@1000"
    run = {"q1": {**{f"x{i}": 1.0 for i in range(500)}, "a": 0.5}}
    assert quality(run, {"q1": {"a": 1}}, measures_for_depth(1000)).mean["R@1000"] == 1.0


def test_overlap():
    assert overlap({"a": 1, "b": 1}, {"b": 1, "c": 1}) == 0.5
    assert overlap({}, {}) == 1.0
    assert overlap({"a": 1}, {}) == 0.0
    assert overlap({"a": 2, "b": 1}, {"a": 2, "c": 1}, depth=1) == 1.0


def test_percentiles():
    assert percentiles([float(i) for i in range(101)]) == {
        "p50": 50.0, "p99": 99.0, "mean": 50.0, "count": 101,
    }  # fmt: skip
    assert percentiles([]) is None


def test_queries_that_are_documents_do_not_find_themselves():
    """As in ArguAna; but an answer that is judged, or another text under the same id, is one like others."""
    texts = {"a": "Dogs bark.", "b": "Cats purr loudly", "c": "a bird", "d": "dogs bark at cats"}
    collection = Collection(
        queries={"a": "dogs  bark.", "b": "cats purr loudly", "c": "dogs bark at"},
        qrels={"a": {"d": 1}, "b": {"b": 1}, "c": {"d": 1, "c": 0}},
        corpus=tuple(Document(key, text) for key, text in texts.items()),
    )
    run = {"a": {"a": 3.0, "d": 2.0}, "b": {"b": 3.0, "d": 1.0}, "c": {"c": 2.0, "d": 1.0}}
    asked = themselves(run, collection, collection.qrels)
    assert asked == {"a"}
    found = quality(run, collection.qrels, asked=asked)
    assert {query: values["MRR@10"] for query, values in found.per_query.items()} == {
        "a": 1,
        "b": 1,
        "c": 0.5,
    }

    report = evaluate({}, collection, bm25=Bm25Settings(language=None))
    assert report.rows[0].figures.per_query["a"]["MRR@10"] == 1
    assert report.warnings == [
        "1 queries are documents of the corpus and found themselves, which is left out"
    ]
