"""What a cluster returned, against what it should have returned.

Every hit gets an interval: the smallest and largest score that the encoder's weights allow, given how the
index rounds them (:mod:`oskit.evaluation.live.rounding`) and how well two computations of one encoder agree
(the tolerance). Outside of it, a score is wrong. A document that is absent although even its smallest score
beats the last hit is missing. Two hits are in the wrong order if their intervals do not touch. Everything
else is rounding, and is not reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oskit.evaluation.live.rounding import EXACT, Storage
from oskit.evaluation.offline.exact_scores import (
    BLOCK_DOCUMENTS,
    Block,
    Scores,
    TextCollection,
    Watch,
    rank_exactly,
    score_block,
)
from oskit.evaluation.offline.metrics import Run
from oskit.evaluation.offline.sparsity import Sparsity

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.text_encoder import TextEncoder

DisagreementKind = Literal["score", "missing", "unknown", "rank"]

MAX_LISTED = 200
"""Disagreements of one kind that are listed one by one; all are counted."""

_FLOAT32_NOISE = 1e-5
"""Relative: the cluster multiplies and reports in float32."""


@dataclass(frozen=True)
class Disagreement:
    """One hit, or missing hit, that rounding does not explain.

    Attributes:
        kind: ``score``: outside of its interval. ``missing``: belongs among the hits. ``unknown``: not a
            document of the corpus. ``rank``: stands before a document that must be ahead of it.
        query_id: The query.
        document_id: The document.
        cluster_score: The cluster's score; None if it did not return the document.
        exact_score: The exact score; None for an unknown document.
        low: The smallest score that rounding explains.
        high: The largest one.
        cluster_rank: From 1; None if not returned.
        exact_rank: From 1; None if beyond the depth of the comparison.
    """

    kind: DisagreementKind
    query_id: str
    document_id: str
    cluster_score: float | None
    exact_score: float | None
    low: float | None
    high: float | None
    cluster_rank: int | None
    exact_rank: int | None = None


@dataclass
class Comparison:
    """The result of :func:`compare`.

    Attributes:
        exact: The exact ranking of each query, ``k`` deep.
        counts: Number of disagreements of each kind.
        disagreements: The first :data:`MAX_LISTED` of each kind.
        hits: Number of hits compared.
        relative_differences: ``(cluster - exact) / exact`` of every hit.
        sparsity: Of the queries and the corpus.
        document_ids: The corpus, in its order.
    """

    exact: Run
    counts: dict[str, int]
    disagreements: list[Disagreement]
    hits: int
    relative_differences: Scores = field(repr=False)
    sparsity: Sparsity
    document_ids: list[str] = field(repr=False)


def compare(
    cluster: Mapping[str, Mapping[str, float]],
    encoder: TextEncoder,
    collection: TextCollection,
    *,
    k: int = 100,
    storage: Storage = EXACT,
    document_tolerance: float = 2e-4,
    query_tolerance: float = 0.0,
    batch_size: int = 32,
    block_documents: int = BLOCK_DOCUMENTS,
) -> Comparison:
    """Compare a cluster's rankings with exact scores, streaming over the corpus.

    Args:
        cluster: Query id -> document id -> score, best first, at most ``k`` deep.
        encoder: The encoder that the index was made with.
        collection: Queries and documents.
        k: How many hits the cluster was asked for.
        storage: How the index keeps weights.
        document_tolerance: How far a document's weight on the cluster may be from the encoder's before it
            is rounded: two runtimes that compute one encoder differ by this much at most.
        query_tolerance: The same for queries; 0 where the cluster was sent the weights.
        batch_size: Texts that the encoder computes at once.
        block_documents: Documents that are held at once.
    """
    queries = encoder.query_matrix(list(collection.queries.values()), batch_size=batch_size).tocsr()
    hits = _Hits(cluster, list(collection.queries), queries, k)
    hits.bound_queries(storage, query_tolerance)
    ranking = rank_exactly(
        encoder,
        collection,
        k=k,
        batch_size=batch_size,
        block_documents=block_documents,
        queries=queries,
        on_block=partial(hits.take_block, storage=storage, tolerance=document_tolerance),
    )
    exact = ranking.run
    hits.close(exact)
    return Comparison(
        exact=exact,
        counts={kind: hits.counts.get(kind, 0) for kind in ("score", "missing", "unknown", "rank")},
        disagreements=hits.listed(exact),
        hits=hits.compared,
        relative_differences=hits.relative_differences(),
        sparsity=ranking.sparsity,
        document_ids=ranking.document_ids,
    )


class _Hits:
    """The cluster's hits as arrays ``[queries, k]``, filled with their intervals block by block."""

    def __init__(
        self, cluster: Mapping[str, Mapping[str, float]], query_ids: list[str], queries: csr_matrix, k: int
    ) -> None:
        shape = (len(query_ids), k)
        self.query_ids = query_ids
        self.queries = queries
        self.found = [list(cluster.get(query, {}))[:k] for query in query_ids]
        self.scores: Scores = np.full(shape, np.nan)
        self.exact: Scores = np.full(shape, np.nan)
        self.low: Scores = np.full(shape, np.nan)
        self.high: Scores = np.full(shape, np.nan)
        self.places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row, (query, documents) in enumerate(zip(query_ids, self.found, strict=True)):
            for rank, document in enumerate(documents):
                self.scores[row, rank] = cluster[query][document]
                self.places[document].append((row, rank))
        # A document below this score may be absent: it would come after the last hit.
        self.cutoff: Scores = np.array(
            [self.scores[row, k - 1] if len(found) == k else 0.0 for row, found in enumerate(self.found)]
        )
        self.counts: dict[str, int] = defaultdict(int)
        self._listed: list[Disagreement] = []

    @property
    def compared(self) -> int:
        return int(np.isfinite(self.scores).sum())

    def bound_queries(self, storage: Storage, tolerance: float) -> None:
        """Prepare both ends of the queries' weights."""
        low, high = storage.query_bounds(self.queries.data.astype(np.float32), tolerance)
        self.queries_low = _with_data(self.queries, low)
        self.queries_high = _with_data(self.queries, high)
        self.query_tolerance = tolerance
        self.query_mass = np.asarray(self.queries_high.sum(axis=1), dtype=np.float64).ravel()

    def take_block(self, block: Block, *, storage: Storage, tolerance: float) -> Watch:
        """Bound a block; what is returned keeps the bounds of its hits and notices what should be a hit."""
        low, high = storage.document_bounds(block.weights.data.astype(np.float32), tolerance)
        documents_low = _with_data(block.weights, low)
        documents_high = _with_data(block.weights, high)
        # Tokens that weigh nothing here may weigh up to the tolerance there, on either side.
        mass = np.asarray(documents_high.sum(axis=1), dtype=np.float64).ravel()

        def take(rows: slice, exact: Scores) -> None:
            lowest = score_block(self.queries_low[rows], documents_low)
            highest = score_block(self.queries_high[rows], documents_high)
            highest += tolerance * self.query_mass[rows, None] + self.query_tolerance * mass[None, :]
            lowest *= 1 - _FLOAT32_NOISE
            highest *= 1 + _FLOAT32_NOISE
            absent = self._record(block, rows, exact, lowest, highest)
            self._note_missing(block, rows, exact, lowest, highest, absent)

        return take

    def _record(self, block: Block, rows: slice, exact: Scores, low: Scores, high: Scores) -> Any:
        """Store the bounds of this block's hits; returns which documents are absent, ``[rows, block]``."""
        absent = np.ones(exact.shape, dtype=bool)
        for column, document in enumerate(block.ids):
            for row, rank in self.places.get(document, ()):
                if rows.start <= row < rows.stop:
                    cell = (row - rows.start, column)
                    absent[cell] = False
                    self.exact[row, rank] = exact[cell]
                    self.low[row, rank] = low[cell]
                    self.high[row, rank] = high[cell]
        return absent

    def _note_missing(
        self, block: Block, rows: slice, exact: Scores, low: Scores, high: Scores, absent: Any
    ) -> None:
        cutoff = self.cutoff[rows, None]
        missing = absent & (low > cutoff * (1 + _FLOAT32_NOISE)) & (low > 0)
        for local, column in np.argwhere(missing):
            cell = (int(local), int(column))
            bounds = (exact[cell], low[cell], high[cell])
            self._note("missing", rows.start + cell[0], block.ids[cell[1]], None, bounds)

    def close(self, exact: Run) -> None:
        """Judge the hits, once the whole corpus has been seen."""
        with np.errstate(invalid="ignore"):
            wrong = (self.scores < self.low) | (self.scores > self.high)
        unknown = np.isfinite(self.scores) & np.isnan(self.low)
        for row, rank in np.argwhere(wrong):
            self._note_hit("score", int(row), int(rank))
        for row, rank in np.argwhere(unknown):
            self._note_hit("unknown", int(row), int(rank))
        # The largest lower bound among all hits that come after: above our upper bound, they are swapped.
        low = np.where(np.isnan(self.low), -np.inf, self.low)
        after = np.maximum.accumulate(low[:, ::-1], axis=1)[:, ::-1]
        with np.errstate(invalid="ignore"):
            swapped = after[:, 1:] > self.high[:, :-1]
        for row, rank in np.argwhere(swapped):
            self._note_hit("rank", int(row), int(rank))

    def _note_hit(self, kind: DisagreementKind, row: int, rank: int) -> None:
        bounds = (self.exact[row, rank], self.low[row, rank], self.high[row, rank])
        self._note(kind, row, self.found[row][rank], rank, bounds)

    def _note(
        self,
        kind: DisagreementKind,
        row: int,
        document: str,
        rank: int | None,
        bounds: tuple[float, float, float],
    ) -> None:
        """Count, and list the first ones; ``bounds`` are the exact, the smallest and the largest score."""
        self.counts[kind] += 1
        if self.counts[kind] > MAX_LISTED:
            return
        exact, low, high = map(_number, bounds)
        score, place = (None, None) if rank is None else (_number(self.scores[row, rank]), rank + 1)
        query = self.query_ids[row]
        self._listed.append(Disagreement(kind, query, document, score, exact, low, high, place))

    def listed(self, exact: Run) -> list[Disagreement]:
        """The disagreements, with the exact ranks that are known now."""
        ranks: dict[str, dict[str, int]] = {}
        for query in {item.query_id for item in self._listed}:
            ranks[query] = {document: rank for rank, document in enumerate(exact[query], start=1)}
        return [replace(item, exact_rank=ranks[item.query_id].get(item.document_id)) for item in self._listed]

    def relative_differences(self) -> Scores:
        """Of all hits with an exact score above 0."""
        known = np.isfinite(self.exact) & (self.exact > 0)
        return np.asarray((self.scores[known] - self.exact[known]) / self.exact[known])


def _with_data(matrix: csr_matrix, data: Any) -> csr_matrix:
    from scipy.sparse import csr_matrix as csr

    return csr((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
