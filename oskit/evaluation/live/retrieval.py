"""Running queries on a cluster, one at a time, with the clock on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from oskit.cluster.models.predict import with_model
from oskit.cluster.search.answers import complete_search
from oskit.cluster.search.clauses import Clause
from oskit.evaluation.offline.metrics import Run

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.models.registry import ModelInfo

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
    model: ModelInfo | None = None,
    notify: Callable[[str], object] | None = None,
) -> ClusterRun:
    """Ask every query and keep the best ``k`` hits.

    Args:
        clauses: For each query id its clause; None where a query has no tokens, which no cluster can be
            asked for and which finds nothing.
        search_pipeline: Use this pipeline, defined in the request, in place of the index's default.
        model: What encodes the queries on the cluster; it is waited for, the waiting not timed.
        notify: Told, in one line, when that is so.

    Raises:
        SearchError: The cluster refused a query.
        ModelError: The model does not answer in time.
    """
    body: dict[str, Any] = {"size": k, "_source": False, "track_total_hits": False}
    body |= {"search_pipeline": search_pipeline} if search_pipeline else {}
    found = ClusterRun({}, [], [])

    def ask(clause: Clause) -> tuple[dict[str, Any], float]:
        start = time.perf_counter()
        answer = complete_search(client, index, {"query": clause, **body})
        return answer, (time.perf_counter() - start) * 1000

    asked = [clause for clause in clauses.values() if clause is not None]
    for clause in asked[:WARM_UP_QUERIES]:
        with_model(client, model, partial(ask, clause), notify=notify)
    for query, question in clauses.items():
        if question is None:
            found.run[query] = {}
            continue
        answer, wall = with_model(client, model, partial(ask, question), notify=notify)
        found.wall.append(wall)
        found.took.append(float(answer["took"]))
        found.run[query] = {hit["_id"]: float(hit["_score"]) for hit in answer["hits"]["hits"]}
    return found
