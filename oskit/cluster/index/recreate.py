"""An index of ours gives way to another of the same name, but only once that other one has been tried.

The trial is a hidden index of a temporary name, made as the new one will be, that takes documents before the
old index goes. It also remembers the aliases for the moment between the two, so that they are not lost
if the process is killed there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.calls import Call
from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.retry import impatient
from oskit.cluster.client.server_words import ALREADY_THERE
from oskit.cluster.index.existing import ExistingIndex, look
from oskit.cluster.index.mapping import IndexInfo, IndexSettings, delete_index, index_body
from oskit.cluster.index.meta import META_KEY, change_own_meta, changed_meta, own_meta
from oskit.cluster.index.names import check_index_name
from oskit.cluster.index.owner import is_gone, owner
from oskit.cluster.index.pipeline import pipeline_name
from oskit.errors import ClusterError, IndexingError, OskitError, with_more

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

_MARK = "-oskit-trial-"

ABANDONED_AFTER_S = 3600.0
"""A trial of another machine that is older than this has been left behind."""


class Trial:
    """What the new index will be, under another name.

    Attributes:
        info: Of the trial's index.
    """

    def __init__(
        self, client: OpenSearch, old: ExistingIndex, info: IndexInfo, settings: IndexSettings
    ) -> None:
        self._client = client
        self._old = old
        self._new, self._settings = info, settings
        stem = info.name.encode()[: 255 - len(_MARK) - 8].decode(errors="ignore")
        self.info = replace(info, name=f"{stem}{_MARK}{uuid.uuid4().hex[:8]}")
        self._is_needed = False

    def calls(self, pipeline: list[Call]) -> list[Call]:
        """What is sent until the new index is there; ``pipeline``: to make the trial's."""
        name, trial = self._old.name, self.info.name
        only = "only once the trial has taken a document"
        memory = {"aliases": dict(self._old.aliases), "meta": self._old.meta_of_others}
        body = self._body()
        return [
            Call("PUT", trial, body, "a trial, deleted again"),
            *pipeline,
            Call("POST", f"{trial}/_bulk", note="the first documents"),
            Call("PUT", f"{trial}/_mapping", changed_meta(body["mappings"], memory), only),
            Call("DELETE", name, note=only),
            Call("PUT", name, _body_after(self._old, self._new, self._settings)),
            Call("DELETE", trial),
            *(Call("DELETE", call.path) for call in pipeline),
        ]

    def _body(self) -> dict[str, Any]:
        body = index_body(self.info, self._settings)
        body["settings"]["index"]["hidden"] = True
        body["mappings"]["_meta"][META_KEY] |= {"trial": True, "for": self._old.name, **owner()}
        # A filter may need a mapping that the new index has not: then its alias cannot be made either.
        body["aliases"] = {
            f"{self.info.name}-{number}": {**_without_write_index(alias), "is_hidden": True}
            for number, alias in enumerate(self._old.aliases.values())
        }
        return body

    def open(self) -> None:
        """Create the trial's index.

        Raises:
            IndexingError: The cluster refuses.
        """
        with cluster_errors(f"create an index as {self._old.name!r} would be", IndexingError):
            create_unseen(self._client, self.info.name, self._body())

    def close(self) -> None:
        """Delete the trial and its pipeline, unless the aliases that it knows are nowhere else."""
        if not self._is_needed and look(self._client, self.info.name) is not None:
            delete_index(self._client, self.info.name)

    def replace_index(self) -> None:
        """Delete the old index, and create the new one with its aliases.

        Raises:
            IndexingError: Somebody has replaced or deleted the old one meanwhile, or the cluster refuses.
        """
        client, name = self._client, self._old.name
        now = look(client, name)
        if now is None or now.uuid != self._old.uuid:
            raise IndexingError(
                f"somebody else has {'deleted' if now is None else 'replaced'} the index {name!r} meanwhile",
                hint="Look at what there is now, and run the same command again",
            )
        with cluster_errors(f"delete the index {name!r}", IndexingError):
            memory = {"aliases": dict(now.aliases), "meta": now.meta_of_others}
            change_own_meta(client, self.info.name, memory)
            self._is_needed = True
            try:
                client.indices.delete(index=name, params={"ignore_unavailable": "true"})
            except BaseException:
                with suppress(OskitError), impatient(client):
                    self._is_needed = look(client, name) is None
                raise
        try:
            self._create(_body_after(now, self._new, self._settings))
        except OskitError as error:
            raise type(error)(
                f"the index {name!r} was deleted, and the new one cannot be made: {error.message}",
                hint=with_more(error.hint, f"Run the same command again{self._aliases_told(now)}"),
            ) from error
        self._is_needed = False

    def _create(self, body: dict[str, Any]) -> None:
        try:
            create(self._client, self._new.name, body)
        except ClusterError as error:
            if "shards" not in error.message:
                raise
            self._is_needed = False  # the trial itself may be what exceeds the limit
            self.close()
            create(self._client, self._new.name, body)

    def _aliases_told(self, old: ExistingIndex) -> str:
        if not old.aliases:
            return ""
        if self._is_needed:
            return f", which brings the aliases back: {', '.join(old.aliases)}"
        return f", and add what it was called by: {json.dumps(dict(old.aliases))}"


@contextmanager
def trial_of(
    client: OpenSearch, old: ExistingIndex, info: IndexInfo, settings: IndexSettings
) -> Iterator[Trial]:
    """A trial of what shall take the place of ``old``; nothing is left of it, whatever happens.

    Raises:
        IndexingError: The cluster refuses.
    """
    trial = Trial(client, old, info, settings)
    try:
        trial.open()
        yield trial
    except BaseException:
        with suppress(OskitError), impatient(client):
            settle(client)
        with suppress(OskitError), impatient(client):
            trial.close()
        raise
    trial.close()


