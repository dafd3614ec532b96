"""Are the weights in the index the encoder's? Asked directly, document by document.

Queries only ever see the weights of their own tokens. So each sampled document is also searched for by all
of its own tokens, each with weight 1: the score is the sum of its stored weights, which must lie between the
sums of the smallest and largest values that rounding allows. A sum does not show tokens that a document has
besides; what was sent to the index, which it keeps in ``_source``, shows them, and names what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.archive.agreement import agree
from oskit.cluster.index.sparse_fields import vectors_of
from oskit.cluster.search.answers import complete_search
from oskit.cluster.search.clauses import neural_sparse
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

_NONE: Mapping[str, float] = {}
_BATCH = 100
_FLOAT32_NOISE = 1e-5

_EVERYTHING = {"k": MAX_HITS, "top_n": MAX_TOKENS, "heap_factor": 1e6}
"""With this ``heap_factor`` every cluster of documents is looked into."""


def check_vectors(
    client: OpenSearch,
    facts: IndexFacts,
    due: Mapping[str, csr_matrix],
    vocabulary: Vocabulary,
    tolerance: float,
    *,
    quantized: bool = False,
) -> StoredVectors:
    """Compare the stored weights of documents with the encoder's.

    ``due`` has of each document the vector, or those of its chunks, ``[vectors, vocabulary]``. ``tolerance``
    is how far weights may be apart before they are rounded. Vectors of a ``quantized`` archive are compared
    as a whole, where the index keeps what it was sent.
    """
    by_token, pruned = facts.key == "token", facts.info.prune is not None
    checked, unseen, wrong = 0, 0, list[dict[str, Any]]()
    sent = _sent_vectors(client, facts, list(due))
    for number, (document, weights) in enumerate(due.items()):
        parts = list[dict[str, float]]()
        for columns, values in _rows(weights):
            keys = [vocabulary.keys[column] if by_token else str(column) for column in columns]
            parts.append(dict(zip(keys, map(float, values), strict=True)))
        has = sent.get(document, [])
        if not any(parts) and not any(has):
            continue
        # Asked for are the tokens of one of its vectors: another one with these tokens may be the best.
        chosen = parts[number % len(parts)] or next(filter(None, parts), {})
        asked = list(chosen)[:MAX_TOKENS]
        found = _stored_sum(client, facts, document, dict.fromkeys(asked, 1.0)) if asked else 0.0
        if found is None:
            continue  # a document that is not there is reported as missing
        checked += 1
        unseen += not any(has)
        low, high = _sum_bounds(facts.storage, parts, asked, tolerance)
        difference: dict[str, dict[str, float]] = {}
        for wanted, there in zip_longest(parts, has if any(has) else parts, fillvalue=_NONE):
            if not (quantized and agree(wanted, there, quantized=True, pruned=pruned)):
                difference |= _difference(wanted, there, 0.0 if quantized else tolerance, pruned=pruned)
            if difference:
                break
        if difference or not low <= found <= high:
            wrong.append({"document_id": document, "found": found, "low": low, "high": high, **difference})
    return StoredVectors(checked, wrong, unseen)


def _sent_vectors(
    client: OpenSearch, facts: IndexFacts, document_ids: Sequence[str]
) -> dict[str, list[dict[str, float]]]:
    """The vectors that stand in the documents' ``_source``; empty where one was left out of it."""
    name, nested, size = facts.info.embedding_field, facts.info.nested, min(_BATCH, facts.max_hits)
    found: dict[str, list[dict[str, float]]] = {}
    for start in range(0, len(document_ids), size):
        only = {"ids": {"values": document_ids[start : start + size]}}
        shown = [name, *([f"{nested}.start"] if nested else [])]  # or chunks without a vector would be gone
        body = {"size": size, "_source": shown, "query": only}
        answer = complete_search(client, facts.name, body, search_pipeline="_none")
        for hit in answer["hits"]["hits"]:
            source = hit.get("_source") or {}
            if nested is None:
                vectors = vectors_of(source, name)
                found[hit["_id"]] = [{key: weight for vector in vectors for key, weight in vector.items()}]
            else:
                chunks = source.get(nested) or []
                found[hit["_id"]] = [
                    next(iter(vectors_of(chunk, facts.info.embedding_name)), {}) for chunk in chunks
                ]
    return found


