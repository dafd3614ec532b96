"""What a verification or an evaluation found, as data: the schema of the JSON reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from oskit.errors import VerificationError
from oskit.evaluation.live.comparison import Comparison
from oskit.evaluation.offline.metrics import Qrels, Run, measures_for_depth, overlap, percentiles, quality
from oskit.evaluation.offline.pruning_levels import PrunePoint
from oskit.evaluation.offline.significance import Significance
from oskit.evaluation.offline.sparsity import Sparsity

VERIFICATION_SCHEMA = "oskit.verification/1"
EVALUATION_SCHEMA = "oskit.evaluation/1"


@dataclass
class RunFigures:
    """How one way of retrieving did.

    Attributes:
        name: ``cluster``, ``exact``, ``BM25``, ``two-phase``, …
        quality: Mean of each measure over the judged queries.
        per_query: The measures of each judged query.
        overlap_at_10: Mean share of the top 10 in common with the exact ranking; None for BM25 and exact.
        recall_of_exact: Mean share of the exact top ``k`` that was returned; None for BM25 and exact.
        took: Milliseconds in the cluster (its ``took``): p50, p99, mean, count. None without a cluster.
        wall: Milliseconds that the client waited, likewise.
    """

    name: str
    quality: dict[str, float]
    per_query: dict[str, dict[str, float]] = field(repr=False)
    overlap_at_10: float | None = None
    recall_of_exact: float | None = None
    took: dict[str, Any] | None = None
    wall: dict[str, Any] | None = None

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
    ) -> RunFigures:
        """Measure a run of depth ``k``, against the exact one where that is given."""
        measured = quality(run, qrels, measures_for_depth(k))
        return cls(
            name=name,
            quality=measured.mean,
            per_query=measured.per_query,
            overlap_at_10=None if exact is None else _mean(overlap(run[q], exact[q]) for q in exact),
            recall_of_exact=None if exact is None else _mean(_recall(run[q], exact[q]) for q in exact),
            took=percentiles(took) if took else None,
            wall=percentiles(wall) if wall else None,
        )


@dataclass
class ExampleHit:
    """A hit of an example query, with the tokens that matched and what each adds to the score."""

    rank: int
    document_id: str
    score: float
    text: str
    relevant: bool
    matched: list[tuple[str, float]]


@dataclass
class Example:
    """A query as a reader wants to see it."""

    query_id: str
    query: str
    tokens: list[tuple[str, float]]
    hits: list[ExampleHit]


@dataclass
class StoredVectors:
    """Result of asking the cluster for documents by their own tokens.

    Attributes:
        checked: Documents that were asked for.
        wrong: Documents whose stored weights are not the encoder's, with the sums found and due.
    """

    checked: int
    wrong: list[dict[str, Any]]


@dataclass
class VerificationReport:
    """Everything :func:`oskit.evaluation.live.verify.verify` found.

    Attributes:
        failures: One line for each reason why the cluster is not right; empty if it is.
        warnings: Things to know that are not wrong.
        created: ISO 8601, UTC.
        cluster: Distribution and version.
        index: Name, kind, key, how it stores weights, documents, bytes.
        collection: Name, split, numbers of documents and queries.
        encoder: Name, architecture and sha256.
        search: ``by``, ``model_id``, ``k``, tolerances.
        runs: The cluster's, the exact and the BM25 run, and variants of the cluster's.
        comparison: Hit by hit; holds the counts.
        missing_documents: Ids of the corpus that the index lacks (the first 200).
        vectors: The check of stored vectors.
        examples: A few queries with their hits.
        took: Milliseconds of each query of the cluster's run.
        wall: Milliseconds that the client waited for each.
    """

    created: str
    cluster: dict[str, Any]
    index: dict[str, Any]
    collection: dict[str, Any]
    encoder: dict[str, Any]
    search: dict[str, Any]
    runs: list[RunFigures]
    comparison: Comparison
    missing_documents: list[str]
    vectors: StoredVectors
    examples: list[Example]
    failures: list[str]
    warnings: list[str]
    took: list[float] = field(repr=False)
    wall: list[float] = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether the cluster retrieves what it should."""
        return not self.failures

    @property
    def wrong_hits(self) -> int:
        """Disagreements that count: what an approximate search skips is its nature, not an error."""
        skipped = self.comparison.counts["missing"] if self.index["search"] == "approximate" else 0
        return sum(self.comparison.counts.values()) - skipped

    def run(self, name: str) -> RunFigures:
        """The figures of the run called ``name``."""
        return next(run for run in self.runs if run.name == name)

    def raise_for_disagreement(self) -> None:
        """Raise if the cluster disagrees.

        Raises:
            VerificationError: Names the first reason and how many more there are.
        """
        if self.passed:
            return
        more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
        raise VerificationError(
            f"index {self.index['name']}: {self.failures[0]}{more}",
            hint="The report lists each disagreement; --report DIR writes it.",
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; ``schema`` names its version."""
        return {
            "schema": VERIFICATION_SCHEMA,
            "created": self.created,
            "passed": self.passed,
            "failures": self.failures,
            "warnings": self.warnings,
            "cluster": self.cluster,
            "index": self.index,
            "collection": self.collection,
            "encoder": self.encoder,
            "search": self.search,
            "runs": [asdict(run) for run in self.runs],
            "comparison": comparison_dict(self.comparison),
            "missing_documents": self.missing_documents,
            "stored_vectors": asdict(self.vectors),
            "examples": [asdict(example) for example in self.examples],
        }


@dataclass
class EvaluationRow:
    """One way of retrieving, with its quality and its cost.

    Attributes:
        figures: Name and quality.
        kind: ``sparse``, ``bm25`` or ``dense``.
        description: What it is: name, architecture, settings.
        flops: Expected number of products for one query and one document; of a dense model its dimensions.
        index_bytes: Size of the index without any compression: 8 bytes a posting (a document's number and a
            weight), 4 bytes a dimension of a dense vector.
        sparsity: None for a dense model.
        significance: Against the baseline, on each measure; empty for the baseline and without one.
        pruning: The encoder at each pruning level, all weights first; empty if none was asked for.
    """

    figures: RunFigures
    kind: Literal["sparse", "bm25", "dense"]
    description: dict[str, Any]
    flops: float
    index_bytes: int
    sparsity: Sparsity | None = None
    significance: list[Significance] = field(default_factory=list)
    pruning: list[PrunePoint] = field(default_factory=list)

    @property
    def name(self) -> str:
        """How the report calls it."""
        return self.figures.name

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            **self.description,
            **asdict(self.figures),
            "kind": self.kind,
            "flops": self.flops,
            "index_bytes": self.index_bytes,
            "sparsity": None if self.sparsity is None else self.sparsity.to_dict(),
            "significance": [item.to_dict() for item in self.significance],
            "pruning": [point.to_dict() for point in self.pruning],
        }


@dataclass
class EvaluationReport:
    """Figures side by side, without a cluster.

    Attributes:
        created: ISO 8601, UTC.
        collection: As in :class:`VerificationReport`.
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
    def runs(self) -> list[RunFigures]:
        """The quality of each row."""
        return [row.figures for row in self.rows]

    def row(self, name: str) -> EvaluationRow:
        """The row called ``name``."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; ``schema`` names its version."""
        return {
            "schema": EVALUATION_SCHEMA,
            "created": self.created,
            "collection": self.collection,
            "k": self.k,
            "baseline": self.baseline,
            "encoders": [row.to_dict() for row in self.rows],
        }


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """The JSON form of a comparison: counts, differences and the listed disagreements."""
    return {
        "hits": comparison.hits,
        "counts": comparison.counts,
        "relative_difference": difference_summary(comparison),
        "sparsity": comparison.sparsity.to_dict(),
        "disagreements": [item.to_dict() for item in comparison.disagreements],
    }


def difference_summary(comparison: Comparison) -> dict[str, float | None]:
    """Smallest, largest and mean relative difference between the cluster's and the exact scores."""
    differences = comparison.relative_differences
    if not differences.size:
        return {"min": None, "max": None, "mean": None}
    return {
        "min": float(differences.min()),
        "max": float(differences.max()),
        "mean": float(differences.mean()),
    }


def _recall(run: Mapping[str, float], exact: Mapping[str, float]) -> float:
    return sum(document in run for document in exact) / len(exact) if exact else 1.0


def _mean(values: Any) -> float:
    items = list(values)
    return sum(items) / len(items) if items else 1.0
