"""Trials (:mod:`oskit.cluster.index.recreate`): which there are, and what a process that was killed left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.existing import look
from oskit.cluster.index.kept import BeingReplaced, kept_of, put_back
from oskit.cluster.index.mapping import delete_index
from oskit.cluster.index.meta import own_meta
from oskit.cluster.index.owner import is_gone
from oskit.errors import IndexingError, OskitError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

_MARK = "-oskit-trial-"

ABANDONED_AFTER_S = 3600.0
"""A trial of another machine that is older than this has been left behind."""

REPLACED_WITHIN_S = 600.0
"""So long after it began, another machine is no longer between the old index and the new one."""


def stem_of(index: str) -> str:
    """How the names of an index's trials begin; eight characters follow, of 255 bytes at most."""
    return index.encode()[: 255 - len(_MARK) - 8].decode(errors="ignore") + _MARK


def sweep(client: OpenSearch, name: str) -> list[str]:
    """Undo what a process that was killed has left: an index that it had deleted is there again.

    Trials for it are deleted; one that remembers aliases stays until the index is there again. Whoever may
    not see them has left none behind.

    Returns:
        What was done that somebody should know, in lines.

    Raises:
        IndexingError: Another process is between deleting and creating it, or the cluster refuses.
    """
    told: list[str] = []
    left: dict[str, dict[str, Any]] = {}
    with suppress(OskitError):
        left = trials(client, name)
    for trial, own in left.items():
        if not is_abandoned(client, trial, own):
            if "aliases" in own and look(client, name) is None and kept_of(client, name) is not None:
                raise BeingReplaced(name, "another oskit ingest --recreate replaces, or was cut off at that,")
            continue
        with suppress(OskitError):
            settle(client)
        if "aliases" in own:
            was = look(client, name)
            why = put_back(client, name, own)
            if why or was is None:
                told.append(f"A --recreate of {name!r} was cut off: {why or 'what it held is put back'}")
        with suppress(OskitError):
            if "aliases" not in own or look(client, name) is not None:
                delete_index(client, trial)
    return told


def settle(client: OpenSearch) -> None:
    """Wait until the cluster has done what a process that was cut off still asked it to do."""
    with cluster_errors("wait for what the cluster has yet to do", IndexingError):
        client.cluster.health(params={"wait_for_events": "languid"})


def trials(client: OpenSearch, name: str | None = None) -> dict[str, dict[str, Any]]:
    """``_meta.oskit`` of the trials for an index, or for any.

    Raises:
        IndexingError: The cluster refuses.
    """
    stem = f"*{_MARK}" if name is None else stem_of(name)
    with cluster_errors(f"look for trials of {'indexes' if name is None else repr(name)}", IndexingError):
        answer = client.indices.get_mapping(index=f"{stem}*", params={"expand_wildcards": "all"})
    owns = {trial: own_meta(found["mappings"]) for trial, found in answer.items()}
    return {trial: own for trial, own in owns.items() if own.get("trial") and name in (None, own.get("for"))}


def is_abandoned(client: OpenSearch, trial: str, own: Mapping[str, Any]) -> bool:
    """Whether nobody works with a trial any more: its process is gone, or it is old."""
    if is_gone(own):
        return True
    if "since" in own:
        return time.time() - int(own["since"]) > REPLACED_WITHIN_S
    found = look(client, trial)
    return (
        found is None or time.time() - int(found.settings["index.creation_date"]) / 1000 > ABANDONED_AFTER_S
    )
