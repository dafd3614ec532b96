"""Before a load: the index and its pipeline as they shall be, once a trial has taken a document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from opensearchpy.exceptions import TransportError

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.retry import impatient
from oskit.cluster.index.mapping import MARK_BODY, delete_index, index_uuid
from oskit.cluster.index.meta import change_own_meta
from oskit.cluster.index.recreate import Trial, create_new, trial_of
from oskit.cluster.ingest.accounting import HOPELESS_AFTER, Account
from oskit.cluster.ingest.bulk import BulkItem, BulkOutcome, BulkSender
from oskit.cluster.ingest.plan import LoadPlan
from oskit.errors import IndexingError, OskitError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

TRIED_AT_ONCE = 20
"""Documents of one request to a trial."""


def prepare(
    client: OpenSearch,
    plan: LoadPlan,
    plan_again: Callable[[], LoadPlan],
    windows: Iterator[list[BulkItem]],
    account: Account,
    timeout: float | None,
    notify: Callable[[str], object] | None,
) -> tuple[list[BulkItem], str | None]:
    """Have the index and its pipeline as they shall be.

    Args:
        plan_again: Makes the plan anew, where another load has made the index meanwhile.
        windows: The items to send, of which a trial takes the first.

    Returns:
        What was taken of ``windows`` and has yet to be sent, and the index's uuid.

    Raises:
        IndexingError: It cannot be. Then all is as it was before, or the message says what is not.
    """
    name, say = plan.info.name, notify or (lambda _: None)
    created = False
    tried: list[BulkItem] = []
    if plan.existing is not None and plan.recreate:
        with trial_of(client, plan.existing, plan.info, plan.settings) as trial:
            tried = _tried(client, plan, trial, windows, account, timeout)
            trial.replace_index()
        if lost := plan.existing.not_kept(plan.settings):
            say(f"Not kept of the index that was there: {' and '.join(lost)}")
    elif plan.existing is None:
        created, aliases = create_new(client, plan.info, plan.settings)
        if aliases:
            say(f"Brought back, which a --recreate that was cut off had left away: {', '.join(aliases)}")
        if not created:  # another load has, just now
            plan = plan_again().with_fields(plan.info.text_field, plan.info.title_field)
    if plan.existing is not None and not plan.recreate:
        with cluster_errors(f"update the index {name!r}", IndexingError):
            if entries := plan.changed_entries():
                change_own_meta(client, name, entries)
            if plan.mark_field == "missing":
                client.indices.put_mapping(index=name, body=MARK_BODY)
    uuid = index_uuid(client, name)
    try:
        if (change := plan.pipeline_change(client)) is not None:
            change.make(client)
    except BaseException:
        if created:
            with suppress(OskitError, TransportError), impatient(client):
                _delete_if_empty(client, name, uuid)
        raise
    return tried, uuid


def _delete_if_empty(client: OpenSearch, name: str, uuid: str | None) -> None:
    client.indices.refresh(index=name)
    if client.count(index=name)["count"] == 0 and index_uuid(client, name) == uuid:
        delete_index(client, name)


def _tried(
    client: OpenSearch,
    plan: LoadPlan,
    trial: Trial,
    windows: Iterator[list[BulkItem]],
    account: Account,
    timeout: float | None,
) -> list[BulkItem]:
    """What it took of the windows until the trial had taken a document.

    Raises:
        IndexingError: It takes none.
    """
    name, pipeline = plan.info.name, plan.theirs or "_none"
    if plan.pipes and (change := plan.pipeline_change(client, trial.info)) is not None:
        change.make(client)
        pipeline = change.name
    sender = BulkSender(client, trial.info.name, pipeline=pipeline, request_timeout=timeout)
    seen: list[BulkItem] = []
    refused = BulkOutcome()
    for items in windows:
        seen += items
        for start in range(0, len(items), TRIED_AT_ONCE):
            try:
                outcome = sender.send(items[start : start + TRIED_AT_ONCE])
            except OskitError as error:
                said = (text and text.replace(trial.info.name, name) for text in (error.message, error.hint))
                message, hint = said
                raise type(error)(f"the index {name!r} stays as it is: {message}", hint=hint) from error
            if outcome.indexed:
                return seen
            refused.refused += outcome.refused
        if len(refused.refused) >= HOPELESS_AFTER:
            break
    account.settle(refused)
    why = f"all {account.refused:,} records were refused: {account.first_reason}" if account.refused else ""
    raise IndexingError(
        f"the index {name!r} stays as it is: {why or 'there are no documents to put in its place'}",
        hint="Correct the options or the documents",
    )
