"""Load documents into an index: read, encode, send, and account for every record."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from opensearchpy.exceptions import TransportError

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.retry import impatient, request_timeout
from oskit.cluster.index.existing import look
from oskit.cluster.index.mapping import (
    EncodeMode,
    IndexInfo,
    IndexSettings,
    delete_index,
    index_uuid,
    key_for,
)
from oskit.cluster.index.meta import change_own_meta
from oskit.cluster.index.names import Target, resolve
from oskit.cluster.index.pipeline import pipeline_name
from oskit.cluster.index.recreate import Trial, create_new, sweep, trial_of
from oskit.cluster.ingest.accounting import Account, IngestReport
from oskit.cluster.ingest.actions import ItemMaker
from oskit.cluster.ingest.bulk import BulkItem, BulkOutcome, BulkSender
from oskit.cluster.ingest.dead_letter import DeadLetterFile
from oskit.cluster.ingest.plan import LoadPlan, plan_load
from oskit.cluster.ingest.senders import Senders
from oskit.cluster.ingest.sizes import RequestSizes
from oskit.cluster.ingest.witness import Witness
from oskit.cluster.models.predict import await_ready
from oskit.data.documents import Document, Refusal
from oskit.data.duplicates import DuplicateFilter
from oskit.data.values import memory_of
from oskit.errors import ClusterError, IndexingError, OskitError, UsageError, with_more

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.archive.token_weights import Prune

__all__ = ["IngestInterrupted", "IngestReport", "dry_run", "ingest"]

WINDOW_DOCUMENTS = 512
"""Documents that are encoded at a time, sorted by length; the first window has few, each later one twice as
many, so that a load shows what it does at once."""

FIRST_WINDOW = 16

DRY_WINDOW = 512
"""Documents that a dry run tokenizes at a time."""

WINDOW_CHARACTERS = 4_000_000
"""Text of a window, after which it is full."""

WINDOW_BYTES = 16_000_000
"""Memory of a window's documents with all their fields, after which it is full."""

TRIED_AT_ONCE = 20
"""Documents of one request to a trial."""

BULK_DOCUMENTS: dict[EncodeMode, int] = {"client": 500, "cluster": 100}
"""Documents of one bulk request, where nobody says."""

HOPELESS_AFTER = 1_000
"""A load whose first so many documents were all refused is stopped."""

CLUSTER_REQUEST_TIMEOUT_S = 300.0
"""Limit of a bulk request whose documents the cluster encodes, which takes tens of milliseconds each; unless
the client was given a limit."""

_RESUME = "Run the same command again to go on: documents keep their ids, so none comes twice"


class IngestInterrupted(IndexingError):
    """The load was interrupted (Ctrl-C); ``report`` says what was done until then."""

    exit_code: ClassVar[int] = 130

    def __init__(self, report: IngestReport) -> None:
        super().__init__(f"interrupted after {_done(report)}", hint=_RESUME)
        self.report = report


