"""What an index is, read from the cluster: enough to ask it and to know how it rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from oskit.archive.text_encoder import KeyFormat
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.mapping import IndexInfo, find_index
from oskit.errors import SearchError
from oskit.evaluation.live.retrieval import Clause
from oskit.evaluation.live.rounding import EXACT, Storage

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

# Default of the seismic method, neural-search's SparseConstants.
_APPROXIMATE_THRESHOLD = 1_000_000


@dataclass(frozen=True)
class IndexFacts:
    """What a verification needs to know of an index.

    Attributes:
        passage_field: The field with the text, for BM25; None if it has none.
        bytes: Size of its primary shards.
    """

    info: IndexInfo
    passage_field: str | None
    storage: Storage
    documents: int
    bytes: int
    search_pipeline: str | None

    @property
    def name(self) -> str:
        """The index itself, whatever it was asked for as."""
        return self.info.name

    @property
    def key(self) -> KeyFormat:
        """What tokens are called in it."""
        return self.info.key

    def clause(self, query: Mapping[str, Any], **method: float | None) -> Clause:
        """A ``neural_sparse`` clause on the field with the weights; what is None is left out.

        Args:
            query: ``query_tokens``, or ``query_text`` with ``model_id`` or ``analyzer``.
            method: ``k``, ``top_n``, ``heap_factor``; told to ``sparse_vector`` only.
        """
        body = {name: value for name, value in query.items() if value is not None}
        if self.info.kind == "sparse_vector":
            body["method_parameters"] = {name: value for name, value in method.items() if value is not None}
        return {"neural_sparse": {self.info.embedding_field: body}}

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
            "documents": self.documents,
            "bytes": self.bytes,
            "search_pipeline": self.search_pipeline,
        }


def read_facts(client: OpenSearch, index: str) -> IndexFacts:
    """Ask the cluster what ``index`` is. Refreshes it first, so that everything indexed is counted.

    Raises:
        SearchError: There is no such index, or the name stands for several.
        IndexingError: It has no field with sparse weights.
    """
    found = find_index(client, index)
    if found is None:
        raise SearchError(f"there is no index {index!r}", hint="List them with: GET _cat/indices")
    target, info = found
    if target.filter is not None:
        raise SearchError(
            f"{target} hides a part of the index behind a filter", hint=f"Name the index: {target.index}"
        )
    index = target.index
    with cluster_errors(f"read the index {index!r}", SearchError):
        client.indices.refresh(index=index)
        mapping = client.indices.get_mapping(index=index)[index]["mappings"]
        settings = client.indices.get_settings(index=index)[index]["settings"]["index"]
        count = client.count(index=index)["count"]
        stats = client.indices.stats(index=index, metric="store")
        segments = client.indices.segments(index=index)
    properties = mapping.get("properties", {})
    passage = info.passage_field
    return IndexFacts(
        info=info,
        passage_field=passage if passage and properties.get(passage, {}).get("type") == "text" else None,
        storage=_storage(properties.get(info.embedding_field, {}), segments),
        documents=int(count),
        bytes=int(stats["_all"]["primaries"]["store"]["size_in_bytes"]),
        search_pipeline=settings.get("search", {}).get("default_pipeline"),
    )


def _storage(definition: dict[str, Any], segments: dict[str, Any]) -> Storage:
    """How the weights are kept: decided segment by segment for ``sparse_vector``."""
    if definition.get("type") != "sparse_vector":
        return EXACT
    parameters = definition.get("method", {}).get("parameters", {})
    threshold = int(parameters.get("approximate_threshold", _APPROXIMATE_THRESHOLD))
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
    )
