"""Cluster settings and memory breakers that stand in the way of a model, and the call that changes each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from opensearchpy import OpenSearch

from oskit.cluster.client.calls import Call, settings_call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.server_words import PREFIX
from oskit.cluster.models.registry import IN_MEMORY_STATES, list_models
from oskit.errors import ClusterAuthError, ClusterSettingsError

ONLY_ML = f"{PREFIX}only_run_on_ml_node"
ELIGIBLE_ROLES = f"{PREFIX}task_dispatcher.eligible_node_role.local_model"
LOCAL_MODELS = f"{PREFIX}local_model.enabled"
_UPLOADS = f"{PREFIX}allow_registering_model_via_local_file"
_EXCLUDED = f"{PREFIX}exclude_nodes._name"
_HEAP = f"{PREFIX}jvm_heap_memory_threshold"
_DISK = f"{PREFIX}disk_free_space_threshold"
_MODELS = f"{PREFIX}max_model_on_node"

_MEGABYTE = 1024 * 1024

Value = str | bool | int | list[str]


@dataclass(frozen=True)
class SettingProblem:
    """One setting that stands in the way.

    Attributes:
        setting: Its full name.
        problem: What is wrong, one line.
        value: The value that would let the model through; None if no value of it would.
        certain: Whether it will refuse the model for sure; a heap that is too full now may be free in a
            second, once garbage is collected.
        transient: Whether it is set transiently. Then a persistent value has no effect.
    """

    setting: str
    problem: str
    value: Value | None
    certain: bool = True
    transient: bool = False

    @property
    def call(self) -> str | None:
        """The exact request that changes it, for the Dev Tools console or curl."""
        return None if self.value is None else str(changing_call([self]))


@dataclass(frozen=True)
class ClusterFacts:
    """What decides whether nodes take a model.

    Attributes:
        settings: Flat names and values in force.
        transient: Names of those that are set transiently.
        nodes: As in ``GET _nodes/stats/jvm,fs``, by id.
        models: How many local models each node has in memory, or should have, by id.
    """

    settings: Mapping[str, Any]
    transient: Set[str]
    nodes: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, int]


def changing_call(problems: Sequence[SettingProblem]) -> Call:
    """The one request that changes all the settings that a value helps, each where it is set."""
    body: dict[str, dict[str, Value]] = {}
    for problem in problems:
        if problem.value is not None:
            kind = "transient" if problem.transient else "persistent"
            body.setdefault(kind, {})[problem.setting] = problem.value
    return settings_call(body)


def all_settings(client: OpenSearch) -> dict[str, dict[str, Any]]:
    """Flat names and values, ``persistent``, ``transient`` and ``defaults`` (with the node's file) apart.

    Raises:
        ClusterAuthError: The user may not see them.
    """
    with cluster_errors("read the cluster's settings"):
        answer = client.cluster.get_settings(params={"include_defaults": "true", "flat_settings": "true"})
    return {kind: dict(answer.get(kind) or {}) for kind in ("defaults", "persistent", "transient")}


def in_force(known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of :func:`all_settings` what counts: transient before persistent before node's file and defaults."""
    return {**known["defaults"], **known["persistent"], **known["transient"]}


def effective_settings(client: OpenSearch) -> dict[str, Any]:
    """Flat names and values in force: transient before persistent before the node's file and defaults.

    Raises:
        ClusterAuthError: The user may not see them.
    """
    return in_force(all_settings(client))


def model_setting_problems(
    client: OpenSearch, *, uploads: bool = True, running: Collection[str] = ()
) -> list[SettingProblem]:
    """What stands in the way of a local model; empty if nothing does, or if we may not look.

    Args:
        uploads: Whether an archive is going to be uploaded too.
        running: Ids of nodes that have the model in memory already.
    """
    try:
        known = all_settings(client)
        with cluster_errors("read the nodes' memory and disk"):
            nodes = client.nodes.stats(metric="jvm,fs")["nodes"]
    except ClusterAuthError:
        return []
    local = [m for m in list_models(client) if m.state in IN_MEMORY_STATES and not m.is_remote]
    models = Counter(node for model in local for node in model.planned_nodes)
    facts = ClusterFacts(in_force(known), known["transient"].keys(), nodes, models)
    return problems_of(facts, uploads=uploads, running=running)


def problems_of(
    facts: ClusterFacts, *, uploads: bool = True, running: Collection[str] = ()
) -> list[SettingProblem]:
    """What stands in the way of a local model, judged by the nodes that may run it.

    Where no node may, those are judged that may once the settings are changed as proposed.

    Args:
        uploads: Whether an archive is going to be uploaded too.
        running: Ids of nodes that have the model in memory already: nothing is asked of them.
    """
    roles = list(_no_node(facts))
    proposed = {problem.setting: problem.value for problem in roles if problem.value is not None}
    eligible = eligible_nodes({**facts.settings, **proposed}, facts.nodes)
    judged = {node_id: node for node_id, node in eligible.items() if node_id not in running}
    found = [
        *_switches(facts.settings, uploads),
        *roles,
        *_heap(facts.settings, judged),
        *_disk(facts.settings, judged),
        *_model_count(facts, judged),
    ]
    return [_placed(problem, facts.transient) for problem in found]


def eligible_nodes(
    settings: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The nodes that ML Commons gives local models to; one whose roles we do not see may be one of them."""
    excluded = _names(settings.get(_EXCLUDED, ""))
    wanted = {"ml"} if is_true(settings.get(ONLY_ML, True)) else _eligible_roles(settings)
    return {
        node_id: node
        for node_id, node in nodes.items()
        if node.get("name") not in excluded and ("roles" not in node or wanted & _roles_for_models(node))
    }


def raise_for_problems(problems: Sequence[SettingProblem]) -> None:
    """Refuse to go on when something is certain to refuse the model.

    Raises:
        ClusterSettingsError: Names every setting and the one call that changes them all.
    """
    certain = [problem for problem in problems if problem.certain]
    if not certain:
        return
    call = changing_call(certain)
    hint = "Change it on the cluster first"
    if call.body:
        hint = f"Let oskit change that with --configure-cluster, or send: {call}"
    raise ClusterSettingsError(
        f"The cluster would refuse the model: {'; '.join(problem.problem for problem in certain)}", hint=hint
    )


def _placed(problem: SettingProblem, transient: Set[str]) -> SettingProblem:
    """The problem, with where its setting is set."""
    if problem.setting not in transient:
        return problem
    said = f"{problem.problem}; it is set transiently, before which a persistent value has no effect"
    return SettingProblem(problem.setting, said, problem.value, problem.certain, transient=True)


def is_true(value: Any) -> bool:
    """Whether a setting is on, as OpenSearch answers with it."""
    return str(value).lower() == "true"


def _names(value: Any) -> set[str]:
    """What a list setting holds, which may be written as a string with commas."""
    listed = value.split(",") if isinstance(value, str) else value
    return {str(name).strip() for name in listed} - {""}


def _eligible_roles(settings: Mapping[str, Any]) -> set[str]:
    return _names(settings.get(ELIGIBLE_ROLES, ["data", "ml"]))


def _roles_for_models(node: Mapping[str, Any]) -> set[str]:
    """Its roles; a node of ``box_type`` warm or cold does not count as a data node."""
    is_hot = (node.get("attributes") or {}).get("box_type", "hot") == "hot"
    return set(node["roles"]) - (set() if is_hot else {"data"})


def _switches(settings: Mapping[str, Any], uploads: bool) -> Iterator[SettingProblem]:
    needed = {LOCAL_MODELS: "it runs no models of its own"}
    if uploads:
        needed[_UPLOADS] = "it takes no uploads"
    for name, problem in needed.items():
        # The second is absent before OpenSearch 2.8; then archives may be uploaded.
        if not is_true(settings.get(name, True)):
            yield SettingProblem(name, f"{problem} ({name.removeprefix(PREFIX)} is false)", True)


def _no_node(facts: ClusterFacts) -> Iterator[SettingProblem]:
    """Settings that leave no node for a model, in the order in which they have to change."""
    settings = dict(facts.settings)
    if not facts.nodes or eligible_nodes(settings, facts.nodes):
        return
    if eligible_nodes({**settings, _EXCLUDED: ""}, facts.nodes):
        yield SettingProblem(_EXCLUDED, f"the nodes that could run it are excluded ({_EXCLUDED})", None)
        return
    if is_true(settings.get(ONLY_ML, True)):
        yield SettingProblem(
            ONLY_ML,
            "models run on nodes with the ml role only, and it has none (only_run_on_ml_node)",
            False,
        )
        settings[ONLY_ML] = False
        if eligible_nodes(settings, facts.nodes):
            return

    def would_help(role: str) -> bool:
        return bool(eligible_nodes({**settings, ELIGIBLE_ROLES: role}, facts.nodes))

    there = [role for role in ("data", "ml") if would_help(role)]
    roles = ", ".join(sorted(_eligible_roles(settings))) or "none"
    yield SettingProblem(ELIGIBLE_ROLES, f"no node has a role of {roles} ({ELIGIBLE_ROLES})", there or None)


def _heap(settings: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[SettingProblem]:
    threshold = int(settings.get(_HEAP, 85))
    used = {node_id: int(node["jvm"]["mem"]["heap_used_percent"]) for node_id, node in nodes.items()}
    fullest = max(used, key=used.__getitem__, default=None)
    # 100 switches the breaker off
    if fullest is not None and threshold < 100 and used[fullest] > threshold:
        yield SettingProblem(
            _HEAP,
            f"the heap of {_named(nodes, fullest)} is {used[fullest]}% full, and above {threshold}% models "
            "are refused (jvm_heap_memory_threshold)",
            95 if threshold < 95 else 100,
            certain=False,
        )


def _disk(settings: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[SettingProblem]:
    threshold = parse_bytes(str(settings.get(_DISK, "5gb")))
    free = {node_id: int(node["fs"]["total"]["free_in_bytes"]) for node_id, node in nodes.items()}
    fullest = min(free, key=free.__getitem__, default=None)
    if threshold is None or fullest is None or free[fullest] >= threshold:
        return
    least = free[fullest]
    yield SettingProblem(
        _DISK,
        f"{_named(nodes, fullest)} has {least // _MEGABYTE:,} MB of free disk, and below "
        f"{threshold // _MEGABYTE:,} MB models are refused (disk_free_space_threshold)",
        f"{least // 2 // _MEGABYTE}mb" if least > 200 * _MEGABYTE else None,
    )


def _model_count(facts: ClusterFacts, nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[SettingProblem]:
    limit = int(facts.settings.get(_MODELS, 10))
    fullest = max(nodes, key=lambda node_id: facts.models.get(node_id, 0), default=None)
    most = 0 if fullest is None else facts.models.get(fullest, 0)
    if fullest is not None and most >= limit:
        yield SettingProblem(
            _MODELS,
            f"{_named(nodes, fullest)} holds {most} models, and more than {limit} are refused "
            "(max_model_on_node)",
            most + 11,
        )


def _named(nodes: Mapping[str, Mapping[str, Any]], node_id: str) -> str:
    return f"the node {str(nodes[node_id].get('name', node_id))!r}"


def parse_bytes(text: str) -> int | None:
    """A size as OpenSearch writes it (``5gb``, ``5368709120b``) in bytes; None if it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)b\s*", text.lower())
    return int(float(found[1]) * 1024 ** " kmgtp".index(found[2] or " ")) if found else None
