"""The cluster: version, plugins, settings, memory, permissions and the state of its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.kind import ClusterKind, Nodes, kind_of, nodes_of, user_of
from oskit.cluster.client.needs import NEEDS, ROLES, denied, why_not
from oskit.cluster.client.retry import RetryPolicy
from oskit.cluster.models.connectors import with_services
from oskit.cluster.models.preflight import effective_settings, model_setting_problems
from oskit.cluster.models.registry import ModelInfo, list_models, placement
from oskit.doctor.finding import Finding, Status, attempt
from oskit.doctor.leftovers import check_leftovers
from oskit.errors import OskitError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

SINCE = {
    "neural sparse search": "2.11",
    "two-phase search": "2.15",
    "analyzer queries": "3.1",
    "sparse_vector": "3.3",
}
PLUGINS = {
    "opensearch-ml": "models cannot be deployed",
    "opensearch-neural-search": "neural_sparse queries and the ingest processor do not exist",
    "opensearch-knn": "neural-search does not start without it",
}
RETRY_FOR_S = 10.0
"""Whoever asks how a cluster is wants to know it soon."""

UNHEALTHY = {"DEPLOY_FAILED", "PARTIALLY_DEPLOYED"}


def check_cluster(connection: ConnectionSettings, *, fix: bool = False) -> list[Finding]:
    """Look at the cluster, without changing anything unless ``fix`` mends what earlier versions left behind.

    The first finding says whether it answers; without an answer there are no others.
    """
    try:
        client = connect(connection, policy=RetryPolicy(retry_for_s=min(connection.retry_for, RETRY_FOR_S)))
        kind = kind_of(client)
        nodes = nodes_of(client)
    except OskitError as error:
        return [Finding("cluster", "connection", "failure", error.message, error.hint)]
    with client:
        found = Finding("cluster", "connection", "ok", f"{connection.url} is {kind.name!r}, {_nodes(nodes)}")
        checks = (_settings, _memory, _permissions, _models, partial(check_leftovers, fix=fix))
        return [
            found,
            _version(kind),
            *_commands(client),
            *_plugins(nodes),
            *(finding for check in checks for finding in check(client)),
        ]


def _nodes(nodes: Nodes) -> str:
    if not nodes.roles:
        return "its nodes may not be seen"
    ml_nodes = sum("ml" in roles for roles in nodes.roles)
    counted = "1 node" if len(nodes.roles) == 1 else f"{len(nodes.roles)} nodes"
    return f"{counted}, {ml_nodes} with the ml role"


def _version(kind: ClusterKind) -> Finding:
    version = kind.version
    if version is None:
        return Finding("cluster", "version", "warning", f"{kind}: an unknown version")
    lacking = [f"{feature} ({since}+)" for feature, since in SINCE.items() if version < Version(since)]
    detail = str(kind)
    if not lacking:
        return Finding("cluster", "version", "ok", detail)
    status: Status = "failure" if version < Version(SINCE["neural sparse search"]) else "warning"
    return Finding("cluster", "version", status, f"{detail} lacks {', '.join(lacking)}", "Upgrade OpenSearch")


def _commands(client: OpenSearch) -> list[Finding]:
    """Who we are, and which commands cannot work here or are not permitted, as far as that is known."""
    kind, user = kind_of(client), user_of(client)
    found = []
    if user is not None:
        roles = f"with the roles {', '.join(user.roles)}" if user.roles else "without a role"
        found.append(Finding("cluster", "user", "ok", f"the security plugin knows {user.name}, {roles}"))
    for problem, commands in _by_reason({name: why_not(kind, name) for name in NEEDS}).items():
        advice = next((NEEDS[name].instead for name in commands if NEEDS[name].instead), None)
        found.append(Finding("cluster", _listed(commands), "warning", problem, advice))
    missing = denied(client, {request: None for needs in NEEDS.values() for request in needs.requests})
    lacking = {
        name: ", ".join(action for request in needs.requests for action in missing.get(request, ()))
        for name, needs in NEEDS.items()
    }
    for actions, commands in _by_reason(lacking).items():
        detail = f"not permitted to {user.name if user else 'this user'}, who lacks {actions}"
        found.append(Finding("cluster", _listed(commands), "warning", detail, ROLES))
    return found


def _by_reason(reasons: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Commands by what is against them."""
    by: dict[str, list[str]] = {}
    for command, reason in reasons.items():
        if reason:
            by.setdefault(reason, []).append(command)
    return by


