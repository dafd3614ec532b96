"""What a run's encoders are measured on, and how."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.data.collection import Collection
from oskit.data.duplicates import digest_of
from oskit.evaluation.offline.exact_scores import rank_exactly, themselves
from oskit.evaluation.offline.metrics import MAIN_MEASURE, Qrels, judged_queries, quality
from oskit.training.internals import BaseEvaluator
from oskit.training.report.choice import CHOICE, Rule
from oskit.training.report.figures import Figures

if TYPE_CHECKING:
    from oskit.archive.text_encoder import TextEncoder

DEPTH = 100
"""Of the rankings: recall@100 is the deepest measure."""


@dataclass(frozen=True)
class Yardstick:
    """Queries, a corpus, and what is relevant."""

    collection: Collection  # with its own judgements; of held-out queries, their own answers
    # what else is relevant to held-out queries, as far as can be told (`pooling.py`); None for a collection
    # that people judged
    pooled: Qrels | None = None

    def digest(self) -> str:
        """The same for the same queries, judgements and documents."""
        judged = [self.collection.queries, self.collection.qrels, self.pooled]
        state = hashlib.blake2b(json.dumps(judged, sort_keys=True).encode(), digest_size=16)
        for document in self.collection.documents():
            state.update(digest_of(document.id, document.passage))
        return state.hexdigest()

    def measure(self, encoder: TextEncoder) -> Figures:
        """Rank the corpus exactly and measure.

        Raises:
            DataError: The collection cannot be read, or judges no query.
        """
        ranking = rank_exactly(encoder, self.collection, k=DEPTH)
        asked = themselves(ranking.run, self.collection, self.collection.qrels)
        found = quality(ranking.run, self.collection.qrels, asked=asked)
        figures = Figures(
            found.mean[MAIN_MEASURE],
            found.mean["MRR@10"],
            found.mean["R@100"],
            ranking.sparsity.flops,
            ranking.sparsity.query_active,
            ranking.sparsity.document_active,
            found.queries,
            len(ranking.document_ids),
            {query: values[MAIN_MEASURE] for query, values in found.per_query.items()},
        )
        if self.pooled is None:
            return figures
        pooled = quality(ranking.run, self.pooled, (MAIN_MEASURE,), asked=asked)
        of_query = {query: values[MAIN_MEASURE] for query, values in pooled.per_query.items()}
        return replace(figures, pooled=pooled.mean[MAIN_MEASURE], pooled_per_query=of_query)


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
    part = replace(collection, queries=texts, qrels=qrels)
    if corpus is None:
        return part
    needed = {document for judgements in qrels.values() for document in judgements}
    drawn = heapq.nsmallest(
        max(corpus, len(needed)),
        enumerate(collection.documents()),
        key=lambda item: -1.0 if item[1].id in needed else rng.random(),
    )
    in_order = sorted(drawn, key=lambda item: item[0])
    return replace(part, corpus=tuple(document for _, document in in_order))


@dataclass(eq=False)
class RetrievalEvaluator(BaseEvaluator):
    """Measures the encoder while it is trained."""

    yardstick: Yardstick  # by what
    rule: Rule  # by which the best checkpoint is chosen
    on_figures: Callable[[int, Figures], object]  # told the step and the figures

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.primary_metric = CHOICE

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """The figures as the trainer logs them."""
        figures = self.yardstick.measure(model)
        self.on_figures(steps, figures)
        return {**figures.logs(), CHOICE: self.rule.value(steps, figures.quality, figures.flops)}
