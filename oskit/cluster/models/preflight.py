"""Cluster settings and memory breakers that stand in the way of a model, and the call that changes each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from opensearchpy import OpenSearch

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.server_words import PREFIX, settings_call
from oskit.cluster.models.registry import list_models
from oskit.errors import ClusterAuthError, ClusterSettingsError

_MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class SettingProblem:
    """One setting that stands in the way.

    Attributes:
        setting: Its full name.
        problem: What is wrong, one line.
        value: The value that would let the model through; None if no value of it would.
        certain: Whether it will refuse the model for sure; a heap that is too full now may be free in a
            second, once garbage is collected.
    """

    setting: str
    problem: str
    value: str | bool | int | list[str] | None
    certain: bool = True

    @property
    def call(self) -> str | None:
        """The exact request that changes it, for the Dev Tools console or curl."""
        return None if self.value is None else settings_call({self.setting: self.value})


def effective_settings(client: OpenSearch) -> dict[str, Any]:
    """Flat names and values in force: transient before persistent before the node's file and defaults.

    Raises:
        ClusterAuthError: The user may not see them.
    """
    with cluster_errors("read the cluster's settings"):
        answer = client.cluster.get_settings(params={"include_defaults": "true", "flat_settings": "true"})
    return {**answer.get("defaults", {}), **answer.get("persistent", {}), **answer.get("transient", {})}


def model_setting_problems(client: OpenSearch, *, uploads: bool = True) -> list[SettingProblem]:
    """What stands in the way of a local model; empty if nothing does, or if we may not look.

    Args:
        uploads: Whether an archive is going to be uploaded too.
    """
    try:
        settings = effective_settings(client)
        with cluster_errors("read the nodes' memory and disk"):
            nodes = client.nodes.stats(metric="jvm,fs")["nodes"]
    except ClusterAuthError:
        return []
    return [
        *_switches(settings, uploads),
        *_nodes_and_roles(settings, nodes),
        *_heap(settings, nodes),
        *_disk(settings, nodes),
        *_model_count(settings, client),
    ]


def raise_for_problems(problems: Sequence[SettingProblem]) -> None:
    """Refuse to go on when something is certain to refuse the model.

    Raises:
        ClusterSettingsError: Names every setting and the one call that changes them all.
    """
    certain = [problem for problem in problems if problem.certain]
    if not certain:
        return
    values = {problem.setting: problem.value for problem in certain if problem.value is not None}
    hint = (
        f"Let oskit change that with --configure-cluster, or send: {settings_call(values)}"
        if values
        else "Change it on the cluster first"
    )
    raise ClusterSettingsError(
        f"The cluster would refuse the model: {'; '.join(problem.problem for problem in certain)}", hint=hint
    )


def configure(client: OpenSearch, problems: Sequence[SettingProblem]) -> dict[str, Any]:
    """Change the settings that stand in the way, persistently, and return what was set.

    Raises:
        ClusterAuthError: The user may not change settings.
        ClusterSettingsError: The cluster refuses a value.
    """
    values = {problem.setting: problem.value for problem in problems if problem.value is not None}
    if values:
        with cluster_errors("change the cluster's settings", ClusterSettingsError):
            client.cluster.put_settings(body={"persistent": values})
    return values


def _is_true(value: Any) -> bool:
    return str(value).lower() == "true"


def _switches(settings: dict[str, Any], uploads: bool) -> Iterator[SettingProblem]:
    needed = {"local_model.enabled": "it runs no models of its own"}
    if uploads:
        needed["allow_registering_model_via_local_file"] = "it takes no uploads"
    for name, problem in needed.items():
        # The second is absent before OpenSearch 2.8; then archives may be uploaded.
        if not _is_true(settings.get(PREFIX + name, True)):
            yield SettingProblem(PREFIX + name, f"{problem} ({name} is false)", True)


def _nodes_and_roles(settings: dict[str, Any], nodes: dict[str, Any]) -> Iterator[SettingProblem]:
    roles = {role for node in nodes.values() for role in node.get("roles", ())}
    only_ml = f"{PREFIX}only_run_on_ml_node"
    eligible = f"{PREFIX}task_dispatcher.eligible_node_role.local_model"
    if _is_true(settings.get(only_ml, True)):
        if roles and "ml" not in roles:
            yield SettingProblem(
                only_ml,
                "models run on nodes with the ml role only, and it has none (only_run_on_ml_node)",
                False,
            )
        return
    wanted = settings.get(eligible, ["data", "ml"])
    wanted = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    if roles and not roles & set(wanted):
        yield SettingProblem(
            eligible,
            f"no node has a role of {', '.join(wanted)} ({eligible})",
            sorted(roles & {"data", "ml"}) or None,
        )


def _heap(settings: dict[str, Any], nodes: dict[str, Any]) -> Iterator[SettingProblem]:
    name = f"{PREFIX}jvm_heap_memory_threshold"
    threshold = int(settings.get(name, 85))
    used = max((node["jvm"]["mem"]["heap_used_percent"] for node in nodes.values()), default=0)
    if threshold < 100 and used > threshold:  # 100 switches the breaker off
        yield SettingProblem(
            name,
            f"the heap of a node is {used}% full, and above {threshold}% models are refused "
            "(jvm_heap_memory_threshold)",
            95 if threshold < 95 else 100,
            certain=False,
        )


def _disk(settings: dict[str, Any], nodes: dict[str, Any]) -> Iterator[SettingProblem]:
    name = f"{PREFIX}disk_free_space_threshold"
    threshold = parse_bytes(str(settings.get(name, "5gb")))
    free = min((node["fs"]["total"]["free_in_bytes"] for node in nodes.values()), default=None)
    if threshold is None or free is None or free >= threshold:
        return
    yield SettingProblem(
        name,
        f"a node has {free // _MEGABYTE:,} MB of free disk, and below {threshold // _MEGABYTE:,} MB "
        "models are refused (disk_free_space_threshold)",
        f"{free // 2 // _MEGABYTE}mb" if free > 200 * _MEGABYTE else None,
    )


def _model_count(settings: dict[str, Any], client: OpenSearch) -> Iterator[SettingProblem]:
    name = f"{PREFIX}max_model_on_node"
    limit = int(settings.get(name, 10))
    local = [m for m in list_models(client) if m.is_deployed and m.function_name != "REMOTE"]
    most = max(Counter(node for model in local for node in model.planned_nodes).values(), default=0)
    if most >= limit:
        yield SettingProblem(
            name,
            f"a node holds {most} models, and more than {limit} are refused (max_model_on_node)",
            most + 11,
        )


def parse_bytes(text: str) -> int | None:
    """A size as OpenSearch writes it (``5gb``, ``5368709120b``) in bytes; None if it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)b\s*", text.lower())
    return int(float(found[1]) * 1024 ** " kmgtp".index(found[2] or " ")) if found else None
