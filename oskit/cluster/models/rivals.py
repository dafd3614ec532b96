"""Several runs that deploy one archive at the same time, from whatever machines: one model comes of it.

OpenSearch has no create-if-absent for models, and nothing in a model that a run could write its name into.
But the search that follows a registration sees all registrations before it (they refresh the index), and the
sequence numbers of their documents order them without a clock. So each run registers, looks, and yields if
an earlier model of the content is there: it deletes its own and follows the other. A run that dies holds
nobody up: an upload that stands still is gone on with, and a model that is whole is deployed by whoever waits
for it. What a failed run does about a model that another one may have found good: see ``_take_back_model`` of
:mod:`oskit.cluster.models.deploy`.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from opensearchpy import OpenSearch

from oskit.archive.archive import CHUNK_SIZE, Archive
from oskit.cluster.models.chunks import chunks_present
from oskit.cluster.models.registry import ModelInfo, get_model, list_models
from oskit.cluster.models.upload import Progress, sequence_numbers

STANDS_STILL_S = 15.0
"""No new chunk for so long: the run that was uploading is gone, or so slow that two are no slower."""

_LOOK_PAUSE_S = 0.5


def models_of_content(
    client: OpenSearch, archive: Archive, name: str | None, groups: Collection[str] | None
) -> list[ModelInfo]:
    """Models with the archive's content, of this name (None: of any) in one of these groups (None: any)."""
    return [
        model
        for model in list_models(client, {"term": {"model_content_hash_value": archive.sha256}})
        if model.function_name == archive.function_name
        and name in (None, model.name)
        and (groups is None or model.group_id in groups)
        and not (model.state == "REGISTERING" and model.total_chunks != archive.total_chunks)
        # With a model_config it can never be deployed.
        and (model.is_deployed or not model.has_config)
    ]


def earlier_model(
    client: OpenSearch, archive: Archive, own: str, ticket: int | None, others: Collection[ModelInfo]
) -> ModelInfo | None:
    """The model that our own has to yield to; None if it is ours to finish.

    Args:
        own: Id of our model.
        ticket: Its sequence number when it was registered.
        others: The models that we could do with.
    """
    tickets = sequence_numbers(client, archive.sha256)
    found = [
        model
        for model in others
        if model.model_id != own
        and (
            model.state != "REGISTERING"
            or (ticket is not None and tickets.get(model.model_id, ticket) < ticket)
        )
    ]
    # The first of all: of three runs the last one could else follow one that the first one does not.
    return min(found, key=lambda model: tickets.get(model.model_id, 0), default=None)


def follow_upload(
    client: OpenSearch, archive: Archive, model_id: str, progress: Progress
) -> ModelInfo | None:
    """Wait while another run uploads a model.

    Returns:
        The model: whole, or still REGISTERING where the upload stands still; None once it is gone.
    """
    present: set[int] | None = None
    since = time.monotonic()
    while True:
        model = get_model(client, model_id)
        if model is None or model.state != "REGISTERING":
            return model
        found = chunks_present(client, model_id)
        if found != present:
            present, since = found, time.monotonic()
        elif time.monotonic() - since > STANDS_STILL_S:
            return model
        progress("Another run uploads", min(len(found) * CHUNK_SIZE, archive.size), archive.size)
        time.sleep(_LOOK_PAUSE_S)
