"""What a verification found, as data: the schema of its JSON report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from oskit.errors import VerificationError
from oskit.evaluation.live.comparison import Comparison
from oskit.evaluation.offline.result import RunFigures

VERIFICATION_SCHEMA = "oskit.verification/1"


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
