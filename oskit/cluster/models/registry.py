"""The models of a cluster: list and find them, and see where they run."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from opensearchpy import OpenSearch
from opensearchpy.exceptions import AuthorizationException, ConflictError, NotFoundError, TransportError

from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.server_words import NO_INDEX
from oskit.errors import ClusterError, ModelError

Result = TypeVar("Result")

ML = "/_plugins/_ml"
MAX_HITS = 10_000
"""Size of one search, OpenSearch's ``index.max_result_window``."""

DEPLOYED_STATES = frozenset({"DEPLOYED", "PARTIALLY_DEPLOYED", "LOADED", "PARTIALLY_LOADED"})
"""The LOADED names are those of models deployed before OpenSearch 2.7."""

IN_MEMORY_STATES = DEPLOYED_STATES | {"DEPLOYING", "LOADING"}
LOOKS = 5
"""How often a search is sent that finds no index although it is there."""

EXPORTED = "exported by oskit"
"""In the description of what we export, which goes with it into the cluster."""

GROUP_REFRESH_S = 3.0
"""How long a group may be held by a model that is deleted already: searches see that a second later."""

_SOURCE = [
    *("name", "model_version", "model_state", "algorithm", "function_name", "model_format", "total_chunks"),
    *("model_content_size_in_bytes", "model_content_hash_value", "created_time", "model_group_id"),
    *(
        "planning_worker_node_count",
        "current_worker_node_count",
        "planning_worker_nodes",
        "model_config",
        "connector_id",
        "description",
    ),
]

_CONTENT = re.compile(r"\bsha256:([0-9a-f]{64})\b")


@dataclass(frozen=True)
class ModelInfo:
    """A model as the cluster describes it.

    Attributes:
        model_id: What queries and pipelines refer to.
        name: Not unique.
        version: Counted by the cluster, within the model's group.
        state: REGISTERING, REGISTERED, DEPLOYING, DEPLOYED, PARTIALLY_DEPLOYED, UNDEPLOYED, DEPLOY_FAILED.
        function_name: SPARSE_ENCODING, SPARSE_TOKENIZE, TEXT_EMBEDDING, REMOTE, ...
        format: TORCH_SCRIPT or ONNX; None for a remote model.
        size: Of the archive in bytes, if known.
        sha256: Of the archive, if known; of a remote model the one that its description names.
        created: When it was registered.
        planned: Nodes that should run it.
        current: Nodes that do.
        group_id: Its model group.
        total_chunks: Parts of the upload.
        planned_nodes: Ids of the nodes that should run it.
        has_config: Whether it was registered with a ``model_config``.
        connector_id: What a remote model is reached by.
        url: What its connector calls, where that was looked up.
        problem: Why the service there does not answer, where it was asked.
    """

    model_id: str
    name: str
    version: str
    state: str
    function_name: str
    format: str | None = None
    size: int | None = None
    sha256: str | None = None
    created: datetime | None = None
    planned: int = 0
    current: int = 0
    group_id: str | None = None
    total_chunks: int | None = None
    planned_nodes: tuple[str, ...] = ()
    has_config: bool = False
    connector_id: str | None = None
    url: str | None = None
    problem: str | None = None

    @property
    def is_deployed(self) -> bool:
        """Whether it answers, on some nodes at least."""
        return self.state in DEPLOYED_STATES

    @property
    def is_remote(self) -> bool:
        """Whether it runs elsewhere, and a connector reaches it."""
        return self.function_name == "REMOTE"

    @property
    def is_on_all_nodes(self) -> bool:
        """Whether every node that should run it does."""
        return self.state == "DEPLOYED" and self.current >= self.planned

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        values["created"] = self.created.isoformat() if self.created else None
        return values


def _model(model_id: str, source: dict[str, Any]) -> ModelInfo:
    created = source.get("created_time")
    # The cluster keeps no content of a remote model.
    noted = _CONTENT.search(str(source.get("description", ""))) if source.get("connector_id") else None
    return ModelInfo(
        model_id=model_id,
        name=str(source.get("name", "")),
        version=str(source.get("model_version", "")),
        state=str(source.get("model_state", "UNKNOWN")),
        function_name=str(source.get("algorithm") or source.get("function_name") or ""),
        format=source.get("model_format"),
        size=source.get("model_content_size_in_bytes"),
        sha256=noted[1] if noted else source.get("model_content_hash_value"),
        created=datetime.fromtimestamp(created / 1000, tz=UTC) if created else None,
        planned=int(source.get("planning_worker_node_count") or 0),
        current=int(source.get("current_worker_node_count") or 0),
        group_id=source.get("model_group_id"),
        total_chunks=source.get("total_chunks"),
        planned_nodes=tuple(source.get("planning_worker_nodes") or ()),
        has_config=bool(source.get("model_config")),
        connector_id=source.get("connector_id"),
    )