def ingest(
    client: OpenSearch,
    index: str,
    documents: Iterable[Document | Refusal],
    *,
    encode: EncodeMode = "client",
    encoder: TextEncoder | None = None,
    model_id: str | None = None,
    query_model_id: str | None = None,
    settings: IndexSettings | None = None,
    recreate: bool = False,
    prune: Prune | None = None,
    pipeline_batch_size: int | None = None,
    bulk_documents: int | None = None,
    bulk_bytes: int = 5_000_000,
    workers: int = 2,
    dead_letter: str | Path | None = None,
    progress: Callable[[int], object] = lambda _: None,
    notify: Callable[[str], None] | None = None,
) -> IngestReport:
    """Create an index unless it is there, and load documents into it.

    Loading the same documents again changes nothing: ids are their own or made of their content, and a
    document with a known id replaces the one before. Documents are read as they are needed and memory is
    bounded by a window of them.

    Args:
        client: From :func:`oskit.cluster.client.connection.connect`.
        index: Its name, or that of an alias: then its write index is loaded.
        documents: From :func:`oskit.data.files.read_documents`, or your own.
        encode: ``"client"``: here, with ``encoder``. ``"cluster"``: by the model in an ingest pipeline.
        encoder: For ``"client"``. With ``"cluster"`` it is optional: it is checked against the model, and
            counts what of the documents is too long.
        model_id: Name or id of the deployed model, for ``"cluster"``. With ``"client"`` it is optional: it is
            checked against ``encoder``, and recorded for search.
        query_model_id: Name or id of the model that encodes queries, if it is another; recorded for search.
        settings: How to create the index.
        recreate: If there is the index and oskit made it, put a new one in its place, with its aliases, as
            soon as a trial of the new one has taken a document.
        prune: Which weights to keep.
        pipeline_batch_size: Documents that the ingest pipeline hands to the model together; 32. For
            ``"cluster"`` only.
        bulk_documents: Documents of one bulk request; 500, or 100 where the cluster encodes.
        bulk_bytes: Size of one bulk request, in bytes.
        workers: Requests in flight.
        dead_letter: File for what is refused, appended to; None keeps only the counts.
        progress: Called with the number of further records that are done with: encoded here, answered by a
            cluster that encodes, refused, or duplicates. From several threads.
        notify: Told, in one line, that the model is being waited for, as after the restart of a node.

    Raises:
        UsageError: Arguments do not fit together.
        ModelError: There is no such model, or it does not answer.
        IndexingError: The index does not fit, or the cluster refuses every document alike.
        IngestInterrupted: Ctrl-C.
        OskitError: What reading or encoding raises; the message says what was indexed until then.
    """
    settings = settings or IndexSettings()

    def plan_now() -> LoadPlan:
        return plan_load(
            client,
            index,
            settings,
            encode=encode,
            encoder=encoder,
            model_id=model_id,
            query_model_id=query_model_id,
            prune=prune,
            recreate=recreate,
            pipeline_batch_size=pipeline_batch_size,
            notify=notify,
        )

    plan = plan_now()
    model, target, name = plan.model, plan.target, plan.target.index
    maker = ItemMaker(plan.info, encoder, prune)
    documents, first = _check_first(documents, maker)
    if first is not None:
        plan = plan.with_fields(first.text_field, first.title_field)
    if model is not None:
        await_ready(client, model, notify=notify)
    letters = DeadLetterFile(dead_letter) if dead_letter is not None else None
    account = Account(name, letters, maker.truncation, progress, answers=model is not None)
    timeout = request_timeout(client, CLUSTER_REQUEST_TIMEOUT_S) if model else None
    windows = _encoded(documents, maker, account)
    try:
        windows, uuid = _prepare(client, plan, plan_now, windows, account, timeout, notify)
    except BaseException as error:
        if letters is not None:
            letters.close()
        if isinstance(error, KeyboardInterrupt):
            raise IngestInterrupted(account.report()) from None
        raise
    pipeline = pipeline_name(name) if model is not None else "_none"
    sizes, witness = RequestSizes(bulk_bytes), Witness(lambda: _check_that_it_stayed(client, target, uuid))
    senders = Senders(
        lambda stop: BulkSender(
            client,
            name,
            pipeline=pipeline,
            request_timeout=timeout,
            stop=stop,
            sizes=sizes,
            witness=witness,
        ),
        account,
        workers=workers,
        bulk_documents=bulk_documents or BULK_DOCUMENTS[encode],
        sizes=sizes,
    )
    try:
        _load(client, name, windows, senders, account)
    finally:
        if letters is not None:
            letters.close()
    _check_that_it_stayed(client, target, uuid)
    if model is not None and account.indexed:
        _check_pipeline(client, plan)
    report = account.report()
    if account.read != account.settled:
        raise IndexingError(
            f"{account.read} records were read, but only {account.settled} are accounted for",
            hint="This is a bug in oskit; please report it",
        )
    return report


