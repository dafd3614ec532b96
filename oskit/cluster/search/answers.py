"""Answers to searches, complete or none: what a shard does not say would be missing without a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opensearchpy.exceptions import TransportError

from oskit.cluster.client.failures import cluster_errors
from oskit.errors import ClusterError, SearchError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

_WHOLE = {"allow_partial_search_results": "false"}


def search_params(**given: str | None) -> dict[str, str]:
    """Parameters of a search that is answered whole or not at all; what is None is left out."""
    return {name: value for name, value in given.items() if value} | _WHOLE


def complete_search(
    client: OpenSearch,
    index: str,
    body: dict[str, Any],
    *,
    search_pipeline: str | None = None,
    routing: str | None = None,
    preference: str | None = None,
) -> dict[str, Any]:
    """The answer of all shards; where one is away, as while a node restarts, the client asks again.

    Args:
        search_pipeline: Its name, or ``_none``, in place of the index's default.
        routing: Only the shards of these routing values.
        preference: Such as ``_shards:0``.

    Raises:
        SearchError: The cluster refuses, or a shard fails or is not done in time.
    """
    params = search_params(search_pipeline=search_pipeline, routing=routing, preference=preference)
    with cluster_errors(f"search the index {index!r}", SearchError):
        answer: dict[str, Any] = client.search(index=index, body=body, params=params)
    return _complete(index, answer)


def complete_searches(
    client: OpenSearch,
    index: str,
    bodies: Sequence[dict[str, Any]],
    *,
    routing: str | None = None,
    preference: str | None = None,
) -> list[dict[str, Any] | ClusterError]:
    """The answers to many searches by one request; where one fails, its error stands in its place.

    Args:
        routing: As of :func:`complete_search`, and so is ``preference``.

    Raises:
        SearchError: The cluster refuses the request as a whole.
    """
    given = {"routing": routing, "preference": preference}
    header = {"index": index, **_WHOLE} | {name: value for name, value in given.items() if value}
    lines = [line for body in bodies for line in (header, body)]
    with cluster_errors(f"search the index {index!r}", SearchError):
        answers = client.msearch(body=lines)["responses"] if lines else []
    return [_answer_or_error(index, answer) for answer in answers]


def _answer_or_error(index: str, answer: dict[str, Any]) -> dict[str, Any] | ClusterError:
    try:
        with cluster_errors(f"search the index {index!r}", SearchError):
            if "error" in answer:  # told as the client would for a request of its own
                raise TransportError(answer.get("status", 500), "", answer)
        return _complete(index, answer)
    except ClusterError as error:
        return error


def _complete(index: str, answer: dict[str, Any]) -> dict[str, Any]:
    failed = answer["_shards"]["failed"]
    if answer.get("timed_out") or failed:
        why = (
            f"{failed} shards failed" if failed else "the cluster stopped it (search.default_search_timeout)"
        )
        raise SearchError(f"the answer of {index!r} is incomplete: {why}")
    return answer
