"""What an evaluation found, as data: the schema of its JSON report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from oskit.archive.tokenization import Tokenization, shattering
from oskit.archive.truncation import Truncation
from oskit.evaluation.offline.metrics import (
    MAIN_MEASURE,
    Qrels,
    Run,
    measures_for_depth,
    overlap,
    percentiles,
    quality,
)
from oskit.evaluation.offline.pruning_levels import PrunePoint
from oskit.evaluation.offline.significance import RESAMPLES, Significance, paired_bootstrap
from oskit.evaluation.offline.sparsity import Sparsity

EVALUATION_SCHEMA = "oskit.evaluation/1"

BM25 = "BM25"
"""Name of its run and its row."""

Step = Callable[[str], object]
"""Told what is being done now."""


def now() -> str:
    """The time of a report: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass
class RunFigures:
    """How one way of retrieving did.

    Attributes:
        name: ``cluster``, ``exact``, ``BM25``, ``two-phase``, …
        quality: Mean of each measure over the judged queries, of which ``per_query`` has each one's.
        overlap_at_10: Mean share of the top 10 in common with the exact ranking; None for BM25 and exact.
        recall_of_exact: Mean share of the exact top ``k`` that was returned; None for BM25 and exact.
        took: Milliseconds in the cluster (its ``took``): p50, p99, mean, count. None without a cluster.
        wall: Milliseconds that the client waited, likewise.
        themselves: Queries that are documents of the corpus and found themselves, which does not count.
    """

    name: str
    quality: dict[str, float]
    per_query: dict[str, dict[str, float]] = field(repr=False)
    overlap_at_10: float | None = None
    recall_of_exact: float | None = None
    took: dict[str, Any] | None = None
    wall: dict[str, Any] | None = None
    themselves: int = 0

    @classmethod
    def measure(
        cls,
        name: str,
        run: Run,
        qrels: Qrels,
        *,
        k: int,
        exact: Run | None = None,
        took: Sequence[float] = (),
        wall: Sequence[float] = (),
        asked: Collection[str] = (),
    ) -> RunFigures:
        """Measure a run of depth ``k``, against the exact one where that is given.

        What the queries ``asked`` found of themselves does not count.
        """
        measured = quality(run, qrels, measures_for_depth(k), asked=asked)
        return cls(
            name=name,
            quality=measured.mean,
            per_query=measured.per_query,
            overlap_at_10=None if exact is None else _mean(overlap(run[q], exact[q]) for q in exact),
            recall_of_exact=None if exact is None else _mean(_recall(run[q], exact[q]) for q in exact),
            took=percentiles(took),
            wall=percentiles(wall),
            themselves=len(asked),
        )

    def against(
        self,
        baseline: RunFigures,
        measure: str = MAIN_MEASURE,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> Significance:
        """How far this run is from another one of the same queries, by paired bootstrap."""
        ours, theirs = (
            {query: values[measure] for query, values in run.per_query.items()} for run in (self, baseline)
        )
        return paired_bootstrap(
            ours, theirs, measure=measure, name=baseline.name, resamples=resamples, seed=seed
        )


@dataclass
class EvaluationRow:
    """One way of retrieving, with its quality and its cost.

    Attributes:
        description: What it is: name, architecture, settings.
        flops: Expected number of products for one query and one document; of a dense model its dimensions.
        index_bytes: Size of the index without any compression: 8 bytes a posting (a document's number and a
            weight), 4 bytes a dimension of a dense vector.
        sparsity: None for a dense model.
        truncation: What of the documents was too long for the encoder; None where nobody counted.
        significance: Against the baseline, on each measure; empty for the baseline and without one.
        pruning: The encoder at each pruning level, all weights first; empty if none was asked for.
        tokenization: How a sparse encoder's tokenizer cuts documents and queries.
        chunking: How documents were cut, each counting by its best chunk; None for whole documents.
        chunks: How many chunks there are then.
    """

    figures: RunFigures
    kind: Literal["sparse", "bm25", "dense"]
    description: dict[str, Any]
    flops: float
    index_bytes: int
    sparsity: Sparsity | None = None
    truncation: Truncation | None = None
    significance: list[Significance] = field(default_factory=list)
    pruning: list[PrunePoint] = field(default_factory=list)
    tokenization: dict[str, Tokenization] = field(default_factory=dict)
    chunking: str | None = None
    chunks: int | None = None

    @property
    def name(self) -> str:
        """How the report calls it."""
        return self.figures.name

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            **self.description,
            **asdict(self.figures),
            **{name: getattr(self, name) for name in ("kind", "flops", "index_bytes", "chunking", "chunks")},
            "sparsity": self.sparsity and asdict(self.sparsity),
            "truncation": self.truncation and self.truncation.to_dict(),
            "significance": [item.to_dict() for item in self.significance],
            "pruning": [asdict(point) for point in self.pruning],
            "tokenization": {side: found.to_dict() for side, found in self.tokenization.items()},
        }


@dataclass
class EvaluationReport:
    """Figures side by side, without a cluster.

    Attributes:
        collection: As in :class:`oskit.evaluation.live.result.VerificationReport`.
        k: Depth of the rankings.
        rows: Encoders, then BM25, then dense models.
        baseline: Name of the row that the others were compared with; None if they were not.
    """

    created: str
    collection: dict[str, Any]
    k: int
    rows: list[EvaluationRow]
    baseline: str | None = None

    @property
    def warnings(self) -> list[str]:
        """What a reader of the figures must know, one line each."""
        found = {row.name: shattering(row.tokenization) for row in self.rows}
        told = [f"{name}: {line}" for name, line in found.items() if line is not None]
        if asked := max((row.figures.themselves for row in self.rows), default=0):
            told.append(found_themselves(asked))
        return told

    def row(self, name: str) -> EvaluationRow:
        """The row called ``name``."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; ``schema`` names its version."""
        told = {name: value for name, value in vars(self).items() if name != "rows"}
        rows = [row.to_dict() for row in self.rows]
        return {"schema": EVALUATION_SCHEMA, **told, "warnings": self.warnings, "encoders": rows}


def found_themselves(queries: int) -> str:
    """What a reader is told of queries that are documents."""
    return f"{queries:,} queries are documents of the corpus and found themselves, which is left out"


def _recall(run: Mapping[str, float], exact: Mapping[str, float]) -> float:
    return sum(document in run for document in exact) / len(exact) if exact else 1.0


def _mean(values: Any) -> float:
    items = list(values)
    return sum(items) / len(items) if items else 1.0
