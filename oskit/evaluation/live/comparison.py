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
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oskit.evaluation.live.rounding import EXACT, Storage
from oskit.evaluation.offline.exact_scores import (
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
    from oskit.data.chunks import Chunking

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
        cluster_score: None if the cluster did not return the document.
        exact_score: None for an unknown document; so are ``low`` and ``high``, what rounding explains.
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
        disagreements: The first :data:`MAX_LISTED` of each kind, of which there are ``counts``.
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
    chunking: Chunking | None = None,
) -> Comparison:
    """Compare a cluster's rankings with exact scores, streaming over the corpus.

    Args:
        cluster: Query id -> document id -> score, best first, at most ``k`` deep.
        encoder: The encoder that the index was made with.
        k: How many hits the cluster was asked for.
        document_tolerance: How far a document's weight on the cluster may be from the encoder's before it
            is rounded: two runtimes that compute one encoder differ by this much at most.
        query_tolerance: The same for queries; 0 where the cluster was sent the weights.
        chunking: How the index's documents are cut; each scores as its best chunk.
    """
    queries = encoder.query_matrix(list(collection.queries.values())).tocsr()
    tolerances = document_tolerance, query_tolerance
    hits = _Hits(cluster, list(collection.queries), queries, k, storage, tolerances)
    ranking = rank_exactly(
        encoder,
        collection,
        k=k,
        queries=queries,
        chunking=chunking,
        on_block=hits.take_block,
    )
    hits.close()
    return Comparison(
        exact=ranking.run,
        counts={kind: hits.counts.get(kind, 0) for kind in ("score", "missing", "unknown", "rank")},
        disagreements=hits.listed(ranking.run),
        hits=int(np.isfinite(hits.scores).sum()),
        relative_differences=hits.relative_differences(),
        sparsity=ranking.sparsity,
        document_ids=ranking.document_ids,
    )


class _Hits:
    """The cluster's hits as arrays ``[queries, k]``, filled with their intervals block by block."""

    def __init__(
        self,
        cluster: Mapping[str, Mapping[str, float]],
        query_ids: list[str],
        queries: csr_matrix,
        k: int,
        storage: Storage,
        tolerances: tuple[float, float],
    ) -> None:
        shape = (len(query_ids), k)
        self.query_ids = query_ids
        self.storage = storage
        self.tolerance, self.query_tolerance = tolerances
        low, high = storage.query_bounds(queries.data.astype(np.float32), self.query_tolerance)
        self.queries_low, self.queries_high = _with_data(queries, low), _with_data(queries, high)
        self.query_mass = np.asarray(self.queries_high.sum(axis=1), dtype=np.float64).ravel()
        self.found = [list(cluster.get(query, {}))[:k] for query in query_ids]
        self.scores, self.exact, self.low, self.high = (np.full(shape, np.nan) for _ in range(4))
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

    def take_block(self, block: Block) -> Watch:
        """Bound a block; what is returned keeps the bounds of its hits and notices what should be a hit."""
        low, high = self.storage.document_bounds(block.weights.data.astype(np.float32), self.tolerance)
        documents_low, documents_high = _with_data(block.weights, low), _with_data(block.weights, high)
        # Tokens that weigh nothing here may weigh up to the tolerance there, on either side.
        mass = np.asarray(documents_high.sum(axis=1), dtype=np.float64).ravel()

        def take(rows: slice, exact: Scores) -> None:
            lowest = score_block(self.queries_low[rows], documents_low)
            highest = score_block(self.queries_high[rows], documents_high)
            highest += self.tolerance * self.query_mass[rows, None] + self.query_tolerance * mass[None, :]
            lowest, highest = block.best(lowest), block.best(highest)
            lowest *= 1 - _FLOAT32_NOISE
            highest *= 1 + _FLOAT32_NOISE
            self._record(block, rows, exact, lowest, highest)

        return take

    def _record(self, block: Block, rows: slice, exact: Scores, low: Scores, high: Scores) -> None:
        """Store the bounds of this block's hits, and note what is absent although it should be a hit."""
        absent = np.ones(exact.shape, dtype=bool)
        for column, document in enumerate(block.ids):
            for row, rank in self.places.get(document, ()):
                if rows.start <= row < rows.stop:
                    cell = (row - rows.start, column)
                    absent[cell] = False
                    self.exact[row, rank] = exact[cell]
                    self.low[row, rank] = low[cell]
                    self.high[row, rank] = high[cell]
        missing = absent & (low > self.cutoff[rows, None] * (1 + _FLOAT32_NOISE)) & (low > 0)
        for local, column in np.argwhere(missing).tolist():
            bounds = (exact[local, column], low[local, column], high[local, column])
            self._note("missing", rows.start + local, block.ids[column], None, bounds)

    def close(self) -> None:
        """Judge the hits, once the whole corpus has been seen."""
        wrong = (self.scores < self.low) | (self.scores > self.high)
        unknown = np.isfinite(self.scores) & np.isnan(self.low)
        # The largest lower bound among all hits that come after: above our upper bound, they are swapped.
        low = np.where(np.isnan(self.low), -np.inf, self.low)
        after = np.maximum.accumulate(low[:, ::-1], axis=1)[:, ::-1]
        swapped = after[:, 1:] > self.high[:, :-1]
        found: dict[DisagreementKind, Any] = {"score": wrong, "unknown": unknown, "rank": swapped}
        for kind, cells in found.items():
            for row, rank in np.argwhere(cells).tolist():
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
        wrong = {item.query_id for item in self._listed}
        ranks = {query: dict(zip(exact[query], count(1), strict=False)) for query in wrong}
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
