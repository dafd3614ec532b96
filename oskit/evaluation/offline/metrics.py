"""Retrieval quality of a run against relevance judgements, by ir-measures."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oskit.errors import DataError

Run = dict[str, dict[str, float]]
"""Query id -> document id -> score, best document first (the order is the ranking)."""

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> relevance; relevant from 1 on."""

MAIN_MEASURE = "nDCG@10"
"""The one by which runs are compared."""

MEASURES = (MAIN_MEASURE, "MRR@10", "R@100")
"""What every report shows. MRR@10 is what ir-measures calls RR@10, averaged."""

DEEP_MEASURE = "R@1000"
"""Added when the run is at least 1000 documents deep."""

_IR_NAMES = {"MRR@10": "RR@10"}


@dataclass(frozen=True)
class Quality:
    """Measures of one run: their means over the judged queries, and each query's own values."""

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]] = field(repr=False)

    @property
    def queries(self) -> int:
        """Number of queries that were judged."""
        return len(self.per_query)


def measures_for_depth(depth: int) -> tuple[str, ...]:
    """The measures that a run of ``depth`` documents a query can tell."""
    return (*MEASURES, DEEP_MEASURE) if depth >= 1000 else MEASURES


def judged_queries(qrels: Qrels) -> list[str]:
    """Queries with at least one relevant document; the others cannot be scored."""
    return [query for query, judged in qrels.items() if any(grade > 0 for grade in judged.values())]


def quality(
    run: Mapping[str, Mapping[str, float]],
    qrels: Qrels,
    measures: Sequence[str] = MEASURES,
    *,
    asked: Container[str] = (),
) -> Quality:
    """Measure a run.

    Args:
        run: Rankings.
        qrels: Judgements.
        measures: By names of ir-measures; MRR is RR.
        asked: Queries that found themselves (``exact_scores.themselves``): nobody asks for these, so they are
            taken out of the rankings, as BEIR does.

    Every query with a relevant document counts: one that the run lacks, or for which it found nothing, has
    the value 0. The order of a query's documents in ``run`` is its ranking: scores are replaced by ranks
    before they are measured, because the evaluators behind ir-measures each break ties in their own way and
    a search engine's order of equally scored documents is what its user sees.

    Raises:
        DataError: No query has a relevant document.
    """
    from ir_measures import iter_calc, parse_measure

    judged = judged_queries(qrels)
    if not judged:
        raise DataError(
            "no query has a relevant document, so quality cannot be measured",
            hint="Check that the qrels file is the one of this split and that its scores are above 0.",
        )
    parsed = {parse_measure(_IR_NAMES.get(name, name)): name for name in measures}
    ranked = {
        query: {
            document: -float(rank)
            for rank, document in enumerate(run[query])
            if document != query or query not in asked
        }
        for query in judged
        if run.get(query)
    }
    per_query: dict[str, dict[str, float]] = {query: dict.fromkeys(measures, 0.0) for query in judged}
    if ranked:
        wanted = {query: dict(qrels[query]) for query in judged}
        for metric in iter_calc(list(parsed), wanted, ranked):
            per_query[metric.query_id][parsed[metric.measure]] = float(metric.value)
    mean = {name: sum(row[name] for row in per_query.values()) / len(judged) for name in measures}
    return Quality(mean=mean, per_query=per_query)


def overlap(first: Mapping[str, float], second: Mapping[str, float], depth: int = 10) -> float:
    """Share of the top ``depth`` documents that two rankings have in common, in [0, 1].

    Where the longer ranking has fewer than ``depth`` documents, its length counts instead; two empty
    rankings agree.
    """
    a, b = set(list(first)[:depth]), set(list(second)[:depth])
    longest = max(len(a), len(b))
    return len(a & b) / longest if longest else 1.0


def percentiles(values: Sequence[float]) -> dict[str, Any] | None:
    """p50, p99, mean and number of ``values`` (milliseconds), by linear interpolation; None without any."""
    import numpy as np

    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    p50, p99 = np.percentile(array, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "mean": float(array.mean()), "count": len(values)}
