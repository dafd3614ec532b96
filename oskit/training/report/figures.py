"""How good the encoder is, before, in and after training: the figures of ``oskit evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.evaluation.offline.exact_scores import rank_exactly, themselves
from oskit.evaluation.offline.metrics import judged_queries, quality
from oskit.training.internals import BaseEvaluator
from oskit.training.report.choice import CHOICE, Rule

if TYPE_CHECKING:
    from oskit.archive.text_encoder import TextEncoder

DEPTH = 100
"""Of the rankings: recall@100 is the deepest measure."""


class Measure(NamedTuple):
    """One of the figures: its attribute, what people call it, its digits, its name in logs and on the Hub."""

    attribute: str
    label: str
    digits: str
    logged: str
    on_hub: str


MEASURES = (
    Measure("ndcg", "nDCG@10", ".4f", "ndcg@10", "dot_ndcg@10"),
    Measure("mrr", "MRR@10", ".4f", "mrr@10", "dot_mrr@10"),
    Measure("recall", "recall@100", ".4f", "recall@100", "dot_recall@100"),
    Measure("flops", "FLOPS", ".2f", "flops", "avg_flops"),
    Measure("query_active", "active dimensions of a query", ".1f", "query_active", "query_active_dims"),
    Measure(
        "document_active", "active dimensions of a document", ".1f", "document_active", "corpus_active_dims"
    ),
)


@dataclass(frozen=True)
class Figures:
    """Quality and sparsity on one collection.

    Attributes:
        ndcg: nDCG@10.
        mrr: MRR@10.
        recall: Recall@100.
        flops: Expected products of a query and a document.
        query_active: Mean number of active dimensions of a query.
        document_active: The same of a document.
        queries: Number of judged queries.
        documents: Size of the corpus.
        per_query: nDCG@10 of each query, for significance.
    """

    ndcg: float
    mrr: float
    recall: float
    flops: float
    query_active: float
    document_active: float
    queries: int
    documents: int
    per_query: dict[str, float] = field(repr=False, default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All attributes but the queries' own, by the names of the measures."""
        found = asdict(self)
        del found["per_query"]
        names = {"ndcg": "nDCG@10", "mrr": "MRR@10", "recall": "R@100"}
        return {names.get(name, name): value for name, value in found.items()}

    def logs(self) -> dict[str, float]:
        """As the trainer logs them."""
        return {measure.logged: getattr(self, measure.attribute) for measure in MEASURES}

    def __str__(self) -> str:
        return (
            f"nDCG@10 {self.ndcg:.3f}, MRR@10 {self.mrr:.3f}, recall@100 {self.recall:.3f}, "
            f"FLOPS {self.flops:.1f}, {self.query_active:.0f} and {self.document_active:.0f} active "
            "dimensions of a query and a document"
        )


def measure(encoder: TextEncoder, collection: Collection) -> Figures:
    """Rank the collection exactly and measure.

    Raises:
        DataError: The collection cannot be read, or judges no query.
    """
    ranking = rank_exactly(encoder, collection, k=DEPTH)
    found = quality(
        ranking.run, collection.qrels, asked=themselves(ranking.run, collection, collection.qrels)
    )
    return Figures(
        found.mean["nDCG@10"],
        found.mean["MRR@10"],
        found.mean["R@100"],
        ranking.sparsity.flops,
        ranking.sparsity.query_active,
        ranking.sparsity.document_active,
        found.queries,
        len(ranking.document_ids),
        {query: values["nDCG@10"] for query, values in found.per_query.items()},
    )


def capped(collection: Collection, *, queries: int | None, corpus: int | None) -> Collection:
    """A part of a collection, small enough to be measured often; the same one each time.

    Args:
        collection: The whole.
        queries: Judged queries to draw; None for all.
        corpus: Documents to take: all that are judged for these queries, then others at random; None for all.
    """
    if queries is None and corpus is None:
        return collection
    rng = np.random.default_rng(0)
    judged = judged_queries(collection.qrels)
    if queries is not None and queries < len(judged):
        chosen = sorted(rng.choice(len(judged), queries, replace=False).tolist())
        judged = [judged[number] for number in chosen]
    qrels = {query: collection.qrels[query] for query in judged}
    texts = {query: collection.queries[query] for query in judged}
    if corpus is None:
        return Collection(texts, qrels, collection.corpus, collection.split, collection.name)
    needed = {document for judgements in qrels.values() for document in judgements}
    documents = _drawn(collection.documents(), needed, max(0, corpus - len(needed)), rng)
    return Collection(texts, qrels, tuple(documents), collection.split, collection.name)


def _drawn(
    documents: Iterable[Document], needed: set[str], others: int, rng: np.random.Generator
) -> list[Document]:
    """The needed documents and so many others, in the corpus's order (reservoir sampling)."""
    kept: list[tuple[int, Document]] = []
    reservoir: list[tuple[int, Document]] = []
    seen = 0
    for position, document in enumerate(documents):
        if document.id in needed:
            kept.append((position, document))
            continue
        seen += 1
        if len(reservoir) < others:
            reservoir.append((position, document))
        elif others and (place := int(rng.integers(seen))) < others:
            reservoir[place] = (position, document)
    return [document for _, document in sorted(kept + reservoir, key=lambda item: item[0])]


class RetrievalEvaluator(BaseEvaluator):
    """Measures the encoder on a collection while it is trained.

    Args:
        collection: What is measured.
        rule: By which the best checkpoint is chosen.
        on_figures: Told the step and the figures.
    """

    def __init__(
        self, collection: Collection, rule: Rule, on_figures: Callable[[int, Figures], object]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.primary_metric = CHOICE
        self._collection = collection
        self._rule = rule
        self._on_figures = on_figures

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """The figures as the trainer logs them."""
        figures = measure(model, self._collection)
        self._on_figures(steps, figures)
        return {**figures.logs(), CHOICE: self._rule.value(steps, figures.ndcg, figures.flops)}
