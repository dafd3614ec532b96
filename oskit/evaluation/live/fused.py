"""Are the cluster's hybrid scores those that its lists, and the exact scores, fuse to?

Two questions. Fused here, the cluster's own lists must give its hybrid hits, to the last bits of a float. And
with exact scores in the place of the sparse side's, each hybrid score must lie within what the rounding of
weights explains: a normalised score grows with its own score, and every mean with each of them, so the ends
of the intervals of a list give those of the fused score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.cluster.search.fusion import Array, Candidates, Fusion
from oskit.cluster.search.search import TOGETHER
from oskit.evaluation.offline.metrics import Run

if TYPE_CHECKING:
    from oskit.cluster.search.hybrid import Hybrid
    from oskit.cluster.search.result import SearchResult
    from oskit.cluster.search.search import Searcher

CUT = 2.0**-8 + 1e-3
"""How much smaller than the exact score a ``rank_features`` one may be, relatively: 9 bits of a weight, and
what two runtimes differ by."""

NOISE = 1e-5
"""Of 32-bit floats, relatively."""

MAX_LISTED = 200


@dataclass(frozen=True)
class WrongScore:
    """A hit whose hybrid score is not what is fused here.

    Attributes:
        kind: ``fused``: of the cluster's own lists. ``exact``: of exact scores, give or take the rounding.
            ``missing``: belongs among the hits.
        low: Smallest score that is right; ``high`` is the largest.
    """

    kind: str
    query_id: str
    document_id: str
    cluster_score: float | None
    low: float
    high: float


@dataclass
class FusedScores:
    """What was compared.

    Attributes:
        hybrid: What was searched: weights, fusion, depth.
        hits: Hybrid hits compared.
        counts: Of each kind of :class:`WrongScore`, of which ``wrong`` lists the first.
        largest_difference: Between hybrid scores and those of exact ones; None where exact scores are not
            known, as of an approximate search.
        run: The cluster's hybrid run.
        took: Milliseconds of each, as the cluster tells.
    """

    hybrid: dict[str, Any]
    hits: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"fused": 0, "exact": 0, "missing": 0})
    wrong: list[WrongScore] = field(default_factory=list)
    largest_difference: float | None = None
    run: Run = field(default_factory=dict)
    took: list[float] = field(default_factory=list)

    @property
    def failure(self) -> str | None:
        """In one line; None if all is right."""
        found = {kind: count for kind, count in self.counts.items() if count}
        if not found:
            return None
        first = self.wrong[0]
        told = {"fused": "not those of its own lists", "exact": "not those of exact scores",
                "missing": "of documents that are not among its hits"}  # fmt: skip
        parts = ", ".join(f"{count:,} {told[kind]}" for kind, count in found.items())
        return (
            f"{sum(found.values()):,} fused scores of {self.hits:,} are wrong: {parts}; such as "
            f"{first.document_id!r} of query {first.query_id!r}: {first.cluster_score}, and right is "
            f"{first.low:.6f} to {first.high:.6f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {name: value for name, value in vars(self).items() if name not in ("run", "took")}
        return {**told, "wrong": [asdict(each) for each in self.wrong]}


def check_fusion(
    searcher: Searcher,
    queries: Mapping[str, str],
    hybrid: Hybrid,
    size: int,
    *,
    exact: Run | None,
    tolerance: float = 0.0,
) -> FusedScores:
    """Compare the hybrid hits of queries with what is fused here.

    Args:
        size: Hits of each query, at most as many as are fused of a side.
        exact: The exact scores of the sparse side, best first; None where the cluster's own cannot be told
            from them by rounding alone.
        tolerance: How far a document's weight may be from the encoder's before it is rounded.

    Raises:
        ClusterError: As a search does.
    """
    found, size = FusedScores(hybrid.to_dict()), min(size, hybrid.depth)
    texts = list(queries.items())
    for start in range(0, len(texts), TOGETHER):
        part = dict(texts[start : start + TOGETHER])
        results = searcher.search_many(list(part.values()), hybrid=hybrid, size=size)
        lists = searcher.candidates(list(part.values()), hybrid)
        sums = [0.0] * len(part)
        if exact is not None and hybrid.has("sparse"):
            sums = [sum(weights.values()) for weights, _ in searcher.query_weights(list(part.values()))]
        for query, result, candidates, weights in zip(part, results, lists, sums, strict=True):
            _compare(found, query, result, candidates, hybrid, size)
            if exact is not None and hybrid.has("sparse"):
                _compare_exact(found, query, result, candidates, hybrid, exact[query], weights * tolerance)
    return found


def _compare(
    found: FusedScores,
    query: str,
    result: SearchResult,
    candidates: Candidates,
    hybrid: Hybrid,
    size: int,
) -> None:
    scores = {hit.id: hit.score for hit in result.hits}
    found.run[query] = scores
    found.took.append(float(result.took_ms))
    found.hits += len(scores)
    due = candidates.fuse(hybrid.fusion, hybrid.weights)
    ranked = list(due.items())[:size]
    for (document, score), (_, of_rank) in zip(scores.items(), ranked, strict=False):
        right = due.get(document, 0.0)
        # Also in the right place, where equal ones may stand for each other.
        if max(abs(score - right), abs(score - of_rank)) > NOISE * (1 + abs(score)):
            _note(found, WrongScore("fused", query, document, score, right, right))
    if len(scores) < len(ranked):
        for document, right in ranked:
            if document not in scores:
                _note(found, WrongScore("missing", query, document, None, right, right))


def _compare_exact(
    found: FusedScores,
    query: str,
    result: SearchResult,
    candidates: Candidates,
    hybrid: Hybrid,
    exact: Mapping[str, float],
    tolerance: float,
) -> None:
    low, middle, high = (candidates.normalized(hybrid.fusion) for _ in range(3))
    for number, side in enumerate(hybrid.sides):
        if side.kind == "sparse" and len(listed := candidates.lists[number]):
            stored = candidates.scores[listed, number].astype(np.float64)
            known = np.array([exact.get(candidates.ids[place], np.nan) for place in listed])
            top = np.where(np.isnan(known), stored / (1 - CUT), known) + tolerance
            bottom = np.where(np.isnan(known), stored, (known - tolerance) * (1 - CUT))
            low[listed, number], high[listed, number] = bounds(hybrid.fusion, bottom, top)
            middle[listed, number] = _plain(hybrid.fusion, np.where(np.isnan(known), stored, known))
    ends = [candidates.fused(scores, hybrid.fusion, hybrid.weights) for scores in (low, middle, high)]
    places = {document: place for place, document in enumerate(candidates.ids)}
    for hit in result.hits:
        if (place := places.get(hit.id)) is None:
            continue
        least, between, most = (float(end[place]) for end in ends)
        found.largest_difference = max(found.largest_difference or 0.0, abs(hit.score - between))
        if not least - NOISE <= hit.score <= most + NOISE:
            _note(found, WrongScore("exact", query, hit.id, hit.score, least, most))


def _plain(fusion: Fusion, scores: Any) -> Array:
    only = Candidates(
        [""] * len(scores), np.asarray(scores, dtype=np.float32)[:, None],
        np.argsort(np.argsort(-scores, kind="stable"), kind="stable")[:, None], [np.arange(len(scores))],
    )  # fmt: skip
    return only.normalized(fusion)[:, 0]


def bounds(fusion: Fusion, low: Any, high: Any) -> tuple[Any, Any]:
    """Smallest and largest normalised score of each hit of a list, whose scores are known to within ends.

    Args:
        low: Smallest score of each, ``[hits]``; ``high`` the largest.
    """
    if fusion.technique == "rrf":
        first = 1 + (low[None, :] > high[:, None]).sum(axis=1)
        last = (high[None, :] >= low[:, None]).sum(axis=1)
        return 1 / (fusion.rank_constant + last), 1 / (fusion.rank_constant + first)
    if len(low) == 1:
        return (low, high) if fusion.technique == "z_score" else (np.ones(1), np.ones(1))
    if fusion.technique == "l2":
        return low / np.linalg.norm(high), high / np.linalg.norm(low)
    if fusion.technique == "min_max":
        least = (low - high.min()) / max(high.max() - high.min(), 1e-9)
        most = (high - low.min()) / max(low.max() - low.min(), 1e-9)
        return np.clip(least, 0, 1), np.clip(most, 1e-3, 1)
    spread = (high - low).max() * np.sqrt(len(low) / (len(low) - 1))
    deviation = np.std((low + high) / 2, ddof=1)
    narrow, wide = max(deviation - spread, 1e-9), deviation + spread
    above, below = high - low.mean(), low - high.mean()
    # What is above the mean by next to nothing counts for less than what is below it.
    least = np.where(below > 0, below / wide, np.where(above > 0, 0, 1e-3))
    most = np.where(above > 0, np.maximum(above / narrow, 1e-3), 1e-3)
    is_mean = (below <= 0) & (above >= 0)  # who has the very mean counts as the best raw score does
    return least, np.where(is_mean, np.maximum(most, high.max()), most)


def _note(found: FusedScores, wrong: WrongScore) -> None:
    found.counts[wrong.kind] += 1
    if len(found.wrong) < MAX_LISTED:
        found.wrong.append(wrong)
