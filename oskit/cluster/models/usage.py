"""Who asks for a model: pipelines, indexes and their fields, templates, scripts, agents, connectors, models.

Most of it stands in the state of the cluster, which shows closed, hidden and blocked indexes too and takes
one permission (``cluster:monitor/state``), where ``GET _mapping`` is refused because of a single block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from oskit.cluster.client.failures import cluster_errors, error_reason, heard
from oskit.cluster.client.server_words import NO_INDEX
from oskit.cluster.models.registry import MAX_HITS, ModelInfo, list_models, request
from oskit.errors import ModelError

_OF_AN_INDEX = (
    *("state", "mappings.*._meta", "mappings.**.model_id", "mappings.**.search_model_id"),
    *("settings.index.default_pipeline", "settings.index.final_pipeline"),
    "settings.index.search.default_pipeline",
)
_STATE = ",".join(
    [
        *(f"metadata.indices.*.{part}" for part in _OF_AN_INDEX),
        *("metadata.ingest", "metadata.search_pipeline", "metadata.stored_scripts"),
        *("metadata.index_template", "metadata.component_template", "metadata.templates"),
    ]
)
"""Of the state, what can name a model or a pipeline: mappings are large."""

_OWN = {"_meta.oskit.model_id": "documents", "_meta.oskit.query_model_id": "queries"}
_PIPELINE_SETTINGS = {
    "default_pipeline": "ingest",
    "final_pipeline": "ingest",
    "search.default_pipeline": "search",
}
_SWITCHED_OFF = re.compile(r"currently disabled|not enabled")


@dataclass(frozen=True)
class Usage:
    """What refers to a model by its id, or by its content.

    Attributes:
        users: Such as ``ingest pipeline 'a'`` or ``index 'b' (documents, default_pipeline 'a')``.
        unseen: Where we may not look, and the cluster's words for that.
    """

    users: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


class References:
    """What the cluster holds that can refer to a model, read once.

    Raises:
        ClusterError: The cluster fails; where it forbids to look, that is told by :attr:`Usage.unseen`.
    """

    def __init__(self, client: OpenSearch) -> None:
        self._unseen: list[str] = []
        with cluster_errors("see who uses the model", ModelError):
            self._state = self._read_state(client)
            self._others = {
                kind: self._read_ml(client, kind)
                for kind in ("agents", "connectors", "memory_containers", "models")
            }
        self._models = list_models(client)

    def of(self, model: ModelInfo, leaving: Iterable[ModelInfo] = ()) -> Usage:
        """What refers to the model.

        Args:
            leaving: Models that are taken away together with it, so that none can stand in for another.
        """
        gone = {model.model_id, *(other.model_id for other in leaving)}
        alone = model.is_deployed and not any(
            other.is_deployed and other.sha256 == model.sha256 and other.model_id not in gone
            for other in self._models
        )
        pipelines = {kind: self._pipelines_with(kind, model.model_id) for kind in ("ingest", "search")}
        users = [f"{kind} pipeline {name!r}" for kind, names in pipelines.items() for name in names]
        users += self._indexes_with(model, pipelines, alone)
        users += self._templates_with(model.model_id, pipelines)
        for kind, hits in self._others.items():
            users += [
                f"{kind[:-1].replace('_', ' ')} {hit['_source'].get('name', '')!r} ({hit['_id']})"
                for hit in hits
                if hit["_id"] not in gone and any(_mentions(hit["_source"], model.model_id))
            ]
        return Usage(tuple(users), tuple(self._unseen))

    def _read_state(self, client: OpenSearch) -> Mapping[str, Any]:
        try:
            state = client.cluster.state(metric="metadata", params={"filter_path": _STATE})
        except TransportError as failure:
            if failure.status_code not in (403, 404, 405):
                raise
            self._unseen.append(f"pipelines and indexes ({failure.status_code}: {error_reason(failure)})")
            return {}
        found: Mapping[str, Any] = state.get("metadata") or {}
        return found

    def _read_ml(self, client: OpenSearch, kind: str) -> list[dict[str, Any]]:
        """What ML Commons keeps of a kind; nothing where there is none or it is switched off."""
        whole = {"bool": {"must_not": {"exists": {"field": "chunk_number"}}}}
        body = {"query": whole, "_source": {"excludes": ["content", "model_content"]}, "size": MAX_HITS}
        try:
            return list(request(client, "POST", f"/{kind}/_search", body)["hits"]["hits"])
        except TransportError as failure:
            reason = error_reason(failure)
            if heard(failure) is NO_INDEX or failure.status_code in (400, 404, 405):
                return []
            if _SWITCHED_OFF.search(reason):
                return []
            if failure.status_code != 403:
                raise
            self._unseen.append(f"{kind.replace('_', ' ')} (403: {reason})")
            return []

    def _pipelines_with(self, kind: str, model_id: str) -> list[str]:
        """Pipelines that mention the model, and those that call them."""
        section = "ingest" if kind == "ingest" else "search_pipeline"
        there = {
            str(pipeline["id"]): pipeline.get("config") or {}
            for pipeline in (self._state.get(section) or {}).get("pipeline") or ()
        }
        found = [name for name, config in there.items() if any(_mentions(config, model_id))]
        calls = {name: set(_called(config)) for name, config in there.items()}
        while more := [name for name in there if name not in found and calls[name] & set(found)]:
            found += more
        return found

    def _indexes_with(
        self, model: ModelInfo, pipelines: Mapping[str, Sequence[str]], alone: bool
    ) -> Iterator[str]:
        for name, index in sorted((self._state.get("indices") or {}).items()):
            mapping = next(iter((index.get("mappings") or {}).values()), None) or {}
            why = list(dict.fromkeys(_roles(mapping, model.model_id)))
            own = (mapping.get("_meta") or {}).get("oskit")
            if not why and alone and isinstance(own, Mapping) and _query_content(own) == model.sha256:
                why.append("queries, which no other deployed model encodes")
            why += _pipelines_of(index.get("settings") or {}, pipelines)
            if why:
                closed = ["closed"] if index.get("state") == "close" else []
                yield f"index {name!r} ({', '.join([*closed, *why])})"

    def _templates_with(self, model_id: str, pipelines: Mapping[str, Sequence[str]]) -> Iterator[str]:
        for section in ("index_template", "component_template", "templates", "stored_scripts"):
            there = self._state.get(section) or {}
            kind = {"templates": "index template", "stored_scripts": "stored script"}.get(section)
            for name, body in (there if kind else there.get(section) or {}).items():
                settings = (body.get("template") or {}) if isinstance(body.get("template"), Mapping) else body
                named = list(_pipelines_of(settings.get("settings") or {}, pipelines))
                if named or any(_mentions(body, model_id)):
                    yield f"{kind or section.replace('_', ' ')} {name!r}"


def _query_content(own: Mapping[str, Any]) -> object:
    """The sha256 of what encodes the queries of an index, by its ``_meta.oskit``."""
    encoder = None if own.get("architecture") == "inference-free" else own.get("encoder_sha256")
    return own.get("query_sha256") or encoder


def _roles(mapping: Mapping[str, Any], model_id: str) -> Iterator[str]:
    for path in _mentions(mapping, model_id):
        if path.startswith("_meta.oskit.release."):
            continue  # that the model is to go with an older release is no use of it
        if path.startswith("_meta."):
            yield _OWN.get(path, path)
        else:
            yield f"field {path.replace('properties.', '').rpartition('.')[0]!r}"


def _pipelines_of(settings: Mapping[str, Any], pipelines: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The settings of an index, flat or not, that name one of the pipelines."""
    flat = dict(_leaves(settings))
    for setting, kind in _PIPELINE_SETTINGS.items():
        name = flat.get(f"index.{setting}", flat.get(setting))
        if name in pipelines[kind]:
            yield f"{setting} {name!r}"


def _called(config: Any) -> Iterator[str]:
    """Names of the pipelines that the processors of an ingest pipeline call, however deep."""
    if isinstance(config, Mapping):
        called = config.get("pipeline")
        if isinstance(called, Mapping) and isinstance(called.get("name"), str):
            yield called["name"]
    inner = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    for value in inner:
        yield from _called(value)


def _mentions(value: Any, model_id: str) -> Iterator[str]:
    """Paths of the strings in ``value`` that are the id, or hold it as a word, as an address does."""
    word = re.compile(rf"(?<![\w-]){re.escape(model_id)}(?![\w-])")
    return (path for path, text in _leaves(value) if word.search(text))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Strings in JSON and where they stand; keys with dots are taken apart by nobody who reads that."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