def _prepare(
    client: OpenSearch,
    plan: LoadPlan,
    plan_again: Callable[[], LoadPlan],
    windows: Iterator[list[BulkItem]],
    account: Account,
    timeout: float | None,
    notify: Callable[[str], object] | None,
) -> tuple[Iterator[list[BulkItem]], str | None]:
    """Have the index and its pipeline as they shall be; returns what there is to send, and the index's uuid.

    Raises:
        IndexingError: It cannot be. Then all is as it was before, or the message says what is not.
    """
    name, say = plan.info.name, notify or (lambda _: None)
    sweep(client, name)
    created = False
    if plan.existing is not None and plan.recreate:
        with trial_of(client, plan.existing, plan.info, plan.settings) as trial:
            windows = _tried(client, plan, trial, windows, account, timeout)
            trial.replace_index()
        if lost := plan.existing.not_kept():
            say(f"Not kept of the index that was there: {' and '.join(lost)}")
    elif plan.existing is None:
        created, aliases = create_new(client, plan.info, plan.settings)
        if aliases:
            say(f"Brought back, which a --recreate that was cut off had left away: {', '.join(aliases)}")
        if not created:  # another load has, just now
            plan = plan_again().with_fields(plan.info.text_field, plan.info.title_field)
    if plan.existing is not None and not plan.recreate and (entries := plan.changed_entries()):
        with cluster_errors(f"update the index {name!r}", IndexingError):
            change_own_meta(client, name, entries)
    uuid = index_uuid(client, name)
    try:
        if (change := plan.pipeline_change(client)) is not None:
            change.make(client)
    except BaseException:
        if created:
            with suppress(OskitError, TransportError), impatient(client):
                _delete_if_empty(client, name, uuid)
        raise
    return windows, uuid


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
) -> Iterator[list[BulkItem]]:
    """The windows once more, if the trial takes a document of theirs.

    Raises:
        IndexingError: It takes none.
    """
    name, pipeline = plan.info.name, "_none"
    if plan.model is not None and (change := plan.pipeline_change(client, trial.info)) is not None:
        change.make(client)
        pipeline = change.name
    sender = BulkSender(client, trial.info.name, pipeline=pipeline, request_timeout=timeout)
    seen: list[list[BulkItem]] = []
    refused = BulkOutcome()
    for items in windows:
        seen.append(items)
        for start in range(0, len(items), TRIED_AT_ONCE):
            try:
                outcome = sender.send(items[start : start + TRIED_AT_ONCE])
            except OskitError as error:
                said = (text and text.replace(trial.info.name, name) for text in (error.message, error.hint))
                message, hint = said
                raise type(error)(f"the index {name!r} stays as it is: {message}", hint=hint) from error
            if outcome.indexed:
                return itertools.chain(seen, windows)
            refused.refused += outcome.refused
        if len(refused.refused) >= HOPELESS_AFTER:
            break
    account.settle(refused)
    why = f"all {account.refused:,} records were refused: {account.first_reason}" if account.refused else ""
    raise IndexingError(
        f"the index {name!r} stays as it is: {why or 'there are no documents to put in its place'}",
        hint="Correct the options or the documents",
    )


def _check_that_it_stayed(client: OpenSearch, target: Target, uuid: str | None) -> None:
    """Raises IndexingError if what was loaded is not behind the name any more."""
    if index_uuid(client, target.index) != uuid:
        now = look(client, target.index)
        if now is not None and now.is_own:
            raise IndexingError(
                f"another load has replaced the index {target.index!r} (--recreate) while it was loaded, and "
                "what was sent before that is gone",
                hint="Run the same command again when the other one has ended",
            )
        if now is None:
            raise IndexingError(
                f"the index {target.index!r} is gone: it was deleted while it was loaded",
                hint="Run the same command again",
            )
        # A bulk request to an index that is gone makes the cluster create another one.
        raise IndexingError(
            f"the index {target.index!r} was deleted while it was loaded, and what came later is in another "
            "one of that name, without a mapping for vectors",
            hint=f"Delete that one (DELETE {target.index}), and run the same command again",
        )
    if not target.is_alias:
        return
    try:
        now_behind = resolve(client, target.asked, writing=True)
    except IndexingError as error:
        where, why = "", f": {error.message}"
    else:
        if now_behind is not None and now_behind.index == target.index:
            return
        where, why = (f" to {now_behind.index!r}" if now_behind is not None else " away"), ""
    raise IndexingError(
        f"the alias {target.asked!r} was moved{where} while {target.index!r} was loaded, where all the "
        f"documents are{why}",
        hint=f"Move it back, or load {target.asked} again",
    )


def _check_pipeline(client: OpenSearch, plan: LoadPlan) -> None:
    """Raises IndexingError if somebody has changed what encodes: documents may have no vectors, or others."""
    try:
        if (change := plan.pipeline_change(client)) is None or not change.matters:
            return
        why, hint = "", "Run the same command again, which puts it right and encodes them anew"
    except IndexingError as error:
        why, hint = f": {error.message}", error.hint or ""
    raise IndexingError(
        f"somebody has changed the ingest pipeline {pipeline_name(plan.info.name)!r} during the load, so "
        f"documents of {plan.info.name!r} may lack vectors, or have others{why}",
        hint=hint,
    )


