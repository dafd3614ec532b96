"""An index of ours gives way to another of the same name, but only once that other one has been tried.

The trial is a hidden index of a temporary name, made as the new one will be, that takes documents before the
old index goes. It also remembers the aliases for the moment between the two, so that they are not lost
if the process is killed there.
"""

from __future__ import annotations

import json
import logging
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
from oskit.cluster.index.kept import (
    BeingReplaced,
    calls_of_keeping,
    drop,
    keep,
    kept_name,
    kept_of,
    make_in_place,
    memory_of,
    put_back,
)
from oskit.cluster.index.mapping import IndexInfo, IndexSettings, delete_index, index_body
from oskit.cluster.index.meta import META_KEY, change_own_meta, changed_meta
from oskit.cluster.index.names import check_index_name
from oskit.cluster.index.owner import owner
from oskit.cluster.index.pipeline import pipeline_name
from oskit.cluster.index.trials import settle, stem_of, trials
from oskit.errors import IndexingError, OskitError, with_more

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

_log = logging.getLogger("oskit.cluster")


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
        self.info = replace(info, name=f"{stem_of(info.name)}{uuid.uuid4().hex[:8]}")
        self._is_needed = False

    def calls(self, pipeline: list[Call]) -> list[Call]:
        """What is sent until the new index is there; ``pipeline``: to make the trial's."""
        name, trial = self._old.name, self.info.name
        only = "only once the trial has taken a document"
        body = self._body()
        return [
            Call("PUT", trial, body, "a trial, deleted again"),
            *pipeline,
            Call("POST", f"{trial}/_bulk", note="the first documents"),
            Call("PUT", f"{trial}/_mapping", changed_meta(body["mappings"], memory_of(self._old)), only),
            *calls_of_keeping(name),
            Call("DELETE", name, note=only),
            Call("PUT", name, _body_after(self._old, self._new, self._settings)),
            Call("DELETE", kept_name(name)),
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
            IndexingError: Somebody has replaced or deleted the old one meanwhile, or the cluster refuses;
                all is as it was before, or the message says what is not.
        """
        client, name = self._client, self._old.name
        now = look(client, name)
        if now is None or now.uuid != self._old.uuid:
            raise IndexingError(
                f"somebody else has {'deleted' if now is None else 'replaced'} the index {name!r} meanwhile",
                hint="Look at what there is now, and run the same command again",
            )
        memory = memory_of(now)
        with cluster_errors(f"delete the index {name!r}", IndexingError):
            change_own_meta(client, self.info.name, memory)
        self._is_needed = True
        try:
            keep(client, now)
            with cluster_errors(f"delete the index {name!r}", IndexingError):
                client.indices.delete(index=name, params={"ignore_unavailable": "true"})
            self._create(_body_after(now, self._new, self._settings))
            drop(client, name)
        except BeingReplaced:
            self._is_needed = False
            raise
        except BaseException as error:
            told = self._put_back(memory)
            if not isinstance(error, OskitError):
                if told is not None:
                    _log.warning("The index %r %s", name, told)
                raise
            message = f"the index {name!r} {told or 'stays as it is'}: {error.message}"
            raise type(error)(message, hint=with_more(error.hint, "Run the same command again")) from error
        self._is_needed = False

    def _put_back(self, memory: Mapping[str, Any]) -> str | None:
        """Have the old index again; what is not as it was, None if all is."""
        name, other = self._old.name, "was deleted, and the new one cannot be made"
        aliases = f" (its aliases: {json.dumps(memory['aliases'])})" if memory["aliases"] else ""
        try:
            with impatient(self._client):
                with suppress(OskitError):
                    settle(self._client)
                told = put_back(self._client, name, memory)
        except OskitError as error:
            kept = kept_name(name)
            return f"{other}; the next load puts back what {kept!r} has of it{aliases} ({error.message})"
        self._is_needed = told is not None
        return told and f"{other}{aliases}; {told}"

    def _create(self, body: dict[str, Any]) -> None:
        client, name = self._client, self._new.name
        with cluster_errors(f"create the index {name!r}", IndexingError):
            make_in_place(client, name, lambda: client.indices.create(index=name, body=body))


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
    """What :func:`create_new` sends, or what has to come before a load."""
    if (kept := kept_of(client, info.name)) is not None:
        note = "what a --recreate that was cut off took away; then as with any index that is there"
        return [Call("PUT", f"{kept.name}/_clone/{info.name}", note=note)]
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
