"""What deploying an archive takes: found out before anything is changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from opensearchpy import OpenSearch

from oskit.archive.archive import Archive, open_archive
from oskit.cluster.models.preflight import SettingProblem, model_setting_problems
from oskit.cluster.models.registry import ModelInfo, groups_called, list_models
from oskit.errors import ArchiveError

Action = Literal["reuse", "await", "deploy", "resume", "upload"]

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
        action: ``reuse`` a deployed model, ``await`` one that is being deployed, ``deploy`` a registered one,
            ``resume`` an interrupted upload, or ``upload`` a new one.
        name: Name of the model.
        model: The model of this content that is there already.
        others: Models of the same name, function and format with other content, newest first. The other
            format of an encoder is no other content: ML Commons tells them apart, and both may be deployed.
        problems: Settings in the way.
    """

    action: Action
    name: str
    model: ModelInfo | None
    others: tuple[ModelInfo, ...]
    problems: tuple[SettingProblem, ...]

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
    client: OpenSearch, archive: Archive, *, name: str | None = None, group: str | None = None
) -> DeploymentPlan:
    """Look at the cluster and decide what deploying the archive takes; changes nothing.

    Args:
        name: Name of the model; None takes the archive's, and any model of the same content will do.
        group: Name or id of a model group; None lets the cluster make one of the model's name.

    Raises:
        ClusterError: The cluster cannot be asked.
    """
    wanted = name or archive.name
    groups = None if group is None else groups_called(client, group)
    usable = [
        model
        for model in list_models(client, {"term": {"model_content_hash_value": archive.sha256}})
        if model.function_name == archive.function_name
        and name in (None, model.name)
        and (groups is None or model.group_id in groups)
        and _is_usable(model, archive)
    ]
    model = min(
        usable,
        key=lambda found: (_PREFERENCE.index(_ACTIONS[found.state]), found.name != wanted),
        default=None,
    )
    action: Action = "upload" if model is None else _ACTIONS[model.state]
    problems: list[SettingProblem] = []
    if action not in ("reuse", "await"):
        problems = model_setting_problems(client, uploads=action != "deploy")
    name = model.name if model else wanted
    others = [
        other
        for other in list_models(client, {"term": {"name.keyword": name}})
        if other.sha256 != archive.sha256
        and (other.function_name, other.format) == (archive.function_name, archive.model_format)
    ]
    return DeploymentPlan(action, name, model, tuple(others), tuple(problems))


def _is_usable(model: ModelInfo, archive: Archive) -> bool:
    action = _ACTIONS.get(model.state)
    if action == "reuse":
        return True
    if action is None or model.has_config:  # with a model_config it can never be deployed
        return False
    # An upload in chunks of another size cannot be continued.
    return action != "resume" or model.total_chunks == archive.total_chunks


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
