"""Exact scores in process: every query against every document, in bounded memory.

The score of a learned sparse encoder is the inner product of the query's and the document's weights; of a
document in chunks it is that of its best chunk ("MaxP", Dai and Callan, SIGIR 2019). Documents are encoded
and scored in blocks, so memory holds the queries, one block and the best ``k`` of each query, however large
the corpus is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from oskit.archive.truncation import Truncation, truncation_from_now
from oskit.evaluation.offline.metrics import Qrels, Run
from oskit.evaluation.offline.sparsity import ActivationCounter, Sparsity, sparsity

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.text_encoder import TextEncoder
    from oskit.data.chunks import Chunking

Scores = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

BLOCK_DOCUMENTS = 512
"""Documents, or chunks, that are encoded and scored together, or several times as many for a GPU."""

_MAX_CELLS = 2_000_000
"""Scores held at once (queries times documents of a block): 16 MB in float64."""


class TextCollection(Protocol):
    """What is needed of a collection; ``oskit.data.collection.Collection`` is one.

    Its documents have an ``id``, and the ``passage`` that is encoded; to be cut, its ``title`` and ``text``.
    """

    @property
    def queries(self) -> dict[str, str]: ...

    def documents(self) -> Iterable[Any]: ...


def themselves(run: Run, collection: TextCollection, qrels: Qrels) -> frozenset[str]:
    """Queries of a run that found themselves: a document of the same id and text that is no judged answer.

    In ArguAna, queries are arguments of the corpus. Reads the corpus where the run has such an id.
    """
    suspected = {
        query: _words(collection.queries[query])
        for query, found in run.items()
        if query in found and qrels.get(query, {}).get(query, 0) <= 0
    }
    return frozenset(
        document.id
        for document in (collection.documents() if suspected else ())
        if suspected.get(document.id) in (_words(document.passage), _words(getattr(document, "text", "")))
    )


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Block:
    """Consecutive documents of a corpus.

    Attributes:
        start: Position of the first in the corpus.
        ids: Of the documents.
        weights: Vectors ``[vectors, vocabulary]``: one of each document, or one of each of its chunks.
        firsts: The first vector of each document; None where each has one.
    """

    start: int
    ids: list[str]
    weights: csr_matrix
    firsts: Positions | None = None

    def best(self, scores: Scores) -> Scores:
        """Each document's largest: ``[queries, vectors]`` to ``[queries, documents]``."""
        if self.firsts is None:
            return scores
        found: Scores = np.maximum.reduceat(scores, self.firsts, axis=1)
        return found


