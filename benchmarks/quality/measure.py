"""One encoder, BM25 or a dense teacher on one collection: what is kept of it as JSON."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from oskit.archive.token_weights import Prune, prune_matrix
from oskit.evaluation.offline.bm25 import Bm25Settings, rank_bm25
from oskit.evaluation.offline.dense import DenseModel, rank_dense
from oskit.evaluation.offline.metrics import MEASURES, Qrels, Run, quality
from oskit.evaluation.offline.pruning_levels import PrunedDocuments, rank_pruned
from oskit.training.auto.look import fast_bfloat16

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.data.collection import Collection
    from oskit.encoder.model import NeuralSparseEncoder

MAIN = "nDCG@10"

DEPTH = 100
MAX_RATIO = "max_ratio:0.1"
BUDGET = "max_ratio:0.3+top_k:150"
"""Baked into the archive, so that queries are pruned too, and documents once more where they are ingested."""
_TIMED_QUERIES = 15


@dataclass(frozen=True)
class Point:
    """An encoder with its documents pruned by one rule; ``none`` for all of their weights.

    Of two rules, ``A+B``, the first one holds for queries too, as `oskit export --prune` bakes it.
    """

    rule: str
    ndcg: float
    flops: float
    postings: int
    document_active: float


@dataclass(frozen=True)
class Measured:
    """How one way of retrieving did on one collection.

    Attributes:
        quality: Mean of each measure.
        per_query: nDCG@10 of each judged query.
        documents: Size of the corpus.
        points: By pruning rule, all weights first; empty for BM25 and dense models.
        query_active: Mean number of tokens of a query; None for BM25 and dense models.
        query_ms: Median milliseconds to encode one query; None for BM25 and dense models.
    """

    quality: dict[str, float]
    per_query: dict[str, float]
    documents: int
    points: list[Point] = field(default_factory=list)
    query_active: float | None = None
    query_ms: float | None = None

    @property
    def ndcg(self) -> float:
        """nDCG@10."""
        return self.quality[MAIN]

    @property
    def flops(self) -> float:
        """FLOPS with all weights."""
        return self.points[0].flops if self.points else float("nan")

    def point(self, rule: str) -> Point:
        """The encoder pruned by ``rule``."""
        return next(point for point in self.points if point.rule == rule)

    def to_dict(self) -> dict[str, Any]:
        """All attributes, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """What :meth:`to_dict` gave."""
        points = [Point(**point) for point in values["points"]]
        return cls(**{**values, "points": points})


def measure_encoder(
    encoder: NeuralSparseEncoder, collection: Collection, rules: Sequence[str] = ()
) -> Measured:
    """Rank exactly, with all weights and with the documents pruned by each of ``rules``."""
    if fast_bfloat16():
        encoder.precision = "bf16"  # exact comparisons are no matter here
    plain = [rule for rule in rules if "+" not in rule]
    whole, found = rank_pruned(encoder, collection, [Prune.parse(rule) for rule in plain], k=DEPTH)
    found = {"none": (whole.run, whole.sparsity), **found}
    for rule in rules:
        baked, both, ingested = rule.partition("+")
        if both:
            level = rank_pruned(Baked(encoder, baked), collection, [Prune.parse(ingested)], k=DEPTH)[1]
            found[rule] = level[ingested]
    points = [
        Point(rule, _mean(run, collection.qrels), cost.flops, cost.postings, cost.document_active)
        for rule, (run, cost) in found.items()
    ]
    measured = _measured(whole.run, collection.qrels, len(whole.document_ids))
    return Measured(
        measured.quality,
        measured.per_query,
        measured.documents,
        points,
        query_active=whole.sparsity.query_active,
        query_ms=_query_milliseconds(encoder, list(collection.queries.values())),
    )


class Baked(PrunedDocuments):
    """Keeps of queries, too, what a rule keeps, as an archive does that it is baked into."""

    def query_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """As the encoder's, pruned."""
        return prune_matrix(super().query_matrix(texts), self._rule)


def measure_bm25(collection: Collection) -> Measured:
    """BM25 with Lucene's settings."""
    found = rank_bm25(collection, Bm25Settings(), k=DEPTH)
    return _measured(found.run, collection.qrels, len(found.document_ids))


def measure_dense(name: str, collection: Collection) -> Measured:
    """A dense model, exact search."""
    precision = "bfloat16" if fast_bfloat16() else None
    found = rank_dense(DenseModel(name, precision=precision), collection, k=DEPTH)
    return _measured(found.run, collection.qrels, found.documents)


def _measured(run: Run, qrels: Qrels, documents: int) -> Measured:
    found = quality(run, qrels, MEASURES)
    return Measured(found.mean, {query: values[MAIN] for query, values in found.per_query.items()}, documents)


def _mean(run: Run, qrels: Qrels) -> float:
    return quality(run, qrels, (MAIN,)).mean[MAIN]


def _query_milliseconds(encoder: NeuralSparseEncoder, queries: list[str]) -> float:
    encoder.query_matrix(queries[:1])
    times = []
    for query in queries[:_TIMED_QUERIES]:
        start = time.perf_counter()
        encoder.query_matrix([query])
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