def _listed(commands: list[str]) -> str:
    return f"oskit {', '.join(commands)}"


def _plugins(nodes: Nodes) -> list[Finding]:
    if not nodes.roles:
        advice = "Grant cluster:monitor/nodes/info to see them, or ask an administrator for GET _cat/plugins"
        return [Finding("cluster", "plugins", "skipped", "the user may not see the nodes' plugins", advice)]
    missing = [name for name in PLUGINS if name not in nodes.plugins]
    if not missing:
        return [Finding("cluster", "plugins", "ok", ", ".join(PLUGINS))]
    advice = "Install it on every node, in the cluster's own version: bin/opensearch-plugin install"
    return [
        Finding("cluster", "plugins", "failure", f"no {name} on every node: {PLUGINS[name]}", advice)
        for name in missing
    ]


def _settings(client: OpenSearch) -> list[Finding]:
    try:
        effective_settings(client)
        problems = model_setting_problems(client)
    except OskitError as error:
        return [Finding("cluster", "settings", "skipped", error.message, error.hint)]
    if not problems:
        return [Finding("cluster", "settings", "ok", "nothing stands in the way of a model")]
    return [
        Finding(
            "cluster",
            problem.setting,
            "failure" if problem.certain else "warning",
            problem.problem,
            f"Send: {problem.call}; or let oskit deploy do it with --configure-cluster"
            if problem.call
            else None,
        )
        for problem in problems
    ]


def _memory(client: OpenSearch) -> list[Finding]:
    """Breakers that have tripped since the nodes started; ML Commons reports an open one misleadingly."""
    try:
        with cluster_errors("read the nodes' memory"):
            nodes = client.nodes.stats(metric="breaker,jvm,os")["nodes"].values()
    except OskitError as error:
        return [Finding("cluster", "memory", "skipped", error.message, error.hint)]
    return [_memory_of(node) for node in nodes]


def _memory_of(node: dict[str, Any]) -> Finding:
    detail = (
        f"heap {node['jvm']['mem']['heap_used_percent']}% used, "
        f"{node['os']['mem']['free_percent']}% of the machine's memory free"
    )
    name = f"memory of {node['name']}"
    counts = {breaker: state["tripped"] for breaker, state in node["breakers"].items()}
    tripped = ", ".join(f"{breaker} {count}x" for breaker, count in counts.items() if count)
    if tripped:
        advice = "Give the node a larger heap, or send less at once"
        return Finding("cluster", name, "warning", f"{detail}; breakers tripped: {tripped}", advice)
    return Finding("cluster", name, "ok", detail)


def _permissions(client: OpenSearch) -> list[Finding]:
    """What every command needs to read; writing is not tried, since a check must not change anything."""

    def permitted(action: str, call: Callable[[], object]) -> str:
        with cluster_errors(action):
            call()
        return "permitted"

    calls: dict[str, Callable[[], object]] = {
        "list models": lambda: list_models(client),
        "list indexes": lambda: client.indices.get_alias(index="*"),
        "list pipelines": lambda: client.ingest.get_pipeline(params={"ignore": 404}),
    }
    return [
        attempt("cluster", f"may {action}", partial(permitted, action, call))
        for action, call in calls.items()
    ]


def _models(client: OpenSearch) -> list[Finding]:
    try:
        models = with_services(client, list_models(client))
    except OskitError:
        return []  # _permissions has said why
    ill = [finding for model in models if (finding := _ill(client, model))]
    if ill:
        return ill
    deployed = sum(model.is_deployed for model in models)
    return [Finding("cluster", "models", "ok", f"{len(models)} registered, {deployed} deployed")]


def _ill(client: OpenSearch, model: ModelInfo) -> Finding | None:
    if model.function_name == "CONNECTOR":
        told = f"no model uses it ({model.model_id}, to {model.url})"
        advice = f"A killed deployment left it: oskit delete {model.model_id}"
    elif model.problem is not None:
        told = f"{model.url} does not answer: {model.problem} ({model.model_id})"
        advice = "Start it, or give the model another: oskit deploy ARCHIVE --remote URL --replace"
    elif model.state in UNHEALTHY or (model.is_deployed and model.current < model.planned):
        told = f"{model.state} {placement(client, model)} ({model.model_id})"
        advice = "Bring it to all nodes with: oskit deploy ARCHIVE --redeploy; it says why one cannot load it"
    else:
        return None
    kind = "connector" if model.function_name == "CONNECTOR" else "model"
    return Finding("cluster", f"{kind} {model.name}", "warning", told, advice)
