"""Verdicts of the quality benchmark: by queries and seeds together, at equal costs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.measure import Measured, Point
from benchmarks.quality.significance import as_they_are, at_equal_cost

QUERIES = 60


def measured(flops: float, *per_query: float) -> Measured:
    values = {f"q{number}": value for number, value in enumerate(per_query)}
    ndcg = float(np.mean(per_query))
    return Measured({"nDCG@10": ndcg}, values, 50, [Point("none", ndcg, flops, 1, 1.0)])


def curve(
    height: float, slope: float = 0.1, shift: float = 1.0, noise: float = 0.05, seed: int = 0
) -> list[Measured]:
    """Quality that grows by ``slope`` with each doubling of the cost, measured at three costs."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, noise, QUERIES)
    return [
        measured(shift * cost, *(height + slope * np.log2(shift * cost) + own)) for cost in (1.0, 2.0, 4.0)
    ]


def test_curves_are_compared_where_they_overlap_by_the_height_between_them() -> None:
    ours = [curve(0.5, shift=2.0, seed=seed) for seed in range(3)]
    theirs = [curve(0.47, shift=1.0, seed=seed) for seed in range(3)]
    found = at_equal_cost(ours, theirs)
    assert found is not None
    assert found.costs == (2.0, 4.0)
    # More costly at each weight, and .03 ahead at each cost: both are straight lines in log FLOPS.
    assert found.mean == pytest.approx(0.03)
    assert found.holds


def test_what_costs_more_is_not_better_for_it() -> None:
    """Along one and the same curve, at other weights: as they are one is ahead, at equal costs none."""
    ours, theirs = ([curve(0.5, shift=shift, seed=seed) for seed in range(3)] for shift in (1.5, 1.0))
    found = at_equal_cost(ours, theirs)
    assert found is not None and found.mean == pytest.approx(0.0, abs=1e-9)
    assert not found.holds
    assert as_they_are([one[0] for one in ours], [one[0] for one in theirs]).holds


def test_costs_that_do_not_overlap_are_not_compared() -> None:
    assert at_equal_cost([curve(0.5, shift=8.0)], [curve(0.5)]) is None


def test_seeds_that_disagree_are_no_difference_however_many_queries_there_are() -> None:
    """The mean of the seeds is .02 ahead on every query: a bootstrap over queries alone would be sure."""
    heights = (0.56, 0.50, 0.50)
    ours = [measured(1.0, *[height] * 1000) for height in heights]
    theirs = [measured(1.0, *[0.5] * 1000)] * 3
    found = as_they_are(ours, theirs)
    assert found.mean == pytest.approx(0.02)
    assert not found.holds
    assert as_they_are([measured(1.0, *[0.52] * 1000)] * 3, theirs).holds


def test_one_that_has_a_single_seed_stands_beside_each() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(QUERIES)
    ours = [measured(1.0, *(base + 0.1)), measured(1.0, *(base + 0.2))]
    found = as_they_are(ours, [measured(1.0, *base)])
    assert found.mean == pytest.approx(0.15)
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.2)
