"""Back to an earlier release, or on to one that is ready, once what its searches need is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.releases import (
    Alias,
    Release,
    list_releases,
    move,
    note_move,
    read_alias,
    writes_since_living,
)
from oskit.cluster.models.predict import await_ready
from oskit.cluster.models.registry import ModelInfo, existing_model, list_models, quoted, request
from oskit.errors import IndexingError, ModelError, OskitError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.mapping import IndexInfo

Say = Callable[[str], object]


@dataclass
class Rollback:
    """What moved.

    Attributes:
        alias: What people ask for.
        index: What it stands for now.
        before: What it stood for before.
        deployed: Ids of models that were brought back into memory.
    """

    alias: str
    index: str
    before: str
    deployed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def rollback(
    client: OpenSearch, name: str, to: str | None = None, *, notify: Say = lambda _: None
) -> Rollback:
    """Have an alias stand for another of its releases.

    Args:
        client: From :func:`oskit.cluster.client.connection.connect`.
        name: The alias.
        to: The release; without it the one that was living before the living one.
        notify: Told, in one line, what a person should know.

    Raises:
        IndexingError: There is no such alias or release, it cannot be searched, the alias has moved
            meanwhile, or the cluster refuses. The alias stays where it was.
        ModelError: A model that searches need is gone, or does not answer. The alias stays where it was.
    """
    alias = read_alias(client, name)
    if alias.index is None:
        raise IndexingError(f"there is no alias {name!r}", hint=f"Make one: oskit ingest {name} … --release")
    releases = list_releases(client, alias)
    living = next(release for release in releases if release.is_living)
    target = _chosen(alias, releases, living, to)
    for release in (living, target):
        release.index.check_open(f"move the alias {name!r} from or to", writes=False)
    done = Rollback(name, target.name, alias.index)
    if target.info is not None:
        done.deployed = _deploy_models(client, target.info, notify)
    if written := writes_since_living(client, living):
        notify(f"{living.name} was written to {written:,} times since it went live: {target.name} lacks that")
    move(client, alias, target.name)
    try:
        note_move(client, alias, target.name)
    except OskitError as error:
        notify(f"{target.name} is living; that could not be recorded: {error}")
    return done


def _chosen(alias: Alias, releases: list[Release], living: Release, to: str | None) -> Release:
    known = {release.name: release for release in releases}
    if to is None:
        older = [one for one in releases if one.state == "retired" and one.order < living.order]
        before = known.get(str(living.record.get("before"))) or next(iter(older), None)
        if before is None:
            raise IndexingError(
                f"{alias.name!r} has no release before {living.name}",
                hint=f"List what there is: oskit releases {alias.name}",
            )
        return before
    if to not in known:
        raise IndexingError(
            f"{to!r} is no release of {alias.name!r}", hint=f"It has: {', '.join(known) or 'none'}"
        )
    chosen = known[to]
    why = {"live": "is living already", "building": "is still being built", "abandoned": "is unfinished"}
    why["refused"] = f"was refused: {next(iter(chosen.record.get('failures') or ()), '')}"
    if chosen.state in why:
        raise IndexingError(f"{to} {why[chosen.state]}", hint=f"See: oskit releases {alias.name}")
    return chosen


def _deploy_models(client: OpenSearch, info: IndexInfo, notify: Say) -> list[str]:
    """Have the models that are recorded for an index answer; ids of those that did not."""
    encoder = info.encoder
    queries = encoder.query_model_id or encoder.model_id
    needed = {queries: encoder.query_sha256 if encoder.query_model_id else encoder.sha256}
    if info.encode == "cluster":
        needed[encoder.model_id] = encoder.sha256
    deployed = []
    known = {model.model_id: model for model in list_models(client)} if queries else {}
    for model_id, sha256 in needed.items():
        if model_id is None:
            continue
        model = known.get(model_id) or _same(known, sha256)
        if model is None:
            raise ModelError(
                f"the model {model_id} that {info.name} needs ({encoder.name or 'unnamed'}) was deleted",
                hint="Deploy its archive again: oskit deploy ARCHIVE. Then roll back",
            )
        if not model.is_deployed and not model.is_remote:
            notify(f"Deploying the model {model.name!r} ({model.model_id}), which {info.name} needs")
            with cluster_errors(f"deploy the model {model.model_id}", ModelError):
                request(client, "POST", f"/models/{quoted(model.model_id)}/_deploy")
            deployed.append(model.model_id)
        await_ready(client, existing_model(client, model.model_id), notify=notify)
    return deployed


def _same(known: dict[str, ModelInfo], sha256: str | None) -> ModelInfo | None:
    """A deployed model of the same content, which searches find."""
    return next(
        (model for model in known.values() if sha256 and model.sha256 == sha256 and model.is_deployed), None
    )
