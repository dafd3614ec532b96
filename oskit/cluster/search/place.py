"""Where is searched: what a name stands for, looked up once, and whether that still holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from opensearchpy.exceptions import AuthorizationException, NotFoundError

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.mapping import IndexInfo, approximate_from, find_index
from oskit.cluster.index.sparse_fields import vectors_of
from oskit.cluster.search.answers import complete_search
from oskit.cluster.search.filters import Learnt
from oskit.cluster.search.passages import PassageCount
from oskit.errors import SearchError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.names import Target
    from oskit.cluster.models.registry import ModelInfo

_TELLING = (
    "*.aliases,*.settings.index.uuid,*.settings.index.search.default_pipeline,"
    "*.settings.index.max_result_window,*.mappings._meta"
)
"""Of what an index is, all that a search goes by and that may change."""


@dataclass(frozen=True)
class Place:
    """An index, as a search has to know it.

    Attributes:
        target: What the name stands for.
        info: How the index was made.
        pipeline: The search pipeline that its searches run through unless told otherwise.
        max_hits: How deep a search may go, ``index.max_result_window``.
        stamp: Differs once anything of this does; None where that is not known.
    """

    target: Target
    info: IndexInfo
    pipeline: str | None
    max_hits: int = 10_000
    stamp: dict[str, Any] | None = None
    passages: PassageCount | None = None
    """How many there are, where that says how deep an approximate search has to look."""
    models: dict[str, ModelInfo] = field(default_factory=dict)
    """Those that encode queries, by way of searching, as far as they were looked up."""
    shapes: list[Shape] = field(default_factory=list)
    """What a hybrid search has to know besides, once it was looked up."""
    learnt: Learnt = field(default_factory=Learnt)
    """What filters have found out of the fields."""

    def shape(self, client: OpenSearch) -> Shape:
        """The index's fields and shards, looked up once."""
        if not self.shapes:
            self.shapes.append(_shape_of(client, self.target.index, self.info))
        return self.shapes[0]

    def may_be_approximate(self, client: OpenSearch) -> bool:
        """Whether a segment may be searched approximately: then few hits need not be all that there are.

        Raises:
            SearchError: The cluster refuses.
        """
        if self.info.kind != "sparse_vector":
            return False
        with cluster_errors(f"read the index {self.target.index!r}", SearchError):
            try:
                answer = client.indices.stats(index=self.target.index, metric="docs")
            except AuthorizationException:  # who may search may not ask that
                return True
        found = answer["_all"]["primaries"]["docs"]  # those that are deleted are in their segments still
        return int(found["count"]) + int(found["deleted"]) >= self.shape(client).approximate_from


@dataclass(frozen=True)
class Shape:
    """Of an index.

    Attributes:
        types: Of its fields, by path; those within ``nested`` objects, which a query has to name, are left
            out.
        shards: How many primary ones each index has: there are several in a data stream.
        approximate_from: Documents of a segment from which its ``sparse_vector`` is searched approximately.
    """

    types: dict[str, str]
    shards: dict[str, int]
    approximate_from: int


def _shape_of(client: OpenSearch, index: str, info: IndexInfo) -> Shape:
    with cluster_errors(f"read the index {index!r}", SearchError):
        found = client.indices.get(index=index, params={"flat_settings": "true"})
    properties = found[info.name]["mappings"].get("properties") or {}
    shards = {name: int(one["settings"]["index.number_of_shards"]) for name, one in found.items()}
    return Shape(dict(_types(properties)), shards, approximate_from(properties, info.embedding_field))


def _types(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, definition in properties.items():
        kind = definition.get("type", "object")
        yield f"{prefix}{name}", kind
        if kind != "nested":
            inner = {**(definition.get("properties") or {}), **(definition.get("fields") or {})}
            yield from _types(inner, f"{prefix}{name}.")


def find_place(
    client: OpenSearch, index: str, path: str | None, stamp: dict[str, Any] | None = None
) -> Place:
    """Look up what a name stands for.

    Args:
        path: Of the vectors' field, where the index has several.
        stamp: Taken before, so that what changes meanwhile is noticed later.

    Raises:
        SearchError: There is no such index, or the cluster refuses.
        IndexingError: The name stands for several indexes, or which field is not clear.
    """
    # Once more, as an alias may move within a look.
    found = find_index(client, index, path) or find_index(client, index, path)
    if found is None:
        raise SearchError(f"there is no index {index!r}", hint=f"Load one with: oskit ingest {index} FILE")
    target, info = found
    pipeline, max_hits = _search_settings(client, target.index)
    passages = PassageCount.of(client, info, target.index)
    return Place(target, with_key(client, info), pipeline, max_hits, stamp, passages)


def stamp_of(client: OpenSearch, index: str) -> dict[str, Any] | None:
    """What differs once a name stands for something else; None if there is none, or we may not ask."""
    with cluster_errors(f"look up {index!r}", SearchError):
        try:
            answer: dict[str, Any] = client.indices.get(index=index, params={"filter_path": _TELLING})
        except (NotFoundError, AuthorizationException):
            return None
    return dict(answer) or None


def _search_settings(client: OpenSearch, index: str) -> tuple[str | None, int]:
    """The search pipeline that searches run through unless told otherwise, and how deep they may go."""
    pipeline, depth = "index.search.default_pipeline", "index.max_result_window"
    with cluster_errors(f"read the index {index!r}", SearchError):
        answer = client.indices.get_settings(
            index=index, name=f"{pipeline},{depth}", params={"flat_settings": "true"}
        )
    settings: dict[str, Any] = next((found["settings"] for found in answer.values()), {})
    return settings.get(pipeline), int(settings.get(depth, 10_000))


def with_key(client: OpenSearch, info: IndexInfo) -> IndexInfo:
    """An index that others made, with what its documents show: whether ``rank_features`` have ids as keys."""
    if info.encode is not None or info.kind != "rank_features" or info.key == "id":
        return info
    body = {"size": 5, "_source": [info.embedding_field]}
    answer = complete_search(client, info.name, body, search_pipeline="_none")
    keys = {
        key
        for hit in answer["hits"]["hits"]
        for vector in vectors_of(hit.get("_source") or {}, info.embedding_field)
        for key in vector
    }
    return replace(info, key="id") if len(keys) > 4 and all(key.isdecimal() for key in keys) else info
