"""Queries as OpenSearch takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oskit.cluster.index.mapping import IndexInfo

Clause = dict[str, Any]
"""A query clause of the search body."""

TWO_PHASE = {"prune_ratio": 0.4, "expansion_rate": 5.0, "max_window_size": 10_000}
"""OpenSearch's defaults for the two phases: heavy tokens first, the others only to rescore."""

ABOVE_NOTHING = 1e-30
"""A filter within an approximate search lets in what shares no token with the query, with score 0."""


def neural_sparse(
    info: IndexInfo,
    query: Mapping[str, Any],
    method: Mapping[str, Any] | None = None,
    inner_hits: Mapping[str, Any] | None = None,
) -> Clause:
    """A ``neural_sparse`` clause on the field with the weights; what is None is left out.

    Args:
        query: ``query_tokens``, or ``query_text`` with ``model_id`` or ``analyzer``.
        method: ``k``, ``top_n``, ``heap_factor``, ``filter``; told to ``sparse_vector`` only.
        inner_hits: What to tell of the nested objects that matched, where a document has several vectors.
    """
    body = {name: value for name, value in query.items() if value is not None}
    if info.kind == "sparse_vector" and method is not None:
        body["method_parameters"] = {name: value for name, value in method.items() if value is not None}
    clause: Clause = {"neural_sparse": {info.embedding_field: body}}
    if info.nested:
        nested = {"path": info.nested, "score_mode": "max", "query": clause}
        clause = {"nested": nested | ({"inner_hits": dict(inner_hits)} if inner_hits else {})}
    return clause


def bm25(info: IndexInfo, text: str) -> Clause:
    """A BM25 clause on the passages, or on the fields that the index names in their place, added up."""
    if info.text_fields:
        fields = info.text_fields.split(",")
        return {"multi_match": {"query": text, "fields": fields, "type": "most_fields"}}
    return {"match": {str(info.passage_field): {"query": text}}}


def above_nothing(clause: Clause) -> Clause:
    """The clause without hits of score 0, where ``min_score`` of the body counts for something else."""
    return {"function_score": {"query": clause, "min_score": ABOVE_NOTHING}}


def filtered(clause: Clause, only: Clause | None) -> Clause:
    """The clause for what an alias shows: what it hides stays hidden."""
    if only is None:
        return clause
    return {"bool": {"should": [clause], "minimum_should_match": 1, "filter": [only]}}


def two_phase_pipeline(parameters: Mapping[str, float] = TWO_PHASE) -> dict[str, Any]:
    """A search pipeline, to be sent within a request, that searches in two phases."""
    processor = {"two_phase_parameter": dict(parameters)}
    return {"request_processors": [{"neural_sparse_two_phase_processor": processor}]}
