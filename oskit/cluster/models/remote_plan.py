"""What having a service answer for an archive takes: found out before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from opensearchpy import OpenSearch

from oskit.archive.archive import Archive
from oskit.cluster.client.calls import Call
from oskit.cluster.models.connectors import Connector, Remote, connector_body, list_connectors
from oskit.cluster.models.preflight import SettingProblem, changing_call
from oskit.cluster.models.registry import ML, ModelInfo, content_note, groups_called, list_models, quoted
from oskit.cluster.models.retire import Retirement
from oskit.cluster.models.retire import planned_calls as removing_calls
from oskit.cluster.models.trust import refuse_untrusted, trust_problems
from oskit.cluster.models.upload import group_body
from oskit.errors import ModelError

MOVING = " (moving)"
"""Behind a model's name: the second model that proves a new address."""

Action = Literal["reuse", "deploy", "move", "make"]


@dataclass(frozen=True)
class RemotePlan:
    """What there is to do.

    Attributes:
        action: ``reuse`` a model that is deployed, ``deploy`` one that is registered, ``move`` one to this
            address and token, or ``make`` one.
        name: Name of the model.
        url: What its connector is to call.
        model: The model of this content that is there already.
        url_now: What that one's connector calls.
        others: Remote models of the name with other content.
        problems: Settings in the way.
        group: Name or id of the model group that was asked for.
        makes_group: Whether there is none of this name yet.
    """

    action: Action
    name: str
    url: str
    model: ModelInfo | None
    url_now: str | None
    others: tuple[ModelInfo, ...]
    problems: tuple[SettingProblem, ...]
    group: str | None
    makes_group: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "action": self.action,
            "name": self.name,
            "url": self.url,
            "model": self.model.to_dict() if self.model else None,
            "url_now": self.url_now,
            "others": [model.to_dict() for model in self.others],
            "problems": [{**asdict(problem), "call": problem.call} for problem in self.problems],
        }


def plan_remote(
    client: OpenSearch,
    archive: Archive,
    remote: Remote,
    name: str | None,
    group: str | None,
    *,
    replace: bool,
) -> RemotePlan:
    """Look at the cluster and decide; changes nothing.

    Raises:
        UsageError: The URL is none.
        ClusterError: The cluster cannot be asked.
    """
    wanted, url = name or archive.name, connector_body(archive, remote, "")["actions"][0]["url"]
    usable = [
        (model, connector)
        for model, connector in usable_models(client, archive, None, group)
        if model.name == wanted or (name is None and connector.url == url)
    ]
    model, url_now = _best(usable, url)
    action: Action = "make"
    if model is not None:
        action = "move" if replace or url_now != url else "reuse" if model.is_deployed else "deploy"
    name = model.name if model else wanted
    named = list_models(client, {"term": {"name.keyword": name}})
    others = [one for one in named if one.is_remote and one.sha256 != archive.sha256]
    problems = trust_problems(client, url) if action in ("make", "move") else []
    makes_group = action == "make" and group is not None and not groups_called(client, group)
    return RemotePlan(action, name, url, model, url_now, tuple(others), tuple(problems), group, makes_group)


def usable_models(
    client: OpenSearch, archive: Archive, name: str | None, group: str | None
) -> list[tuple[ModelInfo, Connector]]:
    """Remote models of an archive, behind connectors of ours, of this name (None: of any) in the group."""
    groups = None if group is None else groups_called(client, group)
    connectors = list_connectors(client)
    return [
        (model, connectors[model.connector_id])
        for model in list_models(client)
        if model.is_remote
        and model.sha256 == archive.sha256
        and model.connector_id in connectors
        and connectors[model.connector_id].is_ours
        and name in (None, model.name)
        and not model.name.endswith(MOVING)
        and (groups is None or model.group_id in groups)
    ]