def content_note(sha256: str) -> str:
    """What a description holds of an archive."""
    return f"sha256:{sha256}"


def request(client: OpenSearch, method: str, path: str, body: Any = None) -> Any:
    """One request to ML Commons; failures stay those of opensearch-py."""
    return client.transport.perform_request(method, ML + path, body=body)


def search(client: OpenSearch, kind: str, **body: Any) -> list[dict[str, Any]]:
    """Hits among the ``models``, the ``model_groups`` or the ``connectors``.

    There are none where nothing was ever registered, and so no index is there to hold it.
    """
    with cluster_errors(f"list the {kind.replace('_', ' ')}", ModelError):
        for looks_left in reversed(range(LOOKS)):
            try:
                answer = request(client, "POST", f"/{kind}/_search", {**body, "size": MAX_HITS})
            except TransportError as failure:
                if heard(failure) is NO_INDEX:
                    return []
                raise
            searched = answer.get("_shards", {}).get("total", 1)
            if searched or not looks_left or not _has_index(client, kind):
                break
            time.sleep(1)
    return list(answer["hits"]["hits"])


def _has_index(client: OpenSearch, kind: str) -> bool:
    """Whether there is an index where a search found none, as in a node that has not read its state yet.

    That node answers this with 503, for which the client waits.
    """
    try:
        return bool(client.indices.exists(index=f".plugins-ml-{kind.replace('_', '-').removesuffix('s')}"))
    except AuthorizationException:  # a system index, which not everybody may see
        return False


def list_models(client: OpenSearch, *filters: dict[str, Any]) -> list[ModelInfo]:
    """The models that we may see (not the chunks of their archives) and that match all filters, newest first.

    Raises:
        ModelError: The cluster has no ML Commons, or refuses.
    """
    whole = {
        "filter": [{"exists": {"field": "name"}}, *filters],
        "must_not": {"exists": {"field": "chunk_number"}},
    }
    newest_first = [{"created_time": {"order": "desc", "unmapped_type": "date"}}]
    hits = search(client, "models", query={"bool": whole}, _source=_SOURCE, sort=newest_first)
    return [_model(hit["_id"], hit["_source"]) for hit in hits]


def get_model(client: OpenSearch, model_id: str) -> ModelInfo | None:
    """The model of this id as it is right now, or None if there is none."""
    with cluster_errors(f"read the model {model_id}", ModelError):
        try:
            return _model(model_id, request(client, "GET", f"/models/{quoted(model_id)}"))
        except TransportError as failure:
            if failure.status_code == 404 or heard(failure) is NO_INDEX:
                return None
            raise


def serving(client: OpenSearch, model: ModelInfo, error: type[ClusterError]) -> ModelInfo:
    """A model that a search found, as it is right now: a search lags behind a deployment by a second.

    Raises:
        ClusterError: As ``error``: it is neither deployed nor about to be.
    """
    now = model if model.is_deployed else get_model(client, model.model_id) or model
    if now.state not in IN_MEMORY_STATES:
        raise error(
            f"the model {now.name!r} ({now.model_id}) is not deployed: {now.state}",
            hint="Deploy its archive with: oskit deploy ARCHIVE",
        )
    return now


def existing_model(client: OpenSearch, model_id: str, during: str = "") -> ModelInfo:
    """The model of this id as it is right now.

    Args:
        during: What is being done to the model, if it was there a moment ago.

    Raises:
        ModelError: There is none (any more).
    """
    model = get_model(client, model_id)
    if model is None and during:
        raise ModelError(f"The model {model_id} was deleted during its {during}", hint="Deploy it again")
    if model is None:
        raise ModelError(f"There is no model with the id {model_id}", hint="List them with: oskit models")
    return model


def quoted(name: str) -> str:
    """A name or id as a part of a path."""
    return quote(name, safe="")


def find_model(client: OpenSearch, name_or_id: str) -> ModelInfo:
    """The one model of this id or name; ``NAME:onnx`` or ``NAME:remote`` tells those of a name apart.

    Raises:
        ModelError: None has it (the nearest names are in the hint), or several have the name.
    """
    models = list_models(client)
    for model in models:
        if model.model_id == name_or_id:
            return model
    named = [model for model in models if model.name == name_or_id]
    if not named:
        named = [model for model in models if f"{model.name}:{_short_format(model)}" == name_or_id]
    if len(named) == 1:
        return named[0]
    if not named:
        raise ModelError(f"There is no model {name_or_id!r}", hint=_nearest(name_or_id, models))
    candidates = ", ".join(
        f"{model.model_id} ({model.format or model.function_name}, version {model.version}, {model.state})"
        for model in named
    )
    formats = sorted({f"{model.name}:{_short_format(model)}" for model in named})
    hint = "Give the id of one" if len(formats) == 1 else f"Give the id of one, or {' or '.join(formats)}"
    raise ModelError(f"{len(named)} models are named {name_or_id!r}: {candidates}", hint=hint)


