"""Running queries on a cluster, one at a time, with the clock on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.errors import SearchError
from oskit.evaluation.offline.metrics import Run

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

Clause = dict[str, Any]
"""A query clause of the search body."""

WARM_UP_QUERIES = 5
"""Queries that are asked first and not timed: the first ones load the model, caches and connections."""


@dataclass
class ClusterRun:
    """What a cluster returned, and how long it took.

    Attributes:
        run: Query id -> document id -> score, in the order of the answer.
        took: Milliseconds that the cluster says it took, for each query that was asked.
        wall: Milliseconds until the client had the answer.
    """

    run: Run
    took: list[float] = field(repr=False)
    wall: list[float] = field(repr=False)


def retrieve(
    client: OpenSearch,
    index: str,
    clauses: Mapping[str, Clause | None],
    *,
    k: int,
    search_pipeline: dict[str, Any] | None = None,
) -> ClusterRun:
    """Ask every query and keep the best ``k`` hits.

    Args:
        clauses: For each query id its clause; None where a query has no tokens, which no cluster can be
            asked for and which finds nothing.
        search_pipeline: Use this pipeline, defined in the request, in place of the index's default.

    Raises:
        SearchError: The cluster refused a query.
    """
    extra: Clause = {"search_pipeline": search_pipeline} if search_pipeline else {}
    asked = [clause for clause in clauses.values() if clause is not None]
    found = ClusterRun({}, [], [])
    with cluster_errors(f"search the index {index!r}", SearchError):
        for clause in asked[:WARM_UP_QUERIES]:
            _search(client, index, clause, k, extra)
        for query, question in clauses.items():
            if question is None:
                found.run[query] = {}
                continue
            start = time.perf_counter()
            answer = _search(client, index, question, k, extra)
            found.wall.append((time.perf_counter() - start) * 1000)
            found.took.append(float(answer["took"]))
            found.run[query] = {hit["_id"]: float(hit["_score"]) for hit in answer["hits"]["hits"]}
    return found


def _search(client: OpenSearch, index: str, clause: Clause, k: int, extra: Clause) -> dict[str, Any]:
    body = {"query": clause, "size": k, "_source": False, "track_total_hits": False, **extra}
    answer: dict[str, Any] = client.search(index=index, body=body)
    return answer
