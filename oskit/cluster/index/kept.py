"""What an index holds is kept under another name until the index that takes its place is there.

By a clone: its files are linked, not copied, so it takes no disk and about a second; nobody writes into the
index from then on. There is one name for it, so of two that would replace an index at once one is refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.calls import Call
from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.server_words import ALREADY_THERE
from oskit.cluster.index.existing import ExistingIndex, look
from oskit.cluster.index.templates import template_of
from oskit.errors import ClusterAuthError, IndexingError, OskitError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

_log = logging.getLogger("oskit.cluster")

_MARK = "-oskit-kept"
_HIDDEN = {"index.hidden": True, "index.number_of_replicas": 0, "index.auto_expand_replicas": False}
_SHOWN = {"index.hidden": False, "index.blocks.write": None}
_NO_WRITES = {"index.blocks.write": True}

_LOST = "Others wrote into %r while it was replaced: %s documents are lost"

_ATTEMPTS = 5
"""So often what somebody's write makes in the moment without an index has to give way."""


def kept_name(index: str) -> str:
    """Where what an index holds is kept; 255 bytes are the longest name."""
    return index.encode()[: 255 - len(_MARK)].decode(errors="ignore") + _MARK


def memory_of(old: ExistingIndex) -> dict[str, Any]:
    """What has to be known of an index to have it again as it was."""
    settings = {name: old.settings.get(name) for name in _HIDDEN}
    return {
        "aliases": dict(old.aliases),
        "meta": old.meta_of_others,
        "uuid": old.uuid,
        "settings": settings,
        "since": int(time.time()),
    }


def calls_of_keeping(name: str) -> list[Call]:
    """What :func:`keep` sends."""
    kept = Call("PUT", f"{name}/_clone/{kept_name(name)}", {"settings": _HIDDEN}, "what it holds, until then")
    return [Call("PUT", f"{name}/_settings", _NO_WRITES, "for the clone"), kept]


class BeingReplaced(IndexingError):
    """Somebody else replaces the index right now, or has done so."""

    def __init__(self, name: str, what: str, first: str = "Look at what there is then") -> None:
        super().__init__(f"{what} the index {name!r}", hint=f"{first}, and run the same command again")


def keep(client: OpenSearch, old: ExistingIndex) -> None:
    """Have what an index holds under another name as well.

    Where the cluster has no clones, or we may not make one, it warns and does nothing.

    Raises:
        BeingReplaced: By somebody else, whose work this leaves alone.
        IndexingError: The cluster refuses; :func:`put_back` has it as it was.
    """
    name, kept = old.name, kept_name(old.name)
    if getattr(client.transport, "service", "") == "aoss":
        _log.warning("Amazon OpenSearch Serverless keeps nothing of %r while it is replaced", name)
        return
    others = BeingReplaced(
        name,
        f"{kept!r} is there, by which another oskit ingest --recreate replaces, or was to replace,",
        f"If no other one runs, look at that and delete it (DELETE {kept})",
    )
    if look(client, kept) is not None:  # before anybody's writes are blocked, which only its owner would lift
        raise others
    try:
        with cluster_errors(f"keep what the index {name!r} holds until the new one is there", IndexingError):
            client.indices.put_settings(index=name, body=_NO_WRITES)
            try:
                answer = client.indices.clone(index=name, target=kept, body={"settings": _HIDDEN})
            except Exception as failure:
                if heard(failure) is not ALREADY_THERE:
                    raise
                raise others from failure
    except ClusterAuthError as error:
        with suppress(OskitError):
            _as_it_was(client, name)
        _log.warning("What %r holds is kept nowhere while it is replaced: %s", name, error.message)
        return
    found = look(client, kept)
    if found is None or found.settings["index.resize.source.uuid"] != old.uuid:
        _as_it_was(client, name)
        raise BeingReplaced(name, "somebody else has replaced")
    if not answer.get("shards_acknowledged", True):
        raise IndexingError(
            f"the cluster finds no place for what the index {name!r} holds until the new one is there",
            hint=f"GET _cluster/allocation/explain tells why. If it is beyond help: DELETE {name}, and run "
            "the same command again",
        )