def _difference(
    due: Mapping[str, float], has: Mapping[str, float], tolerance: float, *, pruned: bool
) -> dict[str, dict[str, float]]:
    """Tokens that a document lacks, has besides, or with another weight: ``lacks``, ``extra``, ``other``.

    Where vectors are pruned, two runtimes may differ about the lightest token that stays.
    """
    least = {id(side): min(side.values(), default=0.0) + tolerance if pruned else 0.0 for side in (due, has)}

    def only_in(side: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
        floor = max(tolerance, least[id(side)])
        return {key: weight for key, weight in side.items() if key not in other and weight > floor}

    def apart(a: float, b: float) -> bool:
        return abs(a - b) > tolerance + _FLOAT32_NOISE * max(a, b)

    found = {
        "lacks": only_in(due, has),
        "extra": only_in(has, due),
        "other": {key: has[key] for key in due if key in has and apart(due[key], has[key])},
    }
    return {what: tokens for what, tokens in found.items() if tokens}


def _rows(weights: csr_matrix) -> Iterator[tuple[Any, Any]]:
    """Columns and values of each vector, heaviest first."""
    for start, end in pairwise(weights.indptr):
        columns, values = weights.indices[start:end], weights.data[start:end]
        heaviest = np.argsort(-values, kind="stable")
        yield columns[heaviest], values[heaviest].astype(np.float32)


def _sum_bounds(
    storage: Storage, vectors: Sequence[Mapping[str, float]], asked: Sequence[str], tolerance: float
) -> tuple[float, float]:
    """Smallest and largest sum of stored weights, times the query weight 1 as the index rounds that.

    Of several vectors that of the best; only those that have one of the tokens count.
    """
    query_low, query_high = storage.query_bounds(np.ones(1, dtype=np.float32), 0.0)
    lowest = highest = 0.0
    for vector in vectors:
        values = np.array([vector[key] for key in asked if key in vector], dtype=np.float32)
        low, high = storage.document_bounds(values, tolerance)
        lacking = tolerance * (len(asked) - len(values)) if len(vectors) > 1 else 0.0
        lowest = max(lowest, float(low.sum(dtype=np.float64)))
        highest = max(highest, float(high.sum(dtype=np.float64)) + lacking)
    return (
        lowest * float(query_low[0]) * (1 - _FLOAT32_NOISE),
        highest * float(query_high[0]) * (1 + _FLOAT32_NOISE),
    )


def _stored_sum(
    client: OpenSearch, facts: IndexFacts, document: str, tokens: dict[str, float]
) -> float | None:
    """The score of ``document`` for ``tokens``: 0 if none matches, None if the document cannot be found."""
    only = {"ids": {"values": [document]}}
    # Seismic would score a filtered document exactly, but neural-search does not rewrite such a filter and
    # then refuses `ids`. So it is told to skip nothing instead.
    query = neural_sparse(facts.info, {"query_tokens": tokens}, _EVERYTHING)
    body = {"size": 1, "_source": False, "query": {"bool": {"must": [query], "filter": [only]}}}
    # The index's own search pipeline might prune the tokens; this looks at what is stored.
    answer = complete_search(client, facts.name, body, search_pipeline="_none")
    if hits := answer["hits"]["hits"]:
        return float(hits[0]["_score"])
    if facts.storage.approximate:
        return None
    there = complete_search(client, facts.name, {"size": 0, "query": only}, search_pipeline="_none")
    return 0.0 if there["hits"]["total"]["value"] else None