def dry_run(
    index: str,
    documents: Iterable[Document | Refusal],
    settings: IndexSettings | None = None,
    *,
    encoder: TextEncoder | None = None,
) -> IngestReport:
    """What :func:`ingest` would do with the documents, without a cluster: ``indexed`` is what it would send.

    With an ``encoder`` the documents are tokenized, not encoded, to count what of them is too long.

    Raises:
        DataError: A source cannot be read.
    """
    settings = settings or IndexSettings()
    info = IndexInfo(
        index,
        settings.kind,
        key_for(settings.kind, "token"),
        settings.embedding_field,
        settings.passage_field,
    )
    maker = ItemMaker(info, encoder, None)
    account = Account(index, None, maker.truncation)
    for window in _windows(_admitted(iter(documents), maker, account, patient=True), DRY_WINDOW, DRY_WINDOW):
        maker.count(window)
        account.settle(BulkOutcome(indexed=len(window)))
    return account.report()


def _check_first(
    documents: Iterable[Document | Refusal], maker: ItemMaker
) -> tuple[Iterator[Document | Refusal], Document | None]:
    """Look at the first record, before anything is made for documents that do not fit."""
    stream = iter(documents)
    first = next(stream, None)
    if first is None:
        return stream, None
    stream = itertools.chain([first], stream)
    if isinstance(first, Refusal):
        return stream, None
    if own := maker.collision(first):
        raise UsageError(f"{first.where or 'the first document'}: {own}")
    return stream, first


def _encoded(
    documents: Iterator[Document | Refusal], maker: ItemMaker, account: Account
) -> Iterator[list[BulkItem]]:
    """Windows of documents, ready to be sent."""
    for window in _windows(_admitted(documents, maker, account), FIRST_WINDOW, WINDOW_DOCUMENTS):
        yield maker.make(window, account.progress)


def _load(
    client: OpenSearch,
    index: str,
    windows: Iterator[list[BulkItem]],
    senders: Senders,
    account: Account,
) -> None:
    """Run the load; whatever happens, threads end, and what was indexed can be found."""

    def refresh() -> None:
        with cluster_errors(f"refresh the index {index!r}", IndexingError):
            client.indices.refresh(index=index)

    try:
        with senders:
            for items in windows:
                senders.put(items)
                _stop_if_hopeless(account)
    except BaseException as error:
        with suppress(OskitError), impatient(client):
            refresh()
        if isinstance(error, KeyboardInterrupt):
            raise IngestInterrupted(account.report()) from None
        if isinstance(error, OskitError):
            raise _with_progress(error, account.report()) from error
        raise
    refresh()
    _stop_if_hopeless(account)


def _admitted(
    documents: Iterator[Document | Refusal], maker: ItemMaker, account: Account, *, patient: bool = False
) -> Iterator[Document]:
    """The documents to index; refusals and duplicates are settled here."""
    with closing(DuplicateFilter()) as seen:
        for item in documents:
            account.read += 1
            if isinstance(item, Refusal):
                account.refuse(item, item.reason)
            elif problem := maker.check(item):
                account.refuse(item, problem)
            elif (known := seen.check(item)) == "same":
                account.duplicate()
            elif known == "different":
                account.refuse(item, f"the id {item.id!r} came before, with other content")
            else:
                yield item
            if not patient:
                _stop_if_hopeless(account)


def _windows(documents: Iterator[Document], size: int, largest: int) -> Iterator[list[Document]]:
    window: list[Document] = []
    characters = memory = 0
    for document in documents:
        window.append(document)
        characters += len(document.passage)
        memory += memory_of([document.fields, document.title, document.text])
        if len(window) >= size or characters >= WINDOW_CHARACTERS or memory >= WINDOW_BYTES:
            yield window
            window, characters, memory, size = [], 0, 0, min(2 * size, largest)
    if window:
        yield window


def _stop_if_hopeless(account: Account) -> None:
    # Refusals made here are no sign while there are documents before them that the cluster has yet to answer.
    refused = account.refused if account.settled == account.read else account.turned_down
    if account.indexed == 0 and refused >= HOPELESS_AFTER:
        raise IndexingError(
            f"the first {account.refused:,} records were all refused: {account.first_reason}",
            hint="Correct the options or the documents",
        )


def _done(report: IngestReport) -> str:
    return f"{report.indexed:,} documents were indexed and {report.refused:,} refused"


def _with_progress(error: OskitError, report: IngestReport) -> OskitError:
    """The same error, saying how far the load had come."""
    if report.read == 0:
        return error
    hint = error.hint
    if isinstance(error, ClusterError) and "the same command again" not in (hint or ""):
        hint = with_more(hint, _RESUME)
    return type(error)(f"{error.message} (after {_done(report)})", hint=hint)