def put_back(client: OpenSearch, name: str, memory: Mapping[str, Any]) -> str | None:
    """Have an index as it was before somebody began to replace it, unless the new one is there.

    Args:
        memory: By :func:`memory_of`.

    Returns:
        What is left to say: what is not as it was. None if all is.

    Raises:
        IndexingError: The cluster refuses.
    """
    now, kept = look(client, name), kept_of(client, name)
    if now is not None and now.uuid == memory.get("uuid"):
        _as_it_was(client, name)
        return None
    if kept is None:
        return None if now is not None else f"what {name!r} held is gone"
    if now is not None and now.is_own:
        drop(client, name)
        return f"the new {name!r} is there, without documents"
    aliases = {name: {}, **memory["aliases"]}
    if name in kept.aliases:  # as below, which no index can be called then
        with cluster_errors(f"take the name {name!r} from {kept.name!r}", IndexingError):
            removed = [{"remove": {"index": kept.name, "alias": alias}} for alias in aliases]
            client.indices.put_settings(index=kept.name, body=_NO_WRITES)
            client.indices.update_aliases(body={"actions": removed})
    body = {"settings": {**_SHOWN, **memory["settings"]}, "aliases": memory["aliases"]}
    try:
        with cluster_errors(f"make the index {name!r} of what was kept of it", IndexingError):
            make_in_place(client, name, lambda: client.indices.clone(index=kept.name, target=name, body=body))
        drop(client, name)
    except OskitError as error:
        with cluster_errors(f"call by {name!r} what was kept of it", IndexingError):
            _call_by(client, name, kept.name, aliases)
            client.indices.put_settings(index=kept.name, body=_SHOWN)
        return (
            f"{name!r} is an alias of {kept.name!r} now, with all that it held, until the next load into it: "
            f"{error.message}"
        )
    return None


def make_in_place(client: OpenSearch, name: str, make: Callable[[], object]) -> None:
    """Make an index of a name that was taken from another one a moment ago.

    A write of somebody else in that moment makes an index by itself, without the mapping: it gives way.

    Raises:
        IndexingError: That comes again and again, or somebody has made an index on purpose.
        OpenSearchException: The cluster refuses.
    """
    for _ in range(_ATTEMPTS):
        try:
            make()
        except Exception as failure:
            if heard(failure) is not ALREADY_THERE:
                raise
        else:
            return
        count = _written(client, name)
        client.indices.delete(index=name, params={"ignore_unavailable": "true"})
        _log.warning(_LOST, name, count)
    raise IndexingError(
        f"others write into {name!r} and make an index of that name before oskit does, {_ATTEMPTS} times",
        hint="Stop them until it is there",
    )


def _call_by(client: OpenSearch, name: str, kept: str, aliases: Mapping[str, Any]) -> None:
    """Have what is kept answer to a name, in one step with deleting what somebody's write has made of it."""
    added = [{"add": {"index": kept, "alias": alias, **options}} for alias, options in aliases.items()]
    for left in reversed(range(_ATTEMPTS)):
        count, theirs = None, list[dict[str, Any]]()
        try:
            if look(client, name) is not None:
                count, theirs = _written(client, name), [{"remove_index": {"index": name}}]
            client.indices.update_aliases(body={"actions": [*theirs, *added]})
        except Exception:  # such an index may have come since
            if not left:
                raise
        else:
            if count is not None:
                _log.warning(_LOST, name, count)
            return


def _written(client: OpenSearch, name: str) -> int:
    """Documents in an index that somebody's write has made, which has to give way.

    Raises:
        IndexingError: Somebody has made it on purpose, another oskit for one.
    """
    found = look(client, name)
    if found is not None and not found.is_of_a_write(template_of(client, name)):
        raise IndexingError(
            f"somebody else has made an index {name!r} meanwhile, which stays",
            hint=f"What the one before it held may be in {kept_name(name)!r} still: delete the one of them "
            "that is not wanted",
        )
    client.indices.refresh(index=name)
    return int(client.count(index=name)["count"])


def drop(client: OpenSearch, name: str) -> None:
    """Delete what was kept of an index.

    Raises:
        IndexingError: The cluster refuses.
    """
    if (kept := kept_of(client, name)) is not None:
        with cluster_errors(f"delete what was kept of {name!r}", IndexingError):
            client.indices.delete(index=kept.name, params={"ignore_unavailable": "true"})


def kept_of(client: OpenSearch, name: str) -> ExistingIndex | None:
    """What is kept of an index; None if nothing is."""
    found = look(client, kept_name(name))
    return found if found and found.settings.get("index.resize.source.name") == name else None


def _as_it_was(client: OpenSearch, name: str) -> None:
    drop(client, name)
    now = look(client, name)
    if now is not None and now.settings.get("index.blocks.write") == "true":
        with cluster_errors(f"let others write into {name!r} again", IndexingError):
            client.indices.put_settings(index=name, body={"index.blocks.write": None})
