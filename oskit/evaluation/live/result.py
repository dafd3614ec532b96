"""What a verification found, as data: the schema of its JSON report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from oskit.archive.tokenization import Tokenization
from oskit.errors import VerificationError
from oskit.evaluation.live.comparison import Comparison
from oskit.evaluation.live.fused import FusedScores
from oskit.evaluation.offline.result import RunFigures
from oskit.evaluation.offline.significance import Significance

VERIFICATION_SCHEMA = "oskit.verification/1"

BETTER_ENCODER = (
    "Take an encoder of the texts' language, train this one on such texts (oskit train), or search by BM25."
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
    """Documents that the cluster was asked for by their own tokens; ``wrong`` are those whose stored weights
    are not the encoder's, with the sums found and due, and, where the index tells, the weights of the tokens
    that they lack (``lacks``), have besides (``extra``), or with another weight (``other``)."""

    checked: int
    wrong: list[dict[str, Any]]
    unseen: int = 0
    """Of them, those whose vector is not in ``_source``: what they have besides is not seen."""


@dataclass
class VerificationReport:
    """Everything :func:`oskit.evaluation.live.verify.verify` found.

    There are two verdicts. ``passed``: the cluster returns what the encoder means. ``quality``: whether that
    is any good, beside BM25 in the same index.

    Attributes:
        failures: One line for each reason why the cluster is not right; empty if it is.
        warnings: Things to know that are not wrong.
        cluster: Distribution and version.
        index: Name, kind, key, how it stores weights, documents, bytes.
        collection: Name, split, numbers of documents and queries.
        encoder: Name, architecture and sha256.
        search: ``by``, ``model_id``, ``k``, tolerances.
        runs: The cluster's, the exact and the BM25 run, and variants of the cluster's.
        comparison: Hit by hit; holds the counts.
        missing_documents: Ids of the corpus that the index lacks (the first 200 of ``missing``).
        extra_documents: Ids of the index that the corpus lacks (some of ``extra``).
        took: Milliseconds of each query of the cluster's run.
        wall: Milliseconds that the client waited for each.
        against_bm25: The cluster's run beside BM25's, by nDCG@10; None where BM25 was not asked.
        tokenization: How the encoder's tokenizer cuts the documents and the queries.
        fused: Hybrid scores beside those fused here; None where no hybrid search was asked.
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
    against_bm25: Significance | None = None
    missing: int = 0
    extra: int = 0
    extra_documents: list[str] = field(default_factory=list)
    tokenization: dict[str, Tokenization] = field(default_factory=dict)
    fused: FusedScores | None = None

    @property
    def passed(self) -> bool:
        """Whether the cluster retrieves what it should."""
        return not self.failures

    @property
    def quality(self) -> str | None:
        """Is the encoder any good here? In words; None where BM25 was not asked."""
        found = self.against_bm25
        if found is None:
            return None
        chance = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
        told = f"({chance}, {found.queries:,} queries)"
        if found.verdict == "no difference":
            return (
                f"these queries show no difference between the encoder and BM25 in this index: "
                f"{found.difference:+.3f} {found.measure} {told}"
            )
        gap = f"by {abs(found.difference):.3f} {found.measure} {told}"
        if found.verdict == "better":
            return f"the encoder is better than BM25 in this index {gap}"
        return f"BM25 in this index is better than the encoder {gap}"

    @property
    def is_worse_than_bm25(self) -> bool:
        """Whether the queries show that BM25 in the same index serves them better."""
        return self.against_bm25 is not None and self.against_bm25.verdict == "worse"

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

    def raise_for_quality(self) -> None:
        """Raise if BM25 serves the queries better, or if that is not known.

        Raises:
            VerificationError: Tells by how much.
        """
        if self.against_bm25 is None:
            raise VerificationError(
                f"index {self.index['name']}: whether the encoder is any good is not known without BM25",
                hint="BM25 needs the texts in a field of the index; `oskit ingest` puts them there.",
            )
        if self.is_worse_than_bm25:
            raise VerificationError(f"index {self.index['name']}: {self.quality}", hint=BETTER_ENCODER)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; ``schema`` names its version."""
        beside, left_out = self.against_bm25, ("vectors", "took", "wall", "against_bm25")
        told = {name: value for name, value in vars(self).items() if name not in left_out}
        return {
            "schema": VERIFICATION_SCHEMA,
            "passed": self.passed,
            "quality": beside and {"verdict": beside.verdict, "text": self.quality, **beside.to_dict()},
            **told,
            "fused": self.fused and self.fused.to_dict(),
            "tokenization": {side: found.to_dict() for side, found in self.tokenization.items()},
            "runs": [asdict(run) for run in self.runs],
            "comparison": {
                "hits": self.comparison.hits,
                "counts": self.comparison.counts,
                "relative_difference": difference_summary(self.comparison),
                "sparsity": asdict(self.comparison.sparsity),
                "disagreements": [asdict(item) for item in self.comparison.disagreements],
            },
            "stored_vectors": asdict(self.vectors),
            "examples": [asdict(example) for example in self.examples],
        }


def difference_summary(comparison: Comparison) -> dict[str, float | None]:
    """Smallest, largest and mean relative difference between the cluster's and the exact scores."""
    differences = comparison.relative_differences
    if not differences.size:
        return {"min": None, "max": None, "mean": None}
    return {name: float(getattr(differences, name)()) for name in ("min", "max", "mean")}
