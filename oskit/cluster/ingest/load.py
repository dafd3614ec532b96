"""Load documents into an index: read, encode, send, and account for every record."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.retry import impatient, request_timeout
from oskit.cluster.index.mapping import (
    EncodeMode,
    EncoderIdentity,
    IndexInfo,
    IndexSettings,
    check_vocabulary,
    ensure_index,
    index_uuid,
    key_for,
    put_pipeline,
)
from oskit.cluster.index.names import Target, resolve
from oskit.cluster.ingest.accounting import Account, IngestReport
from oskit.cluster.ingest.actions import ItemMaker
from oskit.cluster.ingest.bulk import BulkOutcome, BulkSender
from oskit.cluster.ingest.dead_letter import DeadLetterFile
from oskit.cluster.ingest.senders import Senders
from oskit.cluster.ingest.sizes import RequestSizes
from oskit.cluster.ingest.witness import Witness
from oskit.cluster.models.predict import await_ready
from oskit.cluster.models.registry import ModelInfo, find_model
from oskit.data.documents import Document, Refusal
from oskit.data.duplicates import DuplicateFilter
from oskit.data.values import memory_of
from oskit.errors import ClusterError, IndexingError, OskitError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.archive.token_weights import Prune

__all__ = ["IngestInterrupted", "IngestReport", "dry_run", "ingest"]

WINDOW_BATCHES = 16
"""Batches of documents that are encoded at a time, sorted by length."""

DRY_WINDOW = 512
"""Documents that a dry run tokenizes at a time."""

WINDOW_CHARACTERS = 4_000_000
"""Text of a window, after which it is full."""

WINDOW_BYTES = 16_000_000
"""Memory of a window's documents with all their fields, after which it is full."""

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
    batch_size: int = 32,
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
        encoder: For ``"client"``. With ``"cluster"`` it is optional: it is checked against the index, and
            counts what of the documents is too long.
        model_id: Name or id of the deployed model, for ``"cluster"``.
        query_model_id: Name or id of the model that encodes queries, if it is another; recorded for search.
        settings: How to create the index.
        recreate: Delete the index first, if oskit made it.
        prune: Which weights to keep.
        batch_size: Documents that are encoded together.
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
    target = resolve(client, index, writing=True) or Target(index, index)
    if target.is_alias and recreate:
        raise UsageError(
            f"{target} cannot be recreated: the alias would be left without it",
            hint=f"Name the index itself: {target.index}",
        )
    name = target.index
    info, model = _plan(client, name, settings, encode, encoder, model_id, query_model_id, prune)
    maker = ItemMaker(info, encoder, prune, batch_size)
    documents, first = _check_first(documents, maker)
    if first is not None:
        info = replace(info, text_field=first.text_field, title_field=first.title_field)
    if model is not None:
        await_ready(client, model, notify=notify)
    info = ensure_index(client, info, settings, recreate=recreate)
    uuid = index_uuid(client, name)
    pipeline = "_none"
    if model is not None:
        pipeline = put_pipeline(
            client, info, model.model_id, batch_size=batch_size, prune=str(prune) if prune else None
        )
    letters = DeadLetterFile(dead_letter) if dead_letter is not None else None
    account = Account(name, letters, maker.truncation, progress, answers=model is not None)
    timeout = request_timeout(client, CLUSTER_REQUEST_TIMEOUT_S) if model else None
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
        bulk_documents=bulk_documents or (100 if model else 500),
        sizes=sizes,
    )
    try:
        _load(client, name, documents, maker, senders, account, batch_size)
    finally:
        if letters is not None:
            letters.close()
    _check_that_it_stayed(client, target, uuid)
    report = account.report()
    if account.read != account.settled:
        raise IndexingError(
            f"{account.read} records were read, but only {account.settled} are accounted for",
            hint="This is a bug in oskit; please report it",
        )
    return report


