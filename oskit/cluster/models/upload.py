"""An archive's way into the cluster: group, registration, upload."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Set
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from oskit.archive.archive import CHUNK_SIZE, Archive
from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.retry import is_transient, policy_of, with_retries
from oskit.cluster.models.chunks import Chunks, is_whole
from oskit.cluster.models.registry import (
    groups_called,
    list_models,
    request,
    search,
    wait_until,
)
from oskit.errors import ModelError

Progress = Callable[[str, int, int], None]
"""Told what happens, how much of it is done, and how much there is (0 if it has no size)."""

Notify = Callable[[str], None]
"""Told what a person should know, one line each."""

REGISTERED_WAIT_S = 60.0

MEETING_PAUSES_S = (0.2, 0.4, 0.8, 1.6, 3.2, 3.2)
"""Before another attempt, where registrations of several runs met in one model group."""


def resolve_group(client: OpenSearch, group: str, description: str) -> tuple[str, bool]:
    """The id of a model group given by name or id, and whether it was made now.

    Raises:
        ModelError: The cluster refuses the group.
    """
    made = True

    def attempt() -> str:
        nonlocal made
        if known := groups_called(client, group):
            made = False
            return known[0]
        # Not retried: a second request after a lost answer would be refused, the name being taken.
        return str(
            request(client, "POST", "/model_groups/_register", group_body(group, description))[
                "model_group_id"
            ]
        )

    with cluster_errors(f"create the model group {group!r}", ModelError, "deployment"):
        return beside_others(attempt), made


def group_body(name: str, description: str) -> dict[str, Any]:
    """Body for ``POST /_plugins/_ml/model_groups/_register``."""
    return {"name": name, "description": description}


def register_body(archive: Archive, name: str, group_id: str | None) -> dict[str, Any]:
    """Body for ``POST /_plugins/_ml/models/_register_meta``."""
    body = {**archive.register_body(), "name": name}
    return body if group_id is None else {**body, "model_group_id": group_id}


def register(client: OpenSearch, body: dict[str, Any]) -> tuple[str, frozenset[str]]:
    """Announce an archive to the cluster.

    Returns:
        The model's id, and ids of others that may be ours: where an answer was lost, nobody can tell.

    Raises:
        ClusterSettingsError: A setting forbids it.
        ModelError: The cluster refuses it for another reason.
    """

    def unfinished() -> set[str]:
        found = list_models(client, {"term": {"model_content_hash_value": body["model_content_hash_value"]}})
        return {m.model_id for m in found if (m.state, m.name) == ("REGISTERING", body["name"])}

    before = unfinished()
    was_lost = False

    def attempt() -> str:
        nonlocal was_lost
        try:
            return str(request(client, "POST", "/models/_register_meta", body)["model_id"])
        except TransportError as failure:
            # Each request makes a model: one whose answer was lost must be found, not made again.
            was_lost |= is_transient(failure)
            found = unfinished() - before if was_lost else None
            if found:
                tickets = sequence_numbers(client, body["model_content_hash_value"])
                return min(found, key=lambda model_id: tickets.get(model_id, 0))
            raise

    with cluster_errors(f"register {body['name']!r}", ModelError, "deployment"):
        model_id = beside_others(lambda: with_retries(attempt, policy_of(client)))
        return model_id, frozenset(unfinished() - before - {model_id} if was_lost else ())


def beside_others(call: Callable[[], str]) -> str:
    """The call's answer; made again where a registration at the same moment was in its way."""
    for pause_s in MEETING_PAUSES_S:
        try:
            return call()
        except TransportError as failure:
            known = heard(failure, "deployment")
            if is_transient(failure) or known is None or known.passes != "soon":
                raise
            time.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311 - not a secret
    return call()


def sequence_numbers(client: OpenSearch, sha256: str) -> dict[str, int]:
    """Of the last write to each model of this content, by id: the order in which they were registered."""
    content = {"term": {"model_content_hash_value": sha256}}
    hits = search(client, "models", query=content, _source=False, seq_no_primary_term=True)
    return {hit["_id"]: hit["_seq_no"] for hit in hits if "_seq_no" in hit}


def upload(
    client: OpenSearch,
    archive: Archive,
    model_id: str,
    progress: Progress,
    present: Set[int] = frozenset(),
    yields: Callable[[], bool] = lambda: False,
) -> bool:
    """Send the chunks that are missing, the last one last, and wait until the model is REGISTERED.

    Args:
        archive: Its file is read chunk by chunk.
        model_id: The registered model.
        progress: Told the bytes that are there.
        present: Chunks that the cluster holds already.
        yields: Asked before the last chunk whether another model takes this one's place.

    Returns:
        Whether the model is whole; else another one takes its place.

    Raises:
        ClusterError: A chunk could not be sent, even after several attempts.
        ArchiveError: The file changed on disk meanwhile.
    """
    last = archive.total_chunks - 1
    missing = set(range(last)) - present
    sent = 0

    def arrived(size: int) -> None:
        nonlocal sent
        sent += size
        progress("Uploading", sent, archive.size)

    chunks = Chunks(client, archive, model_id)
    arrived((last - len(missing)) * CHUNK_SIZE)
    chunks.send_side_by_side(missing, arrived)
    if yields():
        return False
    chunks.send_last()
    arrived(archive.size - sent)
    progress("Registering", 0, 0)
    if not wait_until(lambda: is_whole(client, model_id), wait_s=REGISTERED_WAIT_S):
        raise ModelError(
            f"The model {model_id} did not become REGISTERED within {REGISTERED_WAIT_S:g} s of its upload",
            hint="Deploy it again; the node's log says more",
        )
    return True
