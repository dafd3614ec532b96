"""Which releases go: what runs that are dead have left, and what is older than people want to keep.

What a pruning is going to do stands in the record of the living release before it begins, so that the next
run goes on with it if this one is killed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.existing import look
from oskit.cluster.index.pipeline import no_pipeline
from oskit.cluster.index.releases import Alias, Release, list_releases, note
from oskit.cluster.index.trials import settle
from oskit.cluster.models.registry import get_model
from oskit.cluster.models.retire import retire
from oskit.errors import IndexingError, ModelError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

Say = Callable[[str], None]


@dataclass
class Pruned:
    """What a pruning did.

    Attributes:
        indexes: Releases that are gone.
        models: Ids of models that are gone.
        kept: What would have gone and did not, and why.
    """

    indexes: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def discard(client: OpenSearch, name: str) -> bool:
    """Delete an index that no alias stands for, and before it its pipeline; whether it is gone.

    Raises:
        IndexingError: The cluster refuses.
    """
    found = look(client, name)
    if found is None:
        return True
    if found.aliases:
        return False
    no_pipeline(client, name).make(client)
    with cluster_errors(f"delete the index {name!r}", IndexingError):
        client.indices.delete(index=name, params={"ignore_unavailable": "true"})
    return True


def tidy(client: OpenSearch, alias: Alias, say: Say) -> None:
    """Before a release: clean up after earlier ones that are dead, were refused, or were killed pruning.

    Raises:
        IndexingError: Another one is at work, or the cluster refuses.
    """
    for release in list_releases(client, alias):
        if release.is_at_work:
            raise being_built(alias, release)
        if release.state in ("abandoned", "refused", "ready"):
            settle(client)
            if discard(client, release.name):
                why = {"refused": "was refused", "ready": "was never put in place"}.get(release.state)
                say(f"Deleted {release.name}, which {why or 'a run left unfinished'} ({release.built_by})")
        if isinstance(planned := release.record.get("pruning"), Mapping):
            _carry_out(client, alias, release.name, planned, say)


def being_built(alias: Alias, release: Release) -> IndexingError:
    """What is told to the second of two that release at once."""
    return IndexingError(
        f"another release of {alias.name!r} is being built: {release.name}, by {release.built_by}",
        hint=f"Wait for it. If that run is dead for sure: DELETE {release.name} (an hour after it was last "
        "heard of the next release does that)",
    )


def prune(client: OpenSearch, alias: Alias, keep: int, say: Say) -> Pruned:
    """Delete older releases, and the models that nobody uses any more.

    Args:
        alias: As it is now.
        keep: How many stay, the living one and those that were living last.
        say: Told what goes, before.

    Raises:
        IndexingError: The cluster refuses.
    """
    leaving = older(list_releases(client, alias), keep - 1)
    if not leaving or alias.index is None:
        return Pruned()
    models = list(dict.fromkeys(model for release in leaving for model in _models(release)))
    planned = {"indexes": [release.name for release in leaving], "models": models}
    note(client, alias.index, {"pruning": planned})
    return _carry_out(client, alias, alias.index, planned, say)


def older(releases: Sequence[Release], spared: int) -> list[Release]:
    """The retired releases, but those that were living last."""
    retired = [release for release in releases if release.state == "retired" and release.record]
    retired.sort(key=lambda release: release.lived_until, reverse=True)
    return retired[spared:]


def _models(release: Release) -> list[str]:
    encoder = release.info.encoder if release.info else None
    return [id_ for id_ in (encoder and encoder.model_id, encoder and encoder.query_model_id) if id_]


def _carry_out(
    client: OpenSearch, alias: Alias, holder: str, planned: Mapping[str, Sequence[str]], say: Say
) -> Pruned:
    """Delete what was planned, as far as nobody uses it; what is gone already is gone."""
    done = Pruned()
    there = {release.name: release for release in list_releases(client, alias)}
    for name in planned.get("indexes", ()):
        release = there.get(name)
        if release is None or release.state != "retired" or not release.record:
            continue
        if release.others:
            done.kept[name] = f"it is {', '.join(release.others)} too"
            continue
        say(f"Deleting {name}, which was living until {release.record.get('retired')}")
        if discard(client, name):
            done.indexes.append(name)
    for model_id in planned.get("models", ()):
        model = get_model(client, model_id)
        if model is None:
            continue
        say(f"Deleting the model {model.name!r} ({model_id}), if nobody uses it")
        try:
            retire(client, [model], delete=True, notify=say)
        except ModelError as error:
            done.kept[model_id] = error.message
        else:
            done.models.append(model_id)
    for what, why in done.kept.items():
        say(f"{what} stays: {why}")
    note(client, holder, {"pruning": None})
    return done
