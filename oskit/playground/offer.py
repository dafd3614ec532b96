"""What the page may choose from: indexes, ways to search them, and encoders."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from oskit.archive.manifest import MEANINGLESS
from oskit.cluster.client.calls import is_change
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.mapping import find_index
from oskit.cluster.index.sparse_fields import sparse_fields
from oskit.cluster.models.predict import predict
from oskit.cluster.models.registry import ModelInfo, find_model, list_models
from oskit.cluster.search.fusion import Fusion
from oskit.cluster.search.hybrid import Hybrid, Side
from oskit.cluster.search.query_model import query_model
from oskit.cluster.search.search import Searcher
from oskit.errors import ClusterError, ModelError, SearchError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.manifest import Manifest
    from oskit.archive.text_encoder import TextEncoder
    from oskit.cluster.index.mapping import IndexInfo

TRUST_S = 2.0
"""Seconds for which a searcher believes what it looked up: the time of a search is then that of a search."""

TextKind = Literal["query", "document"]

_PARTS = re.compile(r'(?:[=<>,]\s*"(?:[^"]|"")*"|[^;])+')
"""Filters between semicolons; a value in quotes begins where its operator or the value before it ends."""


class Way(BaseModel):
    """One way to search, as the page chooses it.

    Attributes:
        index: One that is offered.
        by: By sparse vectors, by BM25, or by both, fused.
        encoder: Of the query: an id that the index's description has; empty for the model that made it.
        weight: The sparse vectors' share in a hybrid search; the rest is BM25's.
        fusion: As ``oskit search --fusion`` takes it.
        filter: As ``--filter`` takes it; several that all have to hold are parted by semicolons, which in
            quotes are a value's.
        two_phase: ``rank_features`` only.
        top_n: Heaviest query tokens; ``sparse_vector`` only, as is ``heap_factor``.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    index: str
    by: Literal["sparse", "bm25", "hybrid"] = "sparse"
    encoder: str = ""
    weight: float = Field(0.5, gt=0, lt=1)
    fusion: str = "min_max"
    filter: str = ""
    two_phase: bool = False
    top_n: int | None = Field(None, ge=1)
    heap_factor: float | None = Field(None, gt=0)

    def wanted(self) -> dict[str, Any]:
        """Arguments of :meth:`Searcher.search`.

        Raises:
            UsageError: A fusion or a weight that there is not.
        """
        wanted: dict[str, Any] = {"filter": self._filters(), "two_phase": self.two_phase}
        method = {"top_n": self.top_n, "heap_factor": self.heap_factor}
        wanted["method_parameters"] = {name: value for name, value in method.items() if value is not None}
        if self.by == "hybrid":
            sides = (Side("bm25", 1 - self.weight), Side("sparse", self.weight))
            wanted["hybrid"] = Hybrid(sides, Fusion.parse(self.fusion))
        return wanted

    def _filters(self) -> list[str]:
        if self.filter.lstrip().startswith("{"):  # a query clause, which may hold anything
            return [self.filter]
        return [part.strip() for part in _PARTS.findall(self.filter) if part.strip()]


