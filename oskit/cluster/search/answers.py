"""Answers to searches, complete or none: what a shard does not say would be missing without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.errors import SearchError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch


def complete_search(
    client: OpenSearch,
    index: str,
    body: dict[str, Any],
    *,
    search_pipeline: str | None = None,
    routing: str | None = None,
) -> dict[str, Any]:
    """The answer of all shards; where one is away, as while a node restarts, the client asks again.

    Args:
        search_pipeline: Its name, or ``_none``, in place of the index's default.
        routing: Only the shards of these routing values.

    Raises:
        SearchError: The cluster refuses, or a shard fails or is not done in time.
    """
    params = {"allow_partial_search_results": "false"}
    params |= {"search_pipeline": search_pipeline} if search_pipeline else {}
    params |= {"routing": routing} if routing else {}
    with cluster_errors(f"search the index {index!r}", SearchError):
        answer: dict[str, Any] = client.search(index=index, body=body, params=params)
    failed = answer["_shards"]["failed"]
    if answer.get("timed_out") or failed:
        why = (
            f"{failed} shards failed" if failed else "the cluster stopped it (search.default_search_timeout)"
        )
        raise SearchError(f"the answer of {index!r} is incomplete: {why}")
    return answer
