"""Quality against cost: what pruning the documents' weights saves, and what it loses."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oskit.archive.token_weights import DelegatingEncoder, Prune, prune_matrix
from oskit.errors import UsageError
from oskit.evaluation.offline.exact_scores import (
    Block,
    ExactRanking,
    TextCollection,
    TopK,
    Watch,
    rank_exactly,
    score_block,
)
from oskit.evaluation.offline.metrics import MAIN_MEASURE, Qrels, Run, measures_for_depth, quality
from oskit.evaluation.offline.sparsity import ActivationCounter, Sparsity, sparsity

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.text_encoder import TextEncoder
    from oskit.data.chunks import Chunking

DEFAULT_LEVELS = "0.05,0.1,0.2,0.3,0.5"


@dataclass(frozen=True)
class PrunePoint:
    """An encoder at one pruning level.

    Attributes:
        rule: ``TYPE:RATIO``; ``none`` for all weights.
        quality: Mean of each measure.
        sparsity: Of the queries and the pruned documents.
        quality_change: nDCG@10 relative to all weights, minus 1.
        postings_saved: Share of the postings that the rule drops.
    """

    rule: str
    quality: dict[str, float]
    sparsity: Sparsity
    quality_change: float
    postings_saved: float


class PrunedDocuments(DelegatingEncoder["TextEncoder"]):
    """Leaves queries as they are and keeps of each document what an index's rule, ``TYPE:RATIO``, keeps."""

    def __init__(self, encoder: TextEncoder, rule: str) -> None:
        super().__init__(encoder)
        self._rule = Prune.parse(rule)

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Pruned document vectors, shape ``[len(texts), vocabulary.size]``."""
        return prune_matrix(super().document_matrix(texts), self._rule)


def parse_levels(text: str) -> list[Prune]:
    """Read ``0.1,0.2`` (ratios of the largest weight) or ``top_k:100,max_ratio:0.1``.

    Raises:
        UsageError: It reads as neither.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("no pruning level is given", hint=f"For example {DEFAULT_LEVELS} or top_k:100.")
    return [Prune.parse(part if ":" in part else f"max_ratio:{part}") for part in parts]


def rank_pruned(
    encoder: TextEncoder,
    collection: TextCollection,
    rules: Sequence[Prune],
    *,
    k: int = 1000,
    chunking: Chunking | None = None,
) -> tuple[ExactRanking, dict[str, tuple[Run, Sparsity]]]:
    """Rank with all weights and by each rule, with one pass over the corpus, of whole documents or in chunks.

    Returns:
        The ranking with all weights; for each rule its run and what its vectors cost.
    """
    queries = encoder.query_matrix(list(collection.queries.values())).tocsr()
    levels = [_Level(rule, queries, k, encoder.vocabulary.size) for rule in rules]

    def on_block(block: Block) -> Watch:
        pruned = [level.take(block) for level in levels]
        return lambda rows, _: [update(rows) for update in pruned]

    ranking = rank_exactly(
        encoder,
        collection,
        k=k,
        queries=queries,
        chunking=chunking,
        on_block=on_block,
    )
    asked = ActivationCounter(encoder.vocabulary.size)
    asked.update(queries)
    query_ids = list(collection.queries)
    found = {
        str(level.rule): (level.top.run(query_ids, ranking.document_ids), sparsity(asked, level.counter))
        for level in levels
    }
    return ranking, found


class _Level:
    """One rule while blocks come in."""

    def __init__(self, rule: Prune, queries: csr_matrix, k: int, width: int) -> None:
        self.rule = rule
        self.queries = queries
        self.top = TopK(queries.shape[0], k)
        self.counter = ActivationCounter(width)

    def take(self, block: Block) -> Callable[[slice], None]:
        weights = prune_matrix(block.weights, self.rule)
        self.counter.update(weights, len(block.ids))

        def update(rows: slice) -> None:
            self.top.update(rows, block.best(score_block(self.queries[rows], weights)), block.start)

        return update


def prune_points(
    whole: ExactRanking,
    pruned: Mapping[str, tuple[Run, Sparsity]],
    qrels: Qrels,
    *,
    k: int,
    asked: Container[str] = (),
) -> list[PrunePoint]:
    """Measure what :func:`rank_pruned` found; all weights come first."""
    rankings = {"none": (whole.run, whole.sparsity), **pruned}
    measured = {
        rule: quality(run, qrels, measures_for_depth(k), asked=asked).mean
        for rule, (run, _) in rankings.items()
    }
    full, postings = measured["none"][MAIN_MEASURE], whole.sparsity.postings
    return [
        PrunePoint(
            rule=rule,
            quality=measured[rule],
            sparsity=cost,
            quality_change=measured[rule][MAIN_MEASURE] / full - 1 if full else 0.0,
            postings_saved=1 - cost.postings / postings if postings else 0.0,
        )
        for rule, (_, cost) in rankings.items()
    ]
