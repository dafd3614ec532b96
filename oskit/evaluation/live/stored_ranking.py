"""The exact ranking of what an index holds, from the weights that stand in its documents.

An index keeps 9 significant bits of a weight (:mod:`oskit.evaluation.live.rounding`), and these count here:
so an exact search of the index finds all of the ranking, and what a faster one misses is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.sparse_fields import vectors_of
from oskit.cluster.search.answers import complete_search
from oskit.errors import SearchError
from oskit.evaluation.live.rounding import EXACT, Array, Storage, quantize_to_byte, truncate_to_feature
from oskit.evaluation.offline.exact_scores import (
    BLOCK_DOCUMENTS,
    TopK,
    encoded_texts,
    query_chunks,
    score_block,
)
from oskit.evaluation.offline.metrics import Run

if TYPE_CHECKING:
    from opensearchpy import OpenSearch
    from scipy.sparse import csr_matrix

    from oskit.archive.text_encoder import TextEncoder
    from oskit.evaluation.live.index_facts import IndexFacts
    from oskit.evaluation.offline.exact_scores import TextCollection

Vector = Mapping[str, float]

_PAGE = 1000


def stored_vectors(client: OpenSearch, facts: IndexFacts) -> Iterator[tuple[str, Vector]]:
    """Every document of an index with its vector, empty where it has none in ``_source``.

    A document of several chunks comes once with each, one after the other.

    Read shard by shard, along the numbers that each write gets: nothing has to be kept open for that.

    Raises:
        SearchError: The cluster refuses.
    """
    with cluster_errors(f"read the index {facts.name!r}", SearchError):
        settings = client.indices.get_settings(index=facts.name)[facts.name]["settings"]["index"]
    for shard in range(int(settings["number_of_shards"])):
        body: dict[str, Any] = {
            "size": min(_PAGE, facts.max_hits),
            "_source": [facts.info.embedding_field],
            "sort": ["_seq_no"],
            "track_total_hits": False,
        }
        while hits := complete_search(
            client, facts.name, body, search_pipeline="_none", preference=f"_shards:{shard}"
        )["hits"]["hits"]:
            for hit in hits:
                vectors = vectors_of(hit.get("_source") or {}, facts.info.embedding_field)
                if facts.info.nested:
                    yield from ((hit["_id"], vector) for vector in vectors or [{}])
                else:
                    yield hit["_id"], {key: weight for one in vectors for key, weight in one.items()}
            body["search_after"] = hits[-1]["sort"]


def encoded_vectors(
    encoder: TextEncoder, collection: TextCollection, facts: IndexFacts
) -> Iterator[tuple[str, Vector]]:
    """Every document of a collection with the vector that the encoder makes of it, or each of several."""
    found = encoded_texts(collection.documents(), encoder, facts.chunking)
    stream = ((document, text) for document, texts in found for text in texts)
    while block := list(islice(stream, BLOCK_DOCUMENTS)):
        made = encoder.document_weights([text for _, text in block], key=facts.key)
        yield from ((document, vector) for (document, _), vector in zip(block, made, strict=True))


@dataclass(frozen=True)
class StoredRanking:
    """The best documents of each query by what an index keeps of their weights.

    Attributes:
        run: By 9 significant bits: exact.
        rounded: By the bytes of an approximate search, which could find no more than that; None without one.
        documents: How many there are.
        filled: How many of them have a vector.
    """

    run: Run
    rounded: Run | None
    documents: int
    filled: int


def rank_vectors(
    vectors: Iterable[tuple[str, Vector]], queries: Mapping[str, Vector], k: int, storage: Storage = EXACT
) -> StoredRanking:
    """The best ``k`` documents of each query; of several vectors of a document the best counts (MaxP)."""
    known = dict.fromkeys(key for tokens in queries.values() for key in tokens)
    columns = {key: number for number, key in enumerate(known)}
    asked = _matrix(list(queries.values()), columns)
    ways: list[tuple[TopK, csr_matrix, Callable[[Array], Array]]] = [
        (TopK(len(queries), k), asked, truncate_to_feature)
    ]
    if storage.bytes:
        sides = storage.ceiling_ingest, storage.ceiling_search
        documents, questions = (partial(quantize_to_byte, ceiling=ceiling) for ceiling in sides)
        ways.append((TopK(len(queries), k), _rounded(asked, questions), documents))
    ids, filled = list[str](), 0
    for block in _blocks(vectors):
        weights = _matrix([vector for _, found in block for vector in found], columns)
        firsts = np.cumsum([0, *(len(found) for _, found in block[:-1])])
        filled += sum(any(found) for _, found in block)
        for top, tokens, rounding in ways:
            kept = _rounded(weights, rounding)
            for rows in query_chunks(len(queries), weights.shape[0]):
                scores = np.maximum.reduceat(score_block(tokens[rows], kept), firsts, axis=1)
                top.update(rows, scores, len(ids))
        ids += [document for document, _ in block]
    runs = [top.run(list(queries), ids) for top, _, _ in ways]
    return StoredRanking(runs[0], runs[1] if storage.bytes else None, len(ids), filled)


def _blocks(vectors: Iterable[tuple[str, Vector]]) -> Iterator[list[tuple[str, list[Vector]]]]:
    """Documents with their vectors, some :data:`BLOCK_DOCUMENTS` vectors together."""
    block: list[tuple[str, list[Vector]]] = []
    size = 0
    for document, found in groupby(vectors, key=itemgetter(0)):
        block.append((document, [vector for _, vector in found]))
        size += len(block[-1][1])
        if size >= BLOCK_DOCUMENTS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _rounded(matrix: csr_matrix, rounding: Callable[[Array], Array]) -> csr_matrix:
    found = matrix.copy()
    found.data = rounding(matrix.data)
    return found


def _matrix(vectors: Sequence[Vector], columns: Mapping[str, int]) -> csr_matrix:
    """Of the tokens that queries have, ``[vectors, columns]``; the others add to no score."""
    from scipy.sparse import csr_matrix

    found = [
        [(columns[key], weight) for key, weight in vector.items() if key in columns] for vector in vectors
    ]
    starts = np.cumsum([0, *map(len, found)])
    indices = np.array([column for row in found for column, _ in row], dtype=np.int32)
    data = np.array([weight for row in found for _, weight in row], dtype=np.float32)
    return csr_matrix((data, indices, starts), shape=(len(vectors), len(columns)))