def _short_format(model: ModelInfo) -> str:
    return "remote" if model.is_remote else (model.format or "").replace("_", "").lower()


def _nearest(name: str, models: Sequence[ModelInfo]) -> str:
    if not models:
        return "The cluster has no models; deploy one with: oskit deploy ARCHIVE"
    near = difflib.get_close_matches(name, {model.name for model in models}, n=3, cutoff=0.4)
    meant = f"Did you mean {' or '.join(near)}? All of them" if near else "List them with"
    return f"{meant}: oskit models"


class ModelNodes(NamedTuple):
    """Where a model is in memory, by the names of nodes.

    Attributes:
        running: Nodes that have it.
        missing: Nodes that should have it and do not; those that left the cluster by their ids.
    """

    running: tuple[str, ...]
    missing: tuple[str, ...]


def model_nodes(client: OpenSearch, model: ModelInfo) -> ModelNodes:
    """Which nodes have the model in memory now, as they themselves say.

    Raises:
        ModelError: The cluster does not say.
    """
    running = running_nodes(client, model.model_id)
    with cluster_errors(f"see which nodes run the model {model.model_id}", ModelError):
        nodes = client.nodes.info(metric="http")["nodes"]
    names = {node_id: str(node["name"]) for node_id, node in nodes.items()}
    missing = [
        names.get(node_id, f"{node_id}, which left the cluster")
        for node_id in model.planned_nodes
        if node_id not in running
    ]
    return ModelNodes(tuple(sorted(names.get(node_id, node_id) for node_id in running)), tuple(missing))


def running_nodes(client: OpenSearch, model_id: str) -> set[str]:
    """Ids of the nodes that have the model in memory now, as they themselves say.

    Raises:
        ModelError: The cluster does not say.
    """
    with cluster_errors(f"see which nodes run the model {model_id}", ModelError):
        profile = request(client, "GET", f"/profile/models/{quoted(model_id)}")
    return {
        node_id
        for node_id, found in (profile.get("nodes") or {}).items()
        if found.get("models", {}).get(model_id, {}).get("model_state") in DEPLOYED_STATES
    }


def placement(client: OpenSearch, model: ModelInfo) -> str:
    """``on 1 of 2 nodes: on a, not on b``; the names are left out where we may not see them."""
    counted = f"on {model.current} of {model.planned} nodes"
    try:
        running, missing = model_nodes(client, model)
    except ClusterError:  # the permission is another one
        return counted
    lacking = f", not on {', '.join(missing)}" if missing else ""
    return f"{counted}: on {', '.join(running) or 'no node'}{lacking}"


def search_groups(client: OpenSearch, query: dict[str, Any]) -> dict[str, str]:
    """Model groups that match the query: name by id."""
    found = search(client, "model_groups", query=query, _source=["name"])
    return {hit["_id"]: hit["_source"]["name"] for hit in found}


def has_own_group(client: OpenSearch, group_id: str, model_name: str, described: str = "") -> bool:
    """Whether a model group came with a model of this name, whose description it has, and not on purpose."""
    found = search(client, "model_groups", query={"ids": {"values": [group_id]}})
    for group in (hit["_source"] for hit in found):
        text = str(group.get("description") or "")
        is_ours = text in ("", described) or EXPORTED in text or _CONTENT.search(text) is not None
        return is_ours and group["name"] == model_name
    return False


def groups_called(client: OpenSearch, name_or_id: str) -> list[str]:
    """Ids of the model groups of this id or name."""
    known = search_groups(client, {"match_all": {}})
    return [group_id for group_id, name in known.items() if name_or_id in (group_id, name)]


def delete_empty_group(client: OpenSearch, group_id: str) -> bool:
    """Delete a model group unless it has models; whether it is gone."""
    if any(
        get_model(client, model.model_id)
        for model in list_models(client, {"term": {"model_group_id": group_id}})
    ):
        return False

    def attempt() -> bool:
        try:
            request(client, "DELETE", f"/model_groups/{quoted(group_id)}")
        except (
            ConflictError
        ):  # a search still sees the model that was deleted just now, or there is a new one
            return False
        except NotFoundError:
            pass
        return True

    with cluster_errors("delete the model group", ModelError):
        return wait_until(attempt, wait_s=GROUP_REFRESH_S, first_pause_s=0.3) is True


def wait_until(
    look: Callable[[], Result], *, wait_s: float, first_pause_s: float = 0.2, max_pause_s: float = 2.0
) -> Result | None:
    """Call ``look`` until what it gives is true, ever less often; None once ``wait_s`` seconds are over."""
    end = time.monotonic() + wait_s
    pause = first_pause_s
    while True:
        found = look()
        if found:
            return found
        left = end - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, max_pause_s)
