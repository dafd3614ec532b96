"""What an index is, read from the cluster: enough to ask it and to know how it rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from oskit.archive.text_encoder import KeyFormat
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.existing import size_and_writes
from oskit.cluster.index.mapping import IndexInfo, approximate_from, find_index, index_uuid
from oskit.cluster.index.names import Target, one_index, resolve
from oskit.cluster.index.sparse_fields import definition_of
from oskit.cluster.search.answers import complete_search
from oskit.cluster.search.passages import PassageCount
from oskit.cluster.search.place import with_key
from oskit.data.chunks import Chunking
from oskit.errors import ClusterError, SearchError
from oskit.evaluation.live.rounding import EXACT, Storage

if TYPE_CHECKING:
    from opensearchpy import OpenSearch


@dataclass(frozen=True)
class IndexFacts:
    """What a verification needs to know of an index.

    Attributes:
        passage_field: The field or fields with the text, for BM25; None if it has none.
        bytes: Size of its primary shards.
        search_pipeline: The default one of its searches.
        target: The name that was asked, and what it stood for.
        uuid: Tells the index from a later one of its name.
        writes: Counts what was written to it.
        max_hits: Of one search, ``index.max_result_window``.
        passages: How many vectors an approximate search looks through for its documents, where these have
            several.
    """

    info: IndexInfo
    passage_field: str | None
    storage: Storage
    documents: int
    bytes: int
    search_pipeline: str | None
    target: Target
    uuid: str
    writes: int
    max_hits: int
    passages: PassageCount | None = None

    @property
    def name(self) -> str:
        """The index itself, whatever it was asked for as."""
        return self.info.name

    @property
    def chunking(self) -> Chunking | None:
        """How its documents are cut; None where each has one vector."""
        return Chunking.parse(self.info.chunking) if self.info.chunking else None

    @property
    def key(self) -> KeyFormat:
        """What tokens are called in it."""
        return self.info.key

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "kind": self.info.kind,
            "key": self.key,
            "search": "approximate" if self.storage.approximate else "exact",
            "encode": self.info.encode,
            "encoder": asdict(self.info.encoder),
            "prune": self.info.prune,
            "chunking": self.info.chunking,
            "documents": self.documents,
            "bytes": self.bytes,
            "search_pipeline": self.search_pipeline,
        }


def read_facts(client: OpenSearch, index: str, field: str | None = None) -> IndexFacts:
    """Ask the cluster what ``index`` is. Refreshes it first, so that everything indexed is counted.

    Args:
        field: Of the vectors, where the index has several.

    Raises:
        SearchError: There is no such index, or not all of it can be seen by this name.
        IndexingError: It has no field with sparse weights, or the name stands for several indexes.
    """
    found = find_index(client, index, field)
    if found is None:
        raise SearchError(f"there is no index {index!r}", hint="List them with: GET _cat/indices")
    target, info = one_index(found[0]), found[1]
    if target.filter is not None or target.routing is not None:
        what = "behind a filter" if target.filter is not None else "by its routing"
        raise SearchError(
            f"{target} hides a part of the index {what}", hint=f"Name the index: {target.index}"
        )
    if info.nested and not info.chunking:
        raise SearchError(
            f"a document of {target} has several vectors, in the nested {info.nested!r}, and how it was cut "
            "for them is not known here",
            hint="Look at single queries with: oskit search --explain",
        )
    index = target.index
    with cluster_errors(f"read the index {index!r}", SearchError):
        client.indices.refresh(index=index)
        mapping = client.indices.get_mapping(index=index)[index]["mappings"]
        settings = client.indices.get_settings(index=index)[index]["settings"]["index"]
        segments = client.indices.segments(index=index)
    info = with_key(client, info)
    properties = mapping.get("properties", {})
    passage = info.passage_field
    searchable = definition_of(properties, passage or "").get("type") in ("text", "semantic")
    bytes_, writes = size_and_writes(client, index)
    return IndexFacts(
        info=info,
        passage_field=passage if searchable else info.text_fields,
        storage=_storage(properties, info.embedding_field, segments),
        documents=count_documents(client, index),
        bytes=bytes_,
        search_pipeline=settings.get("search", {}).get("default_pipeline"),
        target=target,
        uuid=settings["uuid"],
        writes=writes,
        max_hits=int(settings.get("max_result_window", 10_000)),
        passages=PassageCount.of(client, info),
    )


def count_documents(client: OpenSearch, index: str) -> int:
    """Documents that a search sees, on all shards."""
    body = {"size": 0, "track_total_hits": True}
    return int(complete_search(client, index, body, search_pipeline="_none")["hits"]["total"]["value"])


@contextmanager
def staying(client: OpenSearch, facts: IndexFacts) -> Iterator[None]:
    """Refuse to speak of an index that is not what was looked at, after what is done within.

    Raises:
        SearchError: It was deleted, made anew, or its alias was moved.
    """
    try:
        yield
    except ClusterError:
        _check_that_it_stayed(client, facts)  # which is the reason, if it did not
        raise
    _check_that_it_stayed(client, facts)


def _check_that_it_stayed(client: OpenSearch, facts: IndexFacts) -> None:
    uuid = index_uuid(client, facts.name)
    if uuid != facts.uuid:
        how = "deleted" if uuid is None else "deleted and made anew"
        raise SearchError(
            f"the index {facts.name!r} was {how} while it was verified, so nothing can be said of it",
            hint="Verify again once nobody changes it",
        )
    target = facts.target
    if not target.is_alias:
        return
    now = resolve(client, target.asked)
    if now is None or now.index != target.index:
        where = f"to {now.index!r}" if now is not None else "away"
        raise SearchError(
            f"the alias {target.asked!r} was moved {where} while {target.index!r} behind it was verified",
            hint=f"Verify again, or verify the index itself: {target.index}",
        )


def was_written(client: OpenSearch, facts: IndexFacts) -> bool:
    """Whether documents were written or deleted since the facts were read."""
    return size_and_writes(client, facts.name)[1] != facts.writes


def _storage(properties: dict[str, Any], field: str, segments: dict[str, Any]) -> Storage:
    """How the weights are kept: decided segment by segment for ``sparse_vector``."""
    definition, threshold = definition_of(properties, field), approximate_from(properties, field)
    if definition.get("type") != "sparse_vector":
        return EXACT
    parameters = definition.get("method", {}).get("parameters", {})
    sizes = [
        segment["num_docs"] + segment["deleted_docs"]
        for index in segments["indices"].values()
        for copies in index["shards"].values()
        for copy in copies
        for segment in copy["segments"].values()
    ]
    return Storage(
        features=not sizes or any(size < threshold for size in sizes),
        bytes=any(size >= threshold for size in sizes),
        ceiling_ingest=float(parameters.get("quantization_ceiling_ingest", EXACT.ceiling_ingest)),
        ceiling_search=float(parameters.get("quantization_ceiling_search", EXACT.ceiling_search)),
        threshold=threshold,
        largest_segment=max(sizes, default=0),
    )
