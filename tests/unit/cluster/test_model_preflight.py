"""The preflight as a function of settings and node stats: nodes with roles, heaps and disks of their own."""

from __future__ import annotations

from typing import Any

import pytest

from oskit.cluster.models.preflight import ClusterFacts, SettingProblem, problems_of, raise_for_problems
from oskit.errors import ClusterSettingsError

ML = "plugins.ml_commons."
GB = 1024**3
OPEN = {f"{ML}allow_registering_model_via_local_file": "true"}
ANY_NODE = {**OPEN, f"{ML}only_run_on_ml_node": "false"}


def node(name: str, *roles: str, free: float = 50, heap: int = 30, **attributes: str) -> dict[str, Any]:
    return {
        "name": name,
        "roles": list(roles),
        "attributes": attributes,
        "jvm": {"mem": {"heap_used_percent": heap}},
        "fs": {"total": {"free_in_bytes": int(free * GB)}},
    }


def facts(
    settings: dict[str, Any], *nodes: dict[str, Any], models: dict[str, int] | None = None, **transient: Any
) -> ClusterFacts:
    by_id = {found["name"]: found for found in nodes}
    over = {f"{ML}{name}": value for name, value in transient.items()}
    return ClusterFacts({**settings, **over}, over.keys(), by_id, models or {})


def named(found: list[SettingProblem]) -> dict[str, Any]:
    return {problem.setting.removeprefix(ML): problem.value for problem in found}


MANAGER = node("manager", "cluster_manager", free=3, heap=99)
DATA = node("data", "data", "ingest")
RUNS_MODELS = node("models", "ml")


def test_only_nodes_that_may_run_the_model_are_judged() -> None:
    full = node("data", "data", free=1, heap=99)
    busy = {"manager": 50, "data": 50}
    assert not problems_of(facts(OPEN, MANAGER, full, RUNS_MODELS, models=busy))
    assert not problems_of(facts(ANY_NODE, MANAGER, DATA, node("coordinates", free=1, heap=99)))
    warm = node("warm", "data", free=1, heap=99, box_type="warm")
    assert not problems_of(facts(ANY_NODE, DATA, warm))
    excluded = {**ANY_NODE, f"{ML}exclude_nodes._name": "data, other"}
    assert not problems_of(facts(excluded, full, RUNS_MODELS))
    chosen = {**ANY_NODE, f"{ML}task_dispatcher.eligible_node_role.local_model": "ml"}
    assert not problems_of(facts(chosen, full, RUNS_MODELS))


def test_the_node_that_is_short_of_something_is_named() -> None:
    short = node("models", "ml", free=3, heap=91)
    found = problems_of(facts(OPEN, MANAGER, DATA, short, models={"models": 10, "data": 30}))
    assert named(found) == {
        "jvm_heap_memory_threshold": 95,
        "disk_free_space_threshold": "1536mb",
        "max_model_on_node": 21,
    }
    assert all("the node 'models'" in problem.problem for problem in found)
    assert [problem.certain for problem in found] == [False, True, True]
    assert not problems_of(facts(OPEN, short, models={"models": 10}), running=["models"])


def test_without_a_node_for_models_those_are_judged_that_the_change_would_let_in() -> None:
    short = node("data", "data", free=3)
    found = problems_of(facts(OPEN, MANAGER, short))
    assert named(found) == {"only_run_on_ml_node": False, "disk_free_space_threshold": "1536mb"}
    roles = f"{ML}task_dispatcher.eligible_node_role.local_model"
    found = problems_of(facts({**OPEN, roles: ["search"]}, MANAGER, DATA))
    assert named(found) == {"only_run_on_ml_node": False, roles.removeprefix(ML): ["data"]}
    (excluded,) = problems_of(facts({**OPEN, f"{ML}exclude_nodes._name": "models"}, DATA, RUNS_MODELS))
    assert (excluded.setting, excluded.value) == (f"{ML}exclude_nodes._name", None)
    assert named(problems_of(facts(OPEN, MANAGER, node("coordinates")))) == {
        "only_run_on_ml_node": False,
        roles.removeprefix(ML): None,
    }


def test_what_is_set_transiently_is_named_and_changed_there() -> None:
    found = problems_of(
        facts(
            {f"{ML}local_model.enabled": "false"}, RUNS_MODELS, allow_registering_model_via_local_file="false"
        )
    )
    assert [problem.transient for problem in found] == [False, True]
    assert found[1].call == (
        f'PUT _cluster/settings {{"transient": {{"{ML}allow_registering_model_via_local_file": true}}}}'
    )
    with pytest.raises(ClusterSettingsError, match="set transiently") as raised:
        raise_for_problems(found)
    assert (
        f'PUT _cluster/settings {{"persistent": {{"{ML}local_model.enabled": true}}, '
        f'"transient": {{"{ML}allow_registering_model_via_local_file": true}}}}'
    ) in str(raised.value)
