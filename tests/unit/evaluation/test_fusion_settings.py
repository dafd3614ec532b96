"""Fusions are tried by all weights, and judged by queries that did not choose them."""

from __future__ import annotations

import numpy as np
import pytest

from oskit.cluster.search.fusion import Candidates, Found, Fusion
from oskit.errors import DataError
from oskit.evaluation.offline.fusion_settings import cross_validated, measured, rankings, settings

MIN_MAX, RRF = Fusion("min_max"), Fusion("rrf")


def one(bm25: str, sparse: str) -> Candidates:
    """Two lists, best first."""
    return Candidates.of(
        [[[Found(name, float(9 - n)) for n, name in enumerate(side)] for side in (bm25, sparse)]]
    )


def test_all_weights_in_steps_of_a_twentieth_and_each_side_alone() -> None:
    two = settings(2, [MIN_MAX, RRF])
    assert [one.weights for one in two[:2]] == [(1.0, 0.0), (0.0, 1.0)] and two[0].fusion is None
    assert [one.weights[0] for one in two[2:21]] == pytest.approx([n / 20 for n in range(1, 20)])
    assert len(two) == 2 + 2 * 19 and len(settings(3, [RRF])) == 3 + 36 and len(settings(4, [RRF])) == 4 + 4
    assert all(
        sum(each.weights) == pytest.approx(1) and min(each.weights) >= 0 for each in settings(3, [RRF])
    )
    assert two[0].name(["bm25", "sparse"]) == "bm25 alone"
    assert two[2].name(["bm25", "sparse"]) == "0.05 bm25 + 0.95 sparse by min_max"


def test_a_side_alone_is_its_own_list_and_fusions_are_the_clusters() -> None:
    found = {"q": one("abc", "cd")}
    tried = settings(2, [MIN_MAX])
    alone = [run["q"] for run in rankings(found, tried[:2], 2)]
    assert [list(run) for run in alone] == [["ab"] and ["a", "b"], ["c", "d"]]
    for setting, run in zip(tried[2:], rankings(found, tried[2:], 10), strict=True):
        assert run["q"] == found["q"].fuse(MIN_MAX, setting.weights)
    values = measured(found, tried, {"q": {"c": 1}})
    assert values.shape == (len(tried), 1)
    assert values[0, 0] == pytest.approx(0.5) and values[1, 0] == 1.0


def test_a_query_that_is_a_document_does_not_find_itself() -> None:
    """Nor does it push an answer out of the ten that count."""
    found = {"q": one("qabcdefghir", "qr")}
    tried = settings(2, [MIN_MAX])[:2]
    last, first = 1 / np.log2(11), 1.0
    assert measured(found, tried, {"q": {"r": 1}}, asked={"q"})[:, 0] == pytest.approx([last, first])
    assert measured(found, tried, {"q": {"r": 1}})[:, 0] == pytest.approx([0.0, 1 / np.log2(3)])


def test_each_part_is_measured_by_what_the_others_choose() -> None:
    """The third setting is best by one query alone, whose part the others measure by the second."""
    values = np.array([[0.0] * 10, [0.5] * 10, [0.4] * 9 + [2.0]])
    found = cross_validated(values, 5)
    assert sorted(found.chosen) == [1, 2, 2, 2, 2]
    assert found.values.max() == 0.5 and found.values.mean() == pytest.approx((2 * 0.5 + 8 * 0.4) / 10)
    assert cross_validated(values, 5, seed=1).values.mean() == pytest.approx(found.values.mean())
    equal = cross_validated(np.ones((3, 10)), 5)
    assert equal.chosen == [0] * 5  # the first, which is one side alone
    with pytest.raises(DataError, match="too few"):
        cross_validated(values[:, :9], 5)
