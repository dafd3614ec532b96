"""Whether one recipe is better than another, by queries and seeds together, at the same cost or as they are.

A difference between two trainings has two sources of chance: which queries were asked, and which seeds were
drawn. A bootstrap over queries of the mean of three seeds knows the first alone, a spread over three seeds
the second alone. Here both are drawn: queries and seeds with replacement, ten thousand times.

Costs are made equal by curves, not by cutting vectors afterwards: each recipe is trained at three weights of
its penalty, which gives a curve of quality over FLOPS for each seed. Two recipes are compared where all of
their curves overlap: the difference is the mean height between them there, over the logarithm of FLOPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.measure import Measured

Curve = Sequence[Measured]
"""One seed of a recipe, at some weights of its penalty."""

_PLACES = 16
"""At which two curves are compared."""

_DRAWS = 10_000


@dataclass(frozen=True)
class Difference:
    """What one recipe is ahead of another.

    Attributes:
        mean: Of nDCG@10.
        low: Of the 95 % interval.
        high: The same.
        p_value: Two-sided.
        costs: FLOPS from and to which they were compared; None where costs were not made equal.
    """

    mean: float
    low: float
    high: float
    p_value: float
    costs: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        """Whether it is ahead, significantly."""
        return self.mean > 0 and self.p_value < 0.05

    def __str__(self) -> str:
        at = "" if self.costs is None else f" at FLOPS {self.costs[0]:.2f} to {self.costs[1]:.2f}"
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f}), p {self.p_value:.4f}{at}"


def as_they_are(ours: Sequence[Measured], theirs: Sequence[Measured]) -> Difference:
    """The difference of two ways of retrieving, seed by seed; a single seed of one counts for all."""
    seeds = max(len(ours), len(theirs))
    queries = _common([*ours, *theirs])
    heights = [
        np.array([_heights(one, queries) for one in _repeated(side, seeds)]) for side in (ours, theirs)
    ]
    return _bootstrap(heights[0] - heights[1])


def at_equal_cost(ours: Sequence[Curve], theirs: Sequence[Curve]) -> Difference | None:
    """The mean height between two recipes' curves, a curve for each seed; None where they do not overlap."""
    curves = [*ours, *theirs]
    low = max(min(found.flops for found in curve) for curve in curves)
    high = min(max(found.flops for found in curve) for curve in curves)
    if not 0 < low < high:
        return None
    queries = _common([found for curve in curves for found in curve])
    places = np.linspace(np.log(low), np.log(high), _PLACES)
    heights = [np.array([_mean_height(curve, queries, places) for curve in side]) for side in (ours, theirs)]
    seeds = min(map(len, heights))
    return _bootstrap(heights[0][:seeds] - heights[1][:seeds], (low, high))


def _mean_height(curve: Curve, queries: Sequence[str], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """nDCG@10 of each query, the mean over the places; linear in log FLOPS between two measurements."""
    ordered = sorted(curve, key=lambda found: found.flops)
    costs = np.log([found.flops for found in ordered])
    # Linear in the measurements: how much each of them counts is the same for every query.
    shares = np.array([np.interp(places, costs, row).mean() for row in np.eye(len(ordered))])
    return shares @ np.array([_heights(found, queries) for found in ordered])


def _heights(found: Measured, queries: Sequence[str]) -> NDArray[np.float64]:
    return np.array([found.per_query[query] for query in queries])


def _common(found: Sequence[Measured]) -> list[str]:
    return sorted(set.intersection(*(set(one.per_query) for one in found)))


def _repeated(side: Sequence[Measured], seeds: int) -> Sequence[Measured]:
    return side if len(side) == seeds else [side[number % len(side)] for number in range(seeds)]


def _bootstrap(differences: NDArray[np.float64], costs: tuple[float, float] | None = None) -> Difference:
    """Of differences ``[seeds, queries]``, both drawn."""
    rng = np.random.default_rng(0)
    seeds, queries = differences.shape
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), _DRAWS) @ differences / seeds
    drawn = (drawn * rng.multinomial(queries, np.full(queries, 1 / queries), _DRAWS)).sum(axis=1) / queries
    low, high = np.quantile(drawn, [0.025, 0.975])
    # One more draw in each tail: a p-value of 0 would say more than so many draws can.
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p_value = min(1.0, 2 * (int(tail) + 1) / (_DRAWS + 1))
    return Difference(float(differences.mean()), float(low), float(high), p_value, costs)
