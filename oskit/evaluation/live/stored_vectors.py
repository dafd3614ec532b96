"""Are the weights in the index the encoder's? Asked directly, document by document.

Queries only ever see the weights of their own tokens. So each sampled document is also searched for by all
of its own tokens, each with weight 1: the score is the sum of its stored weights, which must lie between the
sums of the smallest and largest values that rounding allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.cluster.client.failures import cluster_errors
from oskit.errors import SearchError
from oskit.evaluation.live.result import StoredVectors
from oskit.evaluation.live.rounding import Storage

if TYPE_CHECKING:
    from opensearchpy import OpenSearch
    from scipy.sparse import csr_matrix

    from oskit.archive.vocabulary import Vocabulary
    from oskit.evaluation.live.index_facts import IndexFacts

MAX_TOKENS = 1000
"""Tokens asked for at once; Lucene takes 1024 clauses. The heaviest count, and so bound the sum."""

MAX_HITS = 10_000
"""Hits of an approximate search among which a document is looked for."""

SKIP_NOTHING = 1e6
"""``heap_factor`` with which every cluster of documents is looked into."""


def check_vectors(
    client: OpenSearch,
    facts: IndexFacts,
    document_ids: Sequence[str],
    weights: csr_matrix,
    vocabulary: Vocabulary,
    tolerance: float,
) -> StoredVectors:
    """Compare the stored weights of documents with the encoder's, ``[documents, vocabulary]``.

    ``tolerance`` is how far they may be apart before they are rounded.
    """
    by_token, checked, wrong = facts.key == "token", 0, []
    for document, columns, values in _rows(document_ids, weights):
        if not len(columns):
            continue
        tokens = {vocabulary.keys[column] if by_token else str(column): 1.0 for column in columns}
        found = _stored_sum(client, facts, document, tokens)
        if found is None:
            continue  # a document that is not there is reported as missing
        checked += 1
        low, high = _sum_bounds(facts.storage, values, tolerance)
        if not low <= found <= high:
            wrong.append({"document_id": document, "found": found, "low": low, "high": high})
    return StoredVectors(checked, wrong)


def _rows(ids: Sequence[str], weights: csr_matrix) -> Iterator[tuple[str, Any, Any]]:
    for row, document in enumerate(ids):
        start, end = weights.indptr[row], weights.indptr[row + 1]
        columns, values = weights.indices[start:end], weights.data[start:end]
        heaviest = np.argsort(-values, kind="stable")[:MAX_TOKENS]
        yield document, columns[heaviest], values[heaviest].astype(np.float32)


def _sum_bounds(storage: Storage, values: Any, tolerance: float) -> tuple[float, float]:
    """Smallest and largest sum of stored weights, times the query weight 1 as the index rounds that."""
    low, high = storage.document_bounds(values, tolerance)
    query_low, query_high = storage.query_bounds(np.ones(1, dtype=np.float32), 0.0)
    noise = 1e-5
    return (
        float(low.sum(dtype=np.float64) * query_low[0]) * (1 - noise),
        float(high.sum(dtype=np.float64) * query_high[0]) * (1 + noise),
    )


def _stored_sum(
    client: OpenSearch, facts: IndexFacts, document: str, tokens: dict[str, float]
) -> float | None:
    """The score of ``document`` for ``tokens``: 0 if none matches, None if the document cannot be found."""
    only = {"ids": {"values": [document]}}
    # Seismic would score a filtered document exactly, but neural-search does not rewrite such a filter and
    # then refuses `ids`. So it is told to skip nothing instead.
    query = facts.clause({"query_tokens": tokens}, k=MAX_HITS, top_n=MAX_TOKENS, heap_factor=SKIP_NOTHING)
    body = {"size": 1, "_source": False, "query": {"bool": {"must": [query], "filter": [only]}}}
    with cluster_errors(f"search the index {facts.name!r}", SearchError):
        # The index's own search pipeline might prune the tokens; this looks at what is stored.
        answer = client.search(index=facts.name, body=body, params={"search_pipeline": "_none"})
        hits = answer["hits"]["hits"]
        if hits:
            return float(hits[0]["_score"])
        if facts.storage.approximate:
            return None
        count = client.count(index=facts.name, body={"query": only})
    return 0.0 if count["count"] else None
