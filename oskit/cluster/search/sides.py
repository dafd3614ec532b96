"""The sides of a hybrid search: what each is asked, what each finds by itself, and what it adds to a hit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.cluster.search.answers import complete_searches
from oskit.cluster.search.clauses import Clause, above_nothing, bm25, filtered
from oskit.cluster.search.fusion import Candidates, Found
from oskit.cluster.search.result import Share
from oskit.errors import ClusterError

if TYPE_CHECKING:
    from oskit.cluster.search.hybrid import Hybrid, Side
    from oskit.cluster.search.request import Request

NOTHING: Clause = {"match_none": {}}
"""Of a side that has nothing to ask, as the query has no token: the others keep their weights."""


def side_clauses(request: Request, hybrid: Hybrid, *, shows: bool = True) -> list[Clause]:
    """The clause of each side, filters included.

    Args:
        shows: Have the best passage of each hit told, where a document has several.

    Raises:
        UsageError: A side has no field to search.
    """
    fields = hybrid.fields(request.place.info, request.place.shape(request.client))
    return [_clause(request, hybrid, *pair, shows=shows) for pair in zip(hybrid.sides, fields, strict=True)]


def _clause(request: Request, hybrid: Hybrid, side: Side, field: str, *, shows: bool) -> Clause:
    only = request.scope.clause
    if side.kind == "bm25":
        text = str(request.query)
        own = bm25(request.place.info, text)  # maybe several fields
        return filtered({"match": {field: {"query": text}}} if side.field else own, only)
    if side.kind == "dense":
        ((kind, query),) = (request.dense or {}).items()
        filters = {} if only is None else {"filter": only}
        return {kind: {field: {**query, "k": hybrid.depth, **filters}}}
    clause = request.sparse_clause(shows=shows)
    if clause is None:
        return NOTHING
    if only is not None and request.place.info.kind == "sparse_vector":
        clause = above_nothing(clause)
    return filtered(clause, only)


def shares(hybrid: Hybrid, candidates: Candidates) -> dict[str, dict[str, Share]]:
    """What each side says of every document that one of them found."""
    normalized = candidates.normalized(hybrid.fusion)
    parts = normalized * np.array(hybrid.weights)
    sums = parts.sum(axis=1)
    told: dict[str, dict[str, Share]] = {}
    for place, document in enumerate(candidates.ids):
        told[document] = {}
        for number, side in enumerate(hybrid.sides):
            rank, there = int(candidates.ranks[place, number]) + 1, candidates.ranks[place, number] >= 0
            share = float(parts[place, number] / sums[place]) if sums[place] > 0 else 0.0
            told[document][side.name] = Share(
                rank if there else None,
                float(candidates.scores[place, number]) if there else None,
                float(normalized[place, number]),
                share if hybrid.fusion.mean == "arithmetic" else None,
            )
    return told


def side_lists(request: Request, hybrid: Hybrid) -> Candidates:
    """What the hybrid query fuses: each side's best hits on each shard, asked for by themselves.

    Raises:
        SearchError: The cluster refuses.
    """
    target = request.place.target
    bodies = [
        {
            "query": clause,
            "size": hybrid.depth,
            "_source": False,
            "sort": ["_score", "_doc"],  # as without, and tells Lucene's number
            "track_total_hits": False,
            "search_pipeline": "_none",
        }
        for clause in side_clauses(request, hybrid, shows=False)
    ]
    shards = request.place.shape(request.client).shards
    found = []
    wheres = [(index, f"_shards:{shard}") for index, count in shards.items() for shard in range(count)]
    # An alias with a routing sees some shards; which, only the cluster knows.
    is_one = target.routing is not None or len(wheres) == 1
    for index, only in [(target.index, None)] if is_one else wheres:
        answers = complete_searches(request.client, index, bodies, routing=target.routing, preference=only)
        if failed := next((answer for answer in answers if isinstance(answer, ClusterError)), None):
            raise failed
        found.append([_hits(answer) for answer in answers if isinstance(answer, dict)])
    return Candidates.of(found)


def _hits(answer: dict[str, Any]) -> list[Found]:
    return [Found(hit["_id"], float(hit["_score"]), hit["sort"][-1]) for hit in answer["hits"]["hits"]]