def query_chunks(queries: int, block_documents: int) -> Iterator[slice]:
    """Slices of the queries, so that no block of scores is larger than memory allows."""
    step = max(1, _MAX_CELLS // max(1, block_documents))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def score_block(queries: csr_matrix, documents: csr_matrix) -> Scores:
    """Inner products, float64, ``[queries, documents]``."""
    product = queries.astype(np.float64) @ documents.astype(np.float64).T
    return np.asarray(product.toarray(), dtype=np.float64)


class TopK:
    """The best ``k`` documents of each query, while blocks of scores come in.

    Equal scores are ordered by the position in the corpus, which is also what Lucene does for documents
    indexed in that order.

    Args:
        above: A score that is not above this is no match; 0 fits sparse vectors.
    """

    def __init__(self, queries: int, k: int, *, above: float = 0.0) -> None:
        self._above = above
        self.scores: Scores = np.full((queries, k), -np.inf)
        self.positions: Positions = np.full((queries, k), -1, dtype=np.int64)

    def update(self, rows: slice, scores: Scores, start: int) -> None:
        """Take in the scores ``[queries in rows, block]`` of the documents from position ``start`` on."""
        k = self.scores.shape[1]
        positions = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
        # What is there comes first and is sorted, and a stable sort keeps that order among equals.
        all_scores = np.concatenate(
            [self.scores[rows], np.where(scores > self._above, scores, -np.inf)], axis=1
        )
        all_positions = np.concatenate([self.positions[rows], positions], axis=1)
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
        self.scores[rows] = np.take_along_axis(all_scores, order, axis=1)
        self.positions[rows] = np.take_along_axis(all_positions, order, axis=1)

    def run(self, query_ids: Sequence[str], document_ids: Sequence[str]) -> Run:
        """The rankings, best first. ``document_ids`` names the documents by position."""
        found: Run = {}
        for query, scores, positions in zip(query_ids, self.scores, self.positions, strict=True):
            matches = np.isfinite(scores)
            found[query] = {
                document_ids[position]: float(score)
                for position, score in zip(positions[matches], scores[matches], strict=True)
            }
        return found


@dataclass(frozen=True)
class ExactRanking:
    """The corpus ranked for every query, best first.

    Attributes:
        document_ids: The corpus, in its order.
        sparsity: Of the queries and the corpus; query terms that no document has do not count for BM25. What
            a document costs are all of its chunks.
        truncation: What of the corpus was too long for the encoder; None where it does not count.
        chunks: Chunks of all documents; None where they were not cut.
    """

    run: Run
    document_ids: list[str]
    sparsity: Sparsity
    truncation: Truncation | None = None
    chunks: int | None = None


Watch = Callable[[slice, Scores], object]
"""Told the exact scores ``[queries in the slice, documents of the block]``."""


def rank_exactly(
    encoder: TextEncoder,
    collection: TextCollection,
    *,
    k: int = 1000,
    queries: csr_matrix | None = None,
    chunking: Chunking | None = None,
    on_block: Callable[[Block], Watch] = lambda _: lambda *_: None,
) -> ExactRanking:
    """Rank the whole corpus for every query by exact scores, in one pass.

    Args:
        k: Depth of each ranking.
        queries: The queries' vectors, where they are known already, ``[queries, vocabulary]``.
        chunking: Cut documents so, and score each by its best chunk.
        on_block: Shown each block before it is scored; what it returns is told the block's scores.

    Raises:
        UsageError: A chunk may be longer than the encoder reads.
    """
    query_ids = list(collection.queries)
    if queries is None:
        queries = encoder.query_matrix(list(collection.queries.values())).tocsr()
    counted = truncation_from_now(encoder)
    top = TopK(len(query_ids), k)
    query_counter = ActivationCounter(encoder.vocabulary.size)
    query_counter.update(queries)
    document_counter = ActivationCounter(encoder.vocabulary.size)
    document_ids: list[str] = []
    chunks = 0
    for ids, parts in _text_blocks(collection, encoder, chunking):
        firsts = None if chunking is None else np.cumsum([0, *map(len, parts[:-1])])
        weights = encoder.document_matrix([text for texts in parts for text in texts]).tocsr()
        block = Block(len(document_ids), ids, weights, firsts)
        chunks += weights.shape[0]
        document_ids.extend(ids)
        document_counter.update(weights, len(ids))
        watch = on_block(block)
        for rows in query_chunks(len(query_ids), weights.shape[0]):
            scores = block.best(score_block(queries[rows], weights))
            top.update(rows, scores, block.start)
            watch(rows, scores)
    return ExactRanking(
        top.run(query_ids, document_ids),
        document_ids,
        sparsity(query_counter, document_counter),
        counted(),
        chunks if chunking is not None else None,
    )


def check_chunks(encoder: TextEncoder, chunking: Chunking) -> None:
    """Refuse chunks that the encoder would cut, if it tells how much it reads.

    Raises:
        UsageError: A chunk may be longer.
    """
    if (max_length := getattr(encoder, "max_length", None)) is not None:
        chunking.check_length(max_length)


def encoded_texts(
    documents: Iterable[Any], encoder: TextEncoder, chunking: Chunking | None
) -> Iterator[tuple[str, list[str]]]:
    """Of each document what has a vector: its passage, or its chunks; an empty text where it has none.

    Raises:
        UsageError: A chunk may be longer than the encoder reads.
    """
    if chunking is None:
        yield from ((document.id, [document.passage]) for document in documents)
        return
    check_chunks(encoder, chunking)
    tokenize = encoder.vocabulary.tokenizer().encode
    for document in documents:
        chunks = chunking.split(document.title, document.text, tokenize)
        yield document.id, [chunk.text for chunk in chunks] or [""]


def _text_blocks(
    collection: TextCollection, encoder: TextEncoder, chunking: Chunking | None
) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Ids of consecutive documents, and the texts of each that are encoded: at least one, if an empty one.

    There are about as many texts in a block as it may have documents, however long these are.
    """
    ids: list[str] = []
    parts: list[list[str]] = []
    size, most = 0, BLOCK_DOCUMENTS * getattr(encoder, "blocks_at_once", 1)
    for name, texts in encoded_texts(collection.documents(), encoder, chunking):
        if size + len(texts) > most and ids:
            yield ids, parts
            ids, parts, size = [], [], 0
        ids.append(name)
        parts.append(texts)
        size += len(texts)
    if ids:
        yield ids, parts
