"""What deploying an archive takes: found out before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from opensearchpy import OpenSearch

from oskit.archive.archive import Archive, open_archive
from oskit.cluster.client.calls import Call
from oskit.cluster.models.chunks import chunks_present
from oskit.cluster.models.preflight import (
    SettingProblem,
    changing_call,
    model_setting_problems,
    raise_for_problems,
)
from oskit.cluster.models.registry import (
    ML,
    ModelInfo,
    groups_called,
    list_models,
    running_nodes,
)
from oskit.cluster.models.retire import Retirement, look_at
from oskit.cluster.models.retire import planned_calls as removing_calls
from oskit.cluster.models.rivals import models_of_content
from oskit.cluster.models.upload import group_body, register_body
from oskit.errors import ArchiveError, ClusterError, ModelError, UntrainedEncoderError

Action = Literal["reuse", "await", "redeploy", "deploy", "resume", "upload"]

_ACTIONS: dict[str, Action] = {
    "DEPLOYED": "reuse",
    "PARTIALLY_DEPLOYED": "reuse",
    "DEPLOYING": "await",
    "REGISTERED": "deploy",
    "UNDEPLOYED": "deploy",
    "DEPLOY_FAILED": "deploy",
    "REGISTERING": "resume",
}
_PREFERENCE: tuple[Action, ...] = ("reuse", "await", "deploy", "resume")


@dataclass(frozen=True)
class DeploymentPlan:
    """What deploying an archive would do.

    Attributes:
        action: ``reuse`` a deployed model, ``await`` one that is being deployed, ``redeploy`` one that is
            deployed to nodes that lack it, ``deploy`` a registered one, ``resume`` an interrupted upload, or
            ``upload`` a new one.
        name: Name of the model.
        model: The model of this content that is there already.
        others: Models of the same name, function and format with other content, newest first. The other
            format of an encoder is no other content: ML Commons tells them apart, and both may be deployed.
        problems: Settings in the way.
        group: Name or id of the model group that was asked for.
        makes_group: Whether there is none of this name yet.
    """

    action: Action
    name: str
    model: ModelInfo | None
    others: tuple[ModelInfo, ...]
    problems: tuple[SettingProblem, ...]
    group: str | None = None
    makes_group: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "action": self.action,
            "name": self.name,
            "model": self.model.to_dict() if self.model else None,
            "others": [model.to_dict() for model in self.others],
            "problems": [{**asdict(problem), "call": problem.call} for problem in self.problems],
        }


def plan_deployment(
    client: OpenSearch,
    archive: Archive,
    *,
    name: str | None = None,
    group: str | None = None,
    redeploy: bool = False,
) -> DeploymentPlan:
    """Look at the cluster and decide what deploying the archive takes; changes nothing.

    Args:
        name: Name of the model; None takes the archive's, and any model of the same content will do.
        group: Name or id of a model group; None lets the cluster make one of the model's name.
        redeploy: Deploy a model again that is deployed already.

    Raises:
        ClusterError: The cluster cannot be asked.
    """
    wanted = name or archive.name
    groups = None if group is None else groups_called(client, group)
    usable = [model for model in models_of_content(client, archive, name, groups) if model.state in _ACTIONS]
    # Of two unfinished uploads the one goes on that all runs choose.
    model = min(
        usable,
        key=lambda found: (
            _PREFERENCE.index(_ACTIONS[found.state]),
            found.name != wanted,
            found.created.timestamp() if found.created else 0.0,
            found.model_id,
        ),
        default=None,
    )
    action: Action = "upload" if model is None else _ACTIONS[model.state]
    if redeploy and action == "reuse":
        action = "redeploy"
    problems: list[SettingProblem] = []
    if action not in ("reuse", "await"):
        running = _running(client, model) if model is not None and action == "redeploy" else ()
        problems = model_setting_problems(client, uploads=action in ("upload", "resume"), running=running)
    name = model.name if model else wanted
    others = [
        other
        for other in list_models(client, {"term": {"name.keyword": name}})
        if other.sha256 != archive.sha256
        and (other.function_name, other.format) == (archive.function_name, archive.model_format)
    ]
    makes_group = action == "upload" and groups == []
    return DeploymentPlan(action, name, model, tuple(others), tuple(problems), group, makes_group)


def _running(client: OpenSearch, model: ModelInfo) -> Collection[str]:
    try:
        return running_nodes(client, model.model_id)
    except ClusterError:  # the permission is another one; all nodes are judged then
        return ()


def refuse_untrained(archive: Archive) -> None:
    """Refuse an archive whose projection is random.

    Raises:
        UntrainedEncoderError: It is.
    """
    if archive.manifest is not None and archive.manifest.source.head == "random":
        raise UntrainedEncoderError(
            f"{archive.path} was exported with a random projection: it retrieves nothing useful",
            hint="Train the encoder first, or deploy it anyway with --allow-untrained",
        )


def refuse(plan: DeploymentPlan, *, replace: bool, configure_cluster: bool) -> None:
    """Refuse a plan that was not meant so, or that the cluster would refuse.

    Raises:
        ModelError: Another model has the name.
        ClusterSettingsError: A setting stands in the way.
    """
    if plan.others and not replace and plan.action not in ("reuse", "await", "redeploy"):
        there = ", ".join(f"{model.model_id} ({model.state})" for model in plan.others)
        raise ModelError(
            f"The cluster has a model named {plan.name!r} with other content: {there}",
            hint="Put this one in its place with --replace, or give this one another name with --name",
        )
    raise_for_problems([p for p in plan.problems if p.value is None or not configure_cluster])


def looked_at(client: OpenSearch, others: Sequence[ModelInfo]) -> list[Retirement]:
    """A plan's others, and who uses each: one by one, as they are replaced."""
    return [one for other in others for one in look_at(client, [other], delete=True)[0]]