def _check_that_it_stayed(client: OpenSearch, target: Target, uuid: str | None) -> None:
    """Raises IndexingError if what was loaded is not behind the name any more."""
    if index_uuid(client, target.index) != uuid:
        # A bulk request to an index that is gone makes the cluster create another one.
        raise IndexingError(
            f"the index {target.index!r} was deleted while it was loaded, and what came later is in another "
            "one of that name, without a mapping for vectors",
            hint=f"Delete that one (DELETE {target.index}), and run the same command again",
        )
    if not target.is_alias:
        return
    now = resolve(client, target.asked, writing=True)
    if now is None or now.index != target.index:
        where = f"to {now.index!r}" if now is not None else "away"
        raise IndexingError(
            f"the alias {target.asked!r} was moved {where} while {target.index!r} was loaded, where all the "
            "documents are",
            hint=f"Move it back, or load {target.asked} again",
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
    maker = ItemMaker(info, encoder, None, 1)
    account = Account(index, None, maker.truncation)
    for window in _windows(_admitted(iter(documents), maker, account, patient=True), DRY_WINDOW):
        maker.count(window)
        account.settle(BulkOutcome(indexed=len(window)))
    return account.report()


def _plan(
    client: OpenSearch,
    index: str,
    settings: IndexSettings,
    encode: EncodeMode,
    encoder: TextEncoder | None,
    model_id: str | None,
    query_model_id: str | None,
    prune: Prune | None,
) -> tuple[IndexInfo, ModelInfo | None]:
    """How the index shall be, and the model that encodes on the cluster."""
    if encode == "client" and encoder is None:
        raise UsageError("encoding here needs an encoder", hint="Give --archive DIR, or --encode cluster")
    if encode == "cluster" and model_id is None:
        raise UsageError("encoding on the cluster needs a model", hint="Give --model NAME or its id")
    if encoder is not None:
        check_vocabulary(settings.kind, encoder.vocabulary.size)
    vocabulary_key = encoder.vocabulary.key_format if encoder is not None else "token"
    if encode == "cluster" and settings.kind == "rank_features" and vocabulary_key == "id":
        raise UsageError(
            "several tokens of this encoder have the same text, and the cluster writes texts into "
            "rank_features, so weights would be lost",
            hint="Use --encode client, or --index-kind sparse_vector",
        )
    model = find_encoder_model(client, model_id) if encode == "cluster" and model_id else None
    query_model = find_model(client, query_model_id) if query_model_id else None
    identity = _identity(encoder, model, query_model)
    info = IndexInfo(
        name=index,
        kind=settings.kind,
        key=key_for(settings.kind, vocabulary_key),
        embedding_field=settings.embedding_field,
        passage_field=settings.passage_field,
        encode=encode,
        encoder=identity,
        prune=str(prune) if prune else None,
    )
    return info, model


def find_encoder_model(client: OpenSearch, name_or_id: str) -> ModelInfo:
    """The model that shall encode documents.

    Raises:
        ModelError: There is none of this name or id.
        IndexingError: It is not deployed, or does not encode documents.
    """
    model = find_model(client, name_or_id)
    if model.function_name == "SPARSE_TOKENIZE":
        raise IndexingError(
            f"the model {model.name!r} is a tokenizer, which encodes queries and not documents",
            hint="Give the encoder's model with --model, and this one with --query-model",
        )
    return model.deployed(IndexingError)


def _identity(
    encoder: TextEncoder | None, model: ModelInfo | None, query_model: ModelInfo | None
) -> EncoderIdentity:
    archive = getattr(encoder, "archive", None)  # a torch encoder has none
    query = getattr(encoder, "query", None)
    sha256 = model.sha256 if model else getattr(archive, "sha256", None)
    return EncoderIdentity(
        sha256=sha256,
        name=model.name if model else getattr(archive, "name", None),
        architecture=encoder.architecture if encoder is not None else None,
        model_id=model.model_id if model else None,
        query_sha256=query_model.sha256 if query_model else getattr(query, "sha256", None),
        query_model_id=query_model.model_id if query_model else None,
    )


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


def _load(
    client: OpenSearch,
    index: str,
    documents: Iterator[Document | Refusal],
    maker: ItemMaker,
    senders: Senders,
    account: Account,
    batch_size: int,
) -> None:
    """Run the load; whatever happens, threads end, and what was indexed can be found."""

    def refresh() -> None:
        with cluster_errors(f"refresh the index {index!r}", IndexingError):
            client.indices.refresh(index=index)

    try:
        with senders:
            for window in _windows(_admitted(documents, maker, account), batch_size * WINDOW_BATCHES):
                senders.put(maker.make(window, account.progress))
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
                if not patient:
                    _stop_if_hopeless(account)
            elif problem := maker.check(item):
                account.refuse(item, problem)
            elif (known := seen.check(item)) == "same":
                account.duplicate()
            elif known == "different":
                account.refuse(item, f"the id {item.id!r} came before, with other content")
            else:
                yield item


def _windows(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    window: list[Document] = []
    characters = memory = 0
    for document in documents:
        window.append(document)
        characters += len(document.text)
        memory += memory_of(document.fields) + len(document.text)
        if len(window) >= size or characters >= WINDOW_CHARACTERS or memory >= WINDOW_BYTES:
            yield window
            window, characters, memory = [], 0, 0
    if window:
        yield window


def _stop_if_hopeless(account: Account) -> None:
    if account.indexed == 0 and account.refused >= HOPELESS_AFTER:
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
    if isinstance(error, ClusterError):
        hint = f"{hint.rstrip('.')}. {_RESUME}" if hint else _RESUME
    return type(error)(f"{error.message} (after {_done(report)})", hint=hint)
