"""What an index is, read from the cluster: enough to ask it and to know how it rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from oskit.cluster.failures import cluster_errors
from oskit.encoder.types import KeyFormat
from oskit.errors import SearchError
from oskit.evaluation.retrieval import Clause
from oskit.evaluation.storage import EXACT, Storage

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

# Defaults of the seismic method, neural-search's SparseConstants.
_APPROXIMATE_THRESHOLD = 1_000_000
_CEILING_INGEST = 3.0
_CEILING_SEARCH = 16.0


@dataclass(frozen=True)
class IndexFacts:
    """What a verification needs to know of an index.

    Attributes:
        name: As it was asked for: an index or an alias.
        kind: ``rank_features`` or ``sparse_vector``.
        key: What tokens are called in it.
        field: The field with the weights.
        passage_field: The field with the text, for BM25; None if it has none.
        encoder_sha256: Of the encoder that it was made with, if that was recorded.
        storage: How it keeps weights.
        documents: Number of documents.
        bytes: Size of its primary shards.
        search_pipeline: Its default search pipeline, if any.
    """

    name: str
    kind: Literal["rank_features", "sparse_vector"]
    key: KeyFormat
    field: str
    passage_field: str | None
    encoder_sha256: str | None
    storage: Storage
    documents: int
    bytes: int
    search_pipeline: str | None

    def clause(
        self,
        *,
        query_tokens: dict[str, float] | None = None,
        query_text: str | None = None,
        model_id: str | None = None,
        analyzer: str | None = None,
        k: int = 10,
        top_n: int | None = None,
        heap_factor: float | None = None,
    ) -> Clause:
        """A ``neural_sparse`` clause on the field with the weights."""
        given = {
            "query_tokens": query_tokens,
            "query_text": query_text,
            "model_id": model_id,
            "analyzer": analyzer,
        }
        body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.kind == "sparse_vector":
            method = {"k": k, "top_n": top_n, "heap_factor": heap_factor}
            body["method_parameters"] = {name: value for name, value in method.items() if value is not None}
        return {"neural_sparse": {self.field: body}}

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "kind": self.kind,
            "key": self.key,
            "field": self.field,
            "search": "approximate" if self.storage.approximate else "exact",
            "encoder_sha256": self.encoder_sha256,
            "documents": self.documents,
            "bytes": self.bytes,
            "search_pipeline": self.search_pipeline,
        }


def read_index(client: OpenSearch, index: str) -> IndexFacts:
    """Ask the cluster what ``index`` is. Refreshes it first, so that everything indexed is counted.

    Raises:
        SearchError: There is no such index, or it has no field with sparse weights.
    """
    with cluster_errors(f"read the index {index!r}", SearchError):
        client.indices.refresh(index=index)
        mapping = _only(client.indices.get_mapping(index=index), index)["mappings"]
        settings = _only(client.indices.get_settings(index=index), index)["settings"]["index"]
        count = client.count(index=index)["count"]
        stats = client.indices.stats(index=index, metric="store")
        segments = client.indices.segments(index=index)
    properties = mapping.get("properties", {})
    made = mapping.get("_meta", {}).get("oskit", {})
    field = made.get("field") or _sparse_field(properties, index)
    definition = properties.get(field, {})
    kind = definition.get("type")
    if kind not in ("rank_features", "sparse_vector"):
        raise SearchError(
            f"the field {field!r} of index {index!r} is not a field of sparse weights but {kind}"
        )
    passage = made.get("passage_field", "passage")
    return IndexFacts(
        name=index,
        kind=kind,
        key="id" if kind == "sparse_vector" else made.get("key", "token"),
        field=field,
        passage_field=passage if properties.get(passage, {}).get("type") == "text" else None,
        encoder_sha256=made.get("encoder_sha256"),
        storage=_storage(definition, segments),
        documents=int(count),
        bytes=int(stats["_all"]["primaries"]["store"]["size_in_bytes"]),
        search_pipeline=settings.get("search", {}).get("default_pipeline"),
    )


def _only(answer: dict[str, Any], index: str) -> dict[str, Any]:
    if len(answer) != 1:
        raise SearchError(
            f"{index!r} stands for {len(answer)} indexes: {', '.join(sorted(answer)[:5])}",
            hint="Name one of them.",
        )
    only: dict[str, Any] = next(iter(answer.values()))
    return only


def _sparse_field(properties: dict[str, Any], index: str) -> str:
    found = [name for name, it in properties.items() if it.get("type") in ("rank_features", "sparse_vector")]
    if len(found) != 1:
        raise SearchError(
            f"index {index!r} has {len(found)} fields of sparse weights",
            hint="Make the index with: oskit ingest INDEX SOURCE",
        )
    return found[0]


def _storage(definition: dict[str, Any], segments: dict[str, Any]) -> Storage:
    """How the weights are kept: decided segment by segment for ``sparse_vector``."""
    if definition["type"] == "rank_features":
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
        ceiling_ingest=float(parameters.get("quantization_ceiling_ingest", _CEILING_INGEST)),
        ceiling_search=float(parameters.get("quantization_ceiling_search", _CEILING_SEARCH)),
    )