def planned_calls(
    client: OpenSearch,
    archive: Archive,
    plan: DeploymentPlan,
    *,
    configure_cluster: bool,
    leaving: Sequence[Retirement] = (),
) -> Iterator[Call]:
    """The calls that carry the plan out, if nothing comes in between; asks the cluster, changes nothing.

    Args:
        leaving: Those of the plan's others that are replaced, see :func:`looked_at`.
    """
    if configure_cluster and (settings := changing_call(plan.problems)).body:
        yield Call("PUT", settings.path, settings.body, "put back if the deployment fails")
    model_id = "…" if plan.model is None else plan.model.model_id
    if plan.action == "upload":
        group = None if plan.group is None else "…"
        if plan.makes_group and plan.group is not None:
            body = group_body(plan.group, archive.description)
            yield _ml_call("POST", "/model_groups/_register", body)
        elif plan.group is not None:
            group = groups_called(client, plan.group)[0]
        yield _ml_call("POST", "/models/_register_meta", register_body(archive, plan.name, group))
    if plan.action in ("upload", "resume"):
        present = chunks_present(client, model_id) if plan.action == "resume" else set()
        missing = archive.total_chunks - len(present - {archive.total_chunks - 1})
        note = f"{missing} of {archive.total_chunks} chunks, a request each"
        yield _ml_call("POST", f"/models/{model_id}/upload_chunk/…", note=note)
    if plan.action not in ("reuse", "await"):
        yield _ml_call("POST", f"/models/{model_id}/_deploy")
    yield from removing_calls(client, leaving, delete=True, pause=False)


def _ml_call(method: str, path: str, body: Any = None, note: str = "") -> Call:
    return Call(method, f"{ML}{path}".lstrip("/"), body, note)


def archives_in(path: str | Path, model_format: str | None = None) -> list[Archive]:
    """The archives that deploying ``path`` means.

    Args:
        path: A zip or the folder of one archive: that one. The folder of an export: its encoder, and its
            tokenizer archive if there is one.
        model_format: ``"onnx"`` or ``"torchscript"``: which encoder of an export; None prefers ONNX.

    Raises:
        ArchiveError: There is no such archive, or it is not usable.
    """
    folder = Path(path)
    encoders = [name for name in ("onnx", "torchscript") if list((folder / name).glob("*.zip"))]
    if not encoders or list(folder.glob("*.zip")):
        archive = open_archive(folder)
        actual = archive.model_format.replace("_", "").lower()
        if model_format is not None and archive.kind == "encoder" and actual != model_format:
            raise ArchiveError(f"{archive.path} is {actual}, not {model_format}", hint="Leave out --format")
        return [archive]
    if model_format is not None and model_format not in encoders:
        raise ArchiveError(
            f"{folder} has no {model_format} archive, only {encoders[0]}",
            hint=f"Export it with: oskit export MODEL --format {model_format}",
        )
    found = [open_archive(folder / (model_format or encoders[0]))]
    if list((folder / "tokenizer").glob("*.zip")):
        found.append(open_archive(folder / "tokenizer"))
    return found
