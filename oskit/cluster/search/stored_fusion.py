"""A fusion kept on the cluster, as a search pipeline that applications name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oskit.cluster.client.calls import Call
from oskit.cluster.client.failures import cluster_errors
from oskit.errors import SearchError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.search.hybrid import Hybrid


def stored(hybrid: Hybrid, index: str) -> dict[str, Any]:
    """The pipeline, with the mark by which it is known as ours."""
    return {"description": f"{_mark(index)}: {hybrid.name}", **hybrid.fusion.pipeline(hybrid.weights)}


def put_fusion(client: OpenSearch, name: str, hybrid: Hybrid, index: str, *, replace: bool = False) -> Call:
    """Store the fusion of an index's hybrid searches; returns the call that was made.

    What others have added to one of ours, such as a filter, stays.

    Args:
        name: Of the pipeline.
        index: As its users name it.
        replace: Also in the place of one that somebody else made, or that is another index's.

    Raises:
        SearchError: There is one of that name that is not ours for this index, or the cluster refuses.
    """
    body = {**check_name(client, name, index, replace=replace), **stored(hybrid, index)}
    with cluster_errors(f"store the search pipeline {name!r}", SearchError):
        client.search_pipeline.put(id=name, body=body)
    check_name(client, name, index)  # another may have stored its own in the same moment
    return Call("PUT", f"_search/pipeline/{name}", body)


def check_name(client: OpenSearch, name: str, index: str, *, replace: bool = False) -> dict[str, Any]:
    """Refuse the name of somebody else's pipeline, before any work is done for it.

    Returns:
        The pipeline of this name that is ours; empty if there is none, or another one gives way.

    Raises:
        SearchError: There is one of that name that is not ours for this index, or the cluster refuses.
    """
    with cluster_errors(f"read the search pipeline {name!r}", SearchError):
        there: dict[str, Any] | None = client.search_pipeline.get(id=name, ignore=404).get(name)
    if there is not None and str(there.get("description", "")).startswith(f"{_mark(index)}:"):
        return there
    if there is None or replace:
        return {}
    said = f" ({there['description']!r})" if there.get("description") else ""
    raise SearchError(
        f"there is a search pipeline {name!r} already{said}, which was not made for the fusion of {index!r}",
        hint="Choose another name, or give --replace",
    )


def _mark(index: str) -> str:
    return f"oskit: fuses the hybrid searches of {index}"
