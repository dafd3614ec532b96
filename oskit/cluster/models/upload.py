"""An archive's way into the cluster: group, registration, chunks.

A chunk is stored under its number, so sending one again changes nothing; the last one, whatever its
neighbours, turns the model into REGISTERED, so it goes last and alone.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from oskit.archive.archive import CHUNK_SIZE, Archive
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.retry import is_transient, policy_of, with_retries
from oskit.cluster.models.registry import (
    existing_model,
    groups_called,
    list_models,
    request,
    search,
    wait_until,
)
from oskit.errors import ArchiveError, ModelError

Progress = Callable[[str, int, int], None]
"""Told what happens, how much of it is done, and how much there is (0 if it has no size)."""

Notify = Callable[[str], None]
"""Told what a person should know, one line each."""

REGISTERED_WAIT_S = 60.0


def resolve_group(client: OpenSearch, group: str, description: str) -> tuple[str, bool]:
    """The id of a model group given by name or id, and whether it was made now.

    Raises:
        ModelError: The cluster refuses the group.
    """
    if known := groups_called(client, group):
        return known[0], False
    with cluster_errors(f"create the model group {group!r}", ModelError):
        # Not retried: a second request after a lost answer would be refused, the name being taken.
        body = {"name": group, "description": description}
        answer = request(client, "POST", "/model_groups/_register", body)
    return str(answer["model_group_id"]), True


def register(client: OpenSearch, archive: Archive, *, name: str, group_id: str | None) -> str:
    """Announce the archive to the cluster and return the model's id.

    Raises:
        ClusterSettingsError: A setting forbids it.
        ModelError: The cluster refuses it for another reason.
    """
    body = {**archive.register_body(), "name": name}
    if group_id is not None:
        body["model_group_id"] = group_id

    def attempt() -> str:
        try:
            return str(request(client, "POST", "/models/_register_meta", body)["model_id"])
        except TransportError as failure:
            # Each request makes a model: one whose answer was lost must be found, not made again.
            if is_transient(failure):
                for model in list_models(client, {"term": {"model_content_hash_value": archive.sha256}}):
                    if (model.state, model.name) == ("REGISTERING", name):
                        return model.model_id
            raise

    with cluster_errors(f"register {name!r}", ModelError, "deployment"):
        return with_retries(attempt, policy_of(client))


def chunks_present(client: OpenSearch, model_id: str) -> set[int]:
    """Numbers of the chunks that the cluster holds of a model."""
    chunks = {"bool": {"filter": [{"term": {"model_id": model_id}}, {"exists": {"field": "chunk_number"}}]}}
    hits = search(client, "models", query=chunks, _source=["chunk_number"])
    return {int(hit["_source"]["chunk_number"]) for hit in hits}


def upload(
    client: OpenSearch, archive: Archive, model_id: str, progress: Progress, present: Set[int] = frozenset()
) -> None:
    """Send the chunks that are missing, the last one last, and wait until the model is REGISTERED.

    Args:
        archive: Its file is read chunk by chunk.
        model_id: The registered model.
        progress: Told the bytes that are there.
        present: Chunks that the cluster holds already.

    Raises:
        ClusterError: A chunk could not be sent, even after several attempts.
        ArchiveError: The file changed on disk meanwhile.
    """
    last = archive.total_chunks - 1
    skipped = present - {last}
    sent = min(len(skipped) * CHUNK_SIZE, archive.size)
    progress("Uploading", sent, archive.size)
    with archive.path.open("rb") as stream:
        for number in range(archive.total_chunks):
            if number in skipped:
                continue
            stream.seek(number * CHUNK_SIZE)
            chunk = stream.read(CHUNK_SIZE)
            if len(chunk) != min(CHUNK_SIZE, archive.size - number * CHUNK_SIZE):
                raise ArchiveError(f"{archive.path} changed while it was uploaded", hint="Deploy it again")
            part = f"chunk {number + 1} of {archive.total_chunks}"
            with cluster_errors(f"upload {part} of the model {model_id}", ModelError):
                # The content type stays JSON: ML Commons refuses application/octet-stream with 406.
                request(client, "POST", f"/models/{model_id}/upload_chunk/{number}", chunk)
            sent += len(chunk)
            progress("Uploading", sent, archive.size)
    progress("Registering", 0, 0)

    def registered() -> bool:
        return existing_model(client, model_id, "upload").state != "REGISTERING"

    if not wait_until(registered, wait_s=REGISTERED_WAIT_S):
        raise ModelError(
            f"The model {model_id} did not become REGISTERED within {REGISTERED_WAIT_S:g} s of its upload",
            hint="Deploy it again; the node's log says more",
        )