def create_unseen(client: OpenSearch, name: str, body: dict[str, Any]) -> None:
    """Create an index that no pattern finds and no alias of index templates stands for.

    What templates would call it by is what others search and write to: it has that not for a moment. Whoever
    may not ask for templates finds out when the index is there.
    """
    given: dict[str, Any] = {}
    with suppress(OskitError), cluster_errors("see the index templates", IndexingError):
        answer = client.indices.simulate_index_template(name=name)
        given = (answer.get("template") or {}).get("aliases") or {}
    nothing = {"is_write_index": False, "filter": {"match_none": {}}}
    own = body.setdefault("aliases", {})
    body["settings"]["index"]["hidden"] = True
    body["aliases"] = own | {alias: {**found, **nothing} for alias, found in given.items()}
    client.indices.create(index=name, body=body)
    there = client.indices.get_alias(index=name)[name]["aliases"]
    if others := [alias for alias in there if alias not in own]:
        client.indices.delete_alias(index=name, name=",".join(others))


def create(client: OpenSearch, name: str, body: Mapping[str, Any]) -> bool:
    """Create an index; False if somebody else has done so.

    Raises:
        IndexingError: The cluster refuses.
    """
    check_index_name(name)
    with cluster_errors(f"create the index {name!r}", IndexingError):
        try:
            client.indices.create(index=name, body=body)
        except Exception as failure:
            if heard(failure) is ALREADY_THERE:
                return False
            raise
    return True


def create_new(client: OpenSearch, info: IndexInfo, settings: IndexSettings) -> tuple[bool, list[str]]:
    """Create an index that is not there, with the aliases that a killed --recreate has left it without.

    Returns:
        Whether we did, or somebody else did meanwhile; and the aliases that came back.

    Raises:
        IndexingError: The cluster refuses.
    """
    body, left = _new(client, info, settings)
    created = create(client, info.name, body)
    for trial in left if created else ():
        delete_index(client, trial)
    return created, list(body.get("aliases", ())) if created else []


def calls_of_new(client: OpenSearch, info: IndexInfo, settings: IndexSettings) -> list[Call]:
    """What :func:`create_new` sends."""
    body, left = _new(client, info, settings)
    return [Call("PUT", info.name, body), *(Call("DELETE", trial) for trial in left)]


def _new(
    client: OpenSearch, info: IndexInfo, settings: IndexSettings
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Body of a new index, and the trials whose aliases are in it."""
    body = index_body(info, settings)
    left: dict[str, dict[str, Any]] = {}
    with suppress(OskitError):  # whoever may not see trials has left none behind
        left = {trial: own for trial, own in trials(client, info.name).items() if "aliases" in own}
    for own in left.values():
        body["aliases"] = {**body.get("aliases", {}), **own["aliases"]}
        body["mappings"]["_meta"] = {**own.get("meta", {}), **body["mappings"]["_meta"]}
    return body, left


def sweep(client: OpenSearch, name: str) -> None:
    """Delete the trials for an index that nobody works with any more.

    One that remembers aliases stays until the index is there again. Whoever may not see or delete them has
    left none behind.
    """
    with suppress(OskitError):
        for trial, own in trials(client, name).items():
            if not is_abandoned(client, trial, own):
                continue
            settle(client)
            if "aliases" not in own or look(client, name) is not None:
                delete_index(client, trial)


def settle(client: OpenSearch) -> None:
    """Wait until the cluster has done what a process that was cut off still asked it to do."""
    with cluster_errors("wait for what the cluster has yet to do", IndexingError):
        client.cluster.health(params={"wait_for_events": "languid"})


def trials(client: OpenSearch, name: str | None = None) -> dict[str, dict[str, Any]]:
    """``_meta.oskit`` of the trials for an index, or for any.

    Raises:
        IndexingError: The cluster refuses.
    """
    stem = "*" if name is None else name.encode()[: 255 - len(_MARK) - 8].decode(errors="ignore")
    with cluster_errors(f"look for trials of {'indexes' if name is None else repr(name)}", IndexingError):
        answer = client.indices.get_mapping(index=f"{stem}{_MARK}*", params={"expand_wildcards": "all"})
    owns = {trial: own_meta(found["mappings"]) for trial, found in answer.items()}
    return {trial: own for trial, own in owns.items() if own.get("trial") and name in (None, own.get("for"))}


def is_abandoned(client: OpenSearch, trial: str, own: Mapping[str, Any]) -> bool:
    """Whether nobody works with a trial any more: its process is gone, or it is old."""
    if is_gone(own):
        return True
    found = look(client, trial)
    return (
        found is None or time.time() - int(found.settings["index.creation_date"]) / 1000 > ABANDONED_AFTER_S
    )


def _body_after(old: ExistingIndex, info: IndexInfo, settings: IndexSettings) -> dict[str, Any]:
    body = index_body(info, settings)
    body["aliases"] = dict(old.aliases)
    body["mappings"]["_meta"] = {**old.meta_of_others, **body["mappings"]["_meta"]}
    pipeline = pipeline_name(info.name)
    if info.encode == "cluster" and old.settings.get("index.default_pipeline") == pipeline:
        body["settings"]["index"]["default_pipeline"] = pipeline  # others are encoded as before
    return body


def _without_write_index(alias: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in alias.items() if key != "is_write_index"}
