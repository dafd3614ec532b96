"""What rounding makes of fused scores stays within the bounds, and what is wrong does not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from oskit.cluster.search.fusion import Candidates, Found, Fusion
from oskit.cluster.search.hybrid import Hybrid
from oskit.evaluation.live.fused import CUT, bounds, check_fusion


@pytest.mark.parametrize("name", ["min_max", "l2", "z_score", "rrf:60"])
def test_the_normalised_scores_of_rounded_ones_are_within_the_bounds(name: str) -> None:
    fusion, draw = Fusion.parse(name), np.random.default_rng(3)
    for size in (1, 2, 3, 30):
        for _ in range(30):
            exact = draw.gamma(2.0, 3.0, size) + 0.1
            stored = exact * (1 - draw.uniform(0, CUT, size))
            listed = sorted(
                (Found(str(n), score) for n, score in enumerate(stored)), key=lambda hit: -hit.score
            )
            found = Candidates.of([[listed]])
            due = dict(zip(found.ids, found.normalized(fusion)[:, 0], strict=True))
            low, high = bounds(fusion, exact * (1 - CUT), exact)
            for n in range(size):
                assert low[n] - 1e-6 <= due[str(n)] <= high[n] + 1e-6


class Cluster:
    """Answers with what it was told, as a searcher does."""

    def __init__(self, lists: list[list[Found]], hits: dict[str, float]) -> None:
        self.found = Candidates.of([lists])
        self.hits = hits

    def search_many(self, queries, *, hybrid, size):
        hits = [SimpleNamespace(id=name, score=score) for name, score in self.hits.items()][:size]
        return [SimpleNamespace(hits=hits, took_ms=1)]

    def candidates(self, queries, hybrid):
        return [self.found]

    def query_weights(self, queries):
        return [({"a": 1.0}, None)]


LISTS = [[Found("a", 8.0), Found("b", 6.0)], [Found("b", 30.0), Found("c", 20.0), Found("a", 10.0)]]
HYBRID = Hybrid.parse("bm25=0.5,sparse=0.5", depth=10)
RIGHT = {"b": 0.5005, "a": 0.5005, "c": 0.25}
EXACT = {"q": {"b": 30.0, "c": 20.0, "a": 10.0}}


@pytest.mark.parametrize(
    ("hits", "exact", "counts"),
    [
        (RIGHT, EXACT, {}),
        ({"a": 0.5005, "b": 0.5005, "c": 0.25}, EXACT, {}),  # equal ones may change places
        ({**RIGHT, "c": 0.26}, EXACT, {"fused": 1, "exact": 1}),
        ({"b": 0.5005, "c": 0.25, "a": 0.5005}, EXACT, {"fused": 2}),
        ({"b": 0.5005, "a": 0.5005}, EXACT, {"missing": 1}),
        ({}, EXACT, {"missing": 3}),
        (RIGHT, {"q": {"b": 30.0, "c": 25.0, "a": 10.0}}, {"exact": 1}),
        (RIGHT, None, {}),
    ],
)
def test_what_is_wrong_is_counted(hits, exact, counts) -> None:
    found = check_fusion(Cluster(LISTS, hits), {"q": "text"}, HYBRID, 10, exact=exact)
    assert {kind: count for kind, count in found.counts.items() if count} == counts
    assert (found.failure is None) == (not counts)
    assert found.run == {"q": hits}