def _best(usable: Sequence[tuple[ModelInfo, Connector]], url: str) -> tuple[ModelInfo | None, str | None]:
    """Of models that would do the one that all runs choose."""
    if not usable:
        return None, None
    model, connector = min(
        usable,
        key=lambda one: (
            one[1].url != url,
            not one[0].is_deployed,
            one[0].created.timestamp() if one[0].created else 0.0,
            one[0].model_id,
        ),
    )
    return model, connector.url


def refuse_remote(plan: RemotePlan, *, replace: bool, configure_cluster: bool) -> None:
    """Refuse a plan that was not meant so, or that the cluster would refuse.

    Raises:
        ModelError: Another model has the name, or this one is served elsewhere.
        ClusterSettingsError: The cluster does not trust the address.
    """
    if not replace:
        _refuse_others(plan)
    if not configure_cluster:
        refuse_untrusted(plan.url, plan.problems)


def _refuse_others(plan: RemotePlan) -> None:
    if plan.action == "move" and plan.model is not None:
        raise ModelError(
            f"The model {plan.name!r} ({plan.model.model_id}) is served at {plan.url_now}, not at {plan.url}",
            hint="Have it ask there with --replace, or make another one with --name",
        )
    if plan.others and plan.action == "make":
        there = ", ".join(f"{model.model_id} ({model.state})" for model in plan.others)
        raise ModelError(
            f"The cluster has a remote model named {plan.name!r} with other content: {there}",
            hint="Put this one in its place with --replace, or give this one another name with --name",
        )


def registration(archive: Archive, name: str, connector_id: str, group_id: str | None) -> dict[str, Any]:
    """Body of ``POST /_plugins/_ml/models/_register``."""
    body = {
        "name": name,
        "description": f"{archive.description} ({content_note(archive.sha256)})",
        "function_name": "remote",
        "connector_id": connector_id,
        "model_config": {"model_type": "sparse_encoding"},
    }
    return body if group_id is None else {**body, "model_group_id": group_id}


def remote_calls(
    client: OpenSearch,
    archive: Archive,
    remote: Remote,
    plan: RemotePlan,
    *,
    configure_cluster: bool,
    redeploy: bool,
    leaving: Sequence[Retirement] = (),
) -> Iterator[Call]:
    """The calls that carry the plan out, if nothing comes in between; secrets are left out."""
    if configure_cluster and (settings := changing_call(plan.problems)).body:
        yield Call("PUT", settings.path, settings.body, "put back if the deployment fails")
    if plan.action in ("make", "move"):
        if plan.makes_group and plan.group is not None:
            yield _call("POST", "/model_groups/_register", group_body(plan.group, archive.description))
        body = connector_body(archive, remote, plan.name)
        yield _call(
            "POST", "/connectors/_create", {**body, "credential": dict.fromkeys(body["credential"], "…")}
        )
        group = None if plan.group is None else "…"
        trial = plan.name if plan.model is None else f"{plan.name}{MOVING}"
        if plan.model is not None:
            group = plan.model.group_id
        note = "" if plan.model is None else "to prove the address; deleted again"
        yield _call("POST", "/models/_register", registration(archive, trial, "…", group), note)
        yield _call("POST", "/models/…/_deploy")
    if plan.model is not None and plan.action == "move":
        yield _call("PUT", f"/models/{quoted(plan.model.model_id)}", {"connector_id": "…"})
        if plan.model.connector_id is not None:
            note = "if no other model uses it"
            yield _call("DELETE", f"/connectors/{quoted(plan.model.connector_id)}", note=note)
    if plan.model is not None and (plan.action == "deploy" or (redeploy and plan.action == "reuse")):
        yield _call("POST", f"/models/{quoted(plan.model.model_id)}/_deploy")
    yield from removing_calls(client, leaving, delete=True, pause=False)


def _call(method: str, path: str, body: Any = None, note: str = "") -> Call:
    return Call(method, f"{ML}{path}".lstrip("/"), body, note)