def read_only(client: OpenSearch) -> OpenSearch:
    """The client, which from now on refuses to send anything that would change the cluster."""
    send = client.transport.perform_request

    def guarded(method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if is_change(method, url):
            raise UsageError(f"the playground changes nothing, and {method} {url} would")
        return send(method, url, *args, **kwargs)

    client.transport.perform_request = guarded  # type: ignore[method-assign]
    return client


@dataclass
class Offer:
    """What may be asked, and nothing else.

    Args:
        client: Of the cluster.
        named: Indexes and aliases; none for all that have sparse vectors.
        archives: Encoders on this machine, by name.
        models: Names or ids of deployed encoders, beside the one that each index was made with.
    """

    client: OpenSearch
    named: Sequence[str] = ()
    archives: Mapping[str, TextEncoder] = field(default_factory=dict)
    models: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._searchers: dict[tuple[str, bool, str], Searcher] = {}
        self._encoding = threading.Lock()
        self._names = list(dict.fromkeys(self.named))

    def names(self) -> list[str]:
        """Of the indexes and aliases that may be searched, as they are now.

        Raises:
            SearchError: There is none, or the cluster refuses to list them.
        """
        if not self.named:
            self._names = self._all()
        if not self._names:
            raise SearchError(
                "the cluster has no index with sparse vectors", hint="Load one with: oskit ingest INDEX FILE"
            )
        return self._names

    def _all(self) -> list[str]:
        with cluster_errors("list the indexes (name those that you may search)", SearchError):
            found = self.client.indices.get(index="*", params={"expand_wildcards": "open"})
        names: list[str] = []
        behind: dict[str, int] = {}
        for index, one in found.items():
            if index.startswith(".") and "data_stream" not in one:
                continue
            for alias in one.get("aliases", {}):
                behind[alias] = behind.get(alias, 0) + 1
            if sparse_fields(one["mappings"].get("properties") or {}):
                names += [one.get("data_stream", index), *one.get("aliases", {})]
        return sorted({name for name in names if behind.get(name, 1) == 1})

    def check(self, name: str) -> None:
        """Refuse an index that is not offered.

        Raises:
            UsageError: It is not.
        """
        if name not in self._names and (self.named or name not in self.names()):
            raise UsageError(
                f"{name!r} is not offered here", hint="Reload the page, or name it: oskit playground INDEX…"
            )

    def index(self, name: str) -> dict[str, Any]:
        """What an index is, and how it may be searched; of each way that may not, why.

        Raises:
            UsageError: It is not offered.
            ClusterError: It is gone, or cannot be read.
        """
        self.check(name)
        info = self._info(name)
        with cluster_errors(f"count the documents of {name!r}", SearchError):
            documents = int(self.client.count(index=name)["count"])
        encoders, why = [], ""
        try:
            encoders.append({"id": "", "name": query_model(self.client, info, "model", None).name})
        except ClusterError as error:
            why = str(error)
        encoders += [{"id": f"archive:{name}", "name": f"{name} (archive)"} for name in self.archives]
        encoders += [{"id": f"model:{name}", "name": name} for name in self.models]
        words = info.passage_field is not None or info.text_fields is not None
        without = {
            "sparse": "" if encoders else why,
            "bm25": ""
            if words
            else "which fields hold its texts is not recorded; see: oskit index adopt --help",
        }
        return {
            "name": name,
            "index": info.name,
            "kind": info.kind,
            "documents": documents,
            "chunks": info.nested is not None,
            "encoders": encoders,
            "without": {**without, "hybrid": without["sparse"] or without["bm25"]},
            "two_phase": info.kind == "rank_features" and info.nested is None,
            "note": why if self.archives or self.models else "",
        }

    def _info(self, name: str) -> IndexInfo:
        found = find_index(self.client, name)
        if found is None:
            raise SearchError(f"there is no index {name!r}", hint="It was deleted, or renamed")
        return found[1]

    def searcher(self, way: Way) -> Searcher:
        """What answers by a way.

        Raises:
            UsageError: The index or the encoder is not offered.
        """
        self.check(way.index)
        archive, model = self._encoder(way.encoder)
        key = (way.index, way.by == "bm25", way.encoder)
        if (known := self._searchers.get(key)) is None:
            how: dict[str, Any] = (
                {"by": "bm25"} if way.by == "bm25" else {"encoder": archive, "model_id": model}
            )
            known = self._searchers[key] = Searcher(self.client, way.index, trust_s=TRUST_S, **how)
        return known

    def _encoder(self, chosen: str) -> tuple[TextEncoder | None, str | None]:
        """The archive or the name of the model; neither for the one that made an index."""
        kind, _, name = chosen.partition(":")
        if not chosen or (kind == "model" and name in self.models):
            return None, name or None
        if kind == "archive" and name in self.archives:
            return self.archives[name], None
        raise UsageError(f"the encoder {chosen!r} is not offered here", hint="Reload the page")

    def note(self, encoder: str) -> str:
        """What a person should know of an encoder's tokens, as far as an archive tells that; mostly nothing.

        Args:
            encoder: As in :attr:`Way.encoder`.

        Raises:
            UsageError: It is not offered.
        """
        archive = getattr(self._encoder(encoder)[0], "archive", None)
        manifest: Manifest | None = getattr(archive, "manifest", None)
        return MEANINGLESS if manifest is not None and manifest.vocabulary.directions else ""

    def weights(self, text: str, kind: TextKind, index: str, encoder: str) -> dict[str, float]:
        """Token weights of a text, by token texts, heaviest first.

        Args:
            kind: As a query or as a document.
            index: Whose encoder, if none is chosen.
            encoder: As in :attr:`Way.encoder`.

        Raises:
            UsageError: Index or encoder is not offered.
            ClusterError: The model is not there, or does not encode that.
        """
        self.check(index)
        archive, name = self._encoder(encoder)
        if archive is not None:
            with self._encoding:
                encode = archive.query_weights if kind == "query" else archive.document_weights
                return encode([text])[0]
        if name is not None:
            model = find_model(self.client, name)
        elif kind == "query":
            model = query_model(self.client, self._info(index), "model", None)
        else:
            model = self._document_model(self._info(index))
        if kind == "document" and model.function_name == "SPARSE_TOKENIZE":
            raise ModelError(f"the model {model.name!r} is a tokenizer, which encodes queries alone")
        return predict(self.client, model, [text])[0]

    def _document_model(self, info: IndexInfo) -> ModelInfo:
        made = info.encoder
        for model in list_models(self.client):
            same = model.model_id == made.model_id or (
                made.sha256 is not None and model.sha256 == made.sha256
            )
            if same and (model.is_deployed or model.is_remote):
                return model
        raise ModelError(
            f"the encoder that made {info.name!r} is not deployed",
            hint="Deploy its archive, or start the playground with --archive DIR",
        )
