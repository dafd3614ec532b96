"""Load documents into an index: read, encode, send, and account for every record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.retry import impatient, request_timeout
from oskit.cluster.index.mapping import EncodeMode, EncoderIdentity, IndexInfo, IndexSettings, key_for
from oskit.cluster.index.trials import sweep
from oskit.cluster.ingest.accounting import Account, IngestReport
from oskit.cluster.ingest.actions import ItemMaker
from oskit.cluster.ingest.admission import Admission, Window, key_of_vectors
from oskit.cluster.ingest.bulk import BulkOutcome
from oskit.cluster.ingest.cutting import check_chunking, cut_into_chunks
from oskit.cluster.ingest.dead_letter import DeadLetterFile
from oskit.cluster.ingest.missing import Sweeper
from oskit.cluster.ingest.missing import delete_missing as delete_what_is_missing
from oskit.cluster.ingest.plan import LoadPlan, plan_load
from oskit.cluster.ingest.preparation import prepare
from oskit.cluster.ingest.proof import Proof
from oskit.cluster.ingest.staying import check_pipeline, check_that_it_stayed
from oskit.cluster.ingest.witness import Witness
from oskit.cluster.ingest.work import Requests, unknown, work_off
from oskit.cluster.models.connectors import CALLS_AT_ONCE, TEXTS_A_CALL
from oskit.cluster.models.predict import await_ready
from oskit.data.documents import Document, Refusal
from oskit.data.duplicates import DuplicateFilter, Duplicates
from oskit.errors import ClusterError, IndexingError, OskitError, UsageError, with_more

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import KeyFormat, TextEncoder
    from oskit.archive.token_weights import Prune
    from oskit.cluster.ingest.ray_encoders import RayJob
    from oskit.cluster.ingest.ray_load import RayLoad

__all__ = ["IngestInterrupted", "IngestReport", "dry_run", "ingest"]

BULK_DOCUMENTS: dict[EncodeMode, int] = {"client": 5_000, "cluster": 100, "none": 5_000}
"""Documents, or chunks, of one bulk request at most, where nobody says; their bytes mostly make it fewer."""

CLUSTER_REQUEST_TIMEOUT_S = 300.0
"""Limit of a bulk request whose documents the cluster encodes, which takes tens of milliseconds each; unless
the client was given a limit."""

RESUME = "Run the same command again to go on: only what the index does not have yet is encoded and sent"


class IngestInterrupted(IndexingError):
    """The load was interrupted (Ctrl-C); ``report`` says what was done until then."""

    exit_code: ClassVar[int] = 130

    def __init__(self, report: IngestReport) -> None:
        super().__init__(f"interrupted after {_done(report)}", hint=RESUME)
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
    reencode: bool = False,
    delete_missing: float | None = None,
    duplicates: Duplicates = "refuse",
    prune: Prune | None = None,
    made_by: EncoderIdentity | None = None,
    key: KeyFormat | None = None,
    pipeline_batch_size: int | None = None,
    bulk_documents: int | None = None,
    bulk_bytes: int = 5_000_000,
    workers: int = 2,
    dead_letter: str | Path | None = None,
    ray: RayJob | None = None,
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
            ``"none"``: they come with their vectors, which are sent as they are.
        encoder: For ``"client"``. With ``"cluster"`` it is optional: it is checked against the model, and
            counts what of the documents is too long. With ``"none"`` too: the vectors have to be of its
            vocabulary.
        model_id: Name or id of the deployed model, for ``"cluster"``. Else it is optional: it is checked
            against ``encoder``, and recorded for search.
        query_model_id: Name or id of the model that encodes queries, if it is another; recorded for search.
        settings: How to create the index.
        recreate: If there is the index and oskit made it, put a new one in its place, with its aliases, as
            soon as a trial of the new one has taken a document.
        reencode: Encode and send documents that the index has already, too.
        delete_missing: When all is loaded, delete documents of earlier loads that are not among these
            (:mod:`oskit.cluster.ingest.missing`), if they are no larger share of them than this, 0 to 1, or
            ten at most. ``notify`` is told of them before. Nothing goes where a record was refused.
        duplicates: What becomes of documents with the same id and different contents. For the ``"last"`` of
            each, all are first read into a temporary file.
        prune: Which weights to keep; with ``"none"`` those that were kept, which is recorded.
        made_by: The encoder that made the vectors that come with documents, if they tell.
        key: Their keys; None looks at the first of them.
        pipeline_batch_size: Documents that the ingest pipeline hands to the model together; 32. For
            ``"cluster"`` only.
        bulk_documents: Documents of one bulk request at most, or their chunks; 5,000, or 100 where the
            cluster encodes.
        bulk_bytes: Size of one bulk request at most, in bytes; they begin with a tenth of it and grow as long
            as they are answered in 2 s (by a cluster that encodes: in a fifth of their time limit).
        workers: Requests in flight.
        dead_letter: File for what is refused, appended to; None keeps only the counts.
        ray: Encode as a job on Ray (:mod:`oskit.cluster.ingest.ray_load`); for ``"client"`` only.
        progress: Called with the number of further records that are done with: encoded here, answered by a
            cluster that encodes, unchanged, refused, or duplicates. From several threads.
        notify: Told, in one line, that the model is being waited for, as after the restart of a node.

    Raises:
        UsageError: Arguments do not fit together.
        ModelError: There is no such model, or it does not answer.
        IndexingError: The index does not fit, or the cluster refuses every document alike.
        IngestInterrupted: Ctrl-C.
        OskitError: What reading or encoding raises; the message says what was indexed until then.
    """
    settings = settings or IndexSettings()
    spread: RayLoad | None = None
    if ray is not None:
        if encode != "client":
            raise UsageError("Ray has nothing to do where documents are not encoded by oskit")
        from oskit.cluster.ingest.ray_load import RayLoad

        spread = RayLoad(ray)

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
            made_by=made_by,
            key=key,
            notify=notify,
        )

    if encode == "none" and key is None:
        key, documents = key_of_vectors(documents)
    for line in sweep(client, index):
        (notify or (lambda _: None))(line)
    plan = plan_now()
    model, target, name = plan.model, plan.target, plan.target.written
    if target.parts and (reencode or ray is not None):
        option = "--reencode" if reencode else "--ray"
        raise UsageError(f"{option} cannot be had of {target}, which keeps what it has", hint="Leave it out")
    if delete_missing is not None:
        plan.check_marks("delete what the source no longer has")
    known = plan.known(client, reencode=reencode, notify=notify)
    admission = Admission(plan.info, encoder, target.timestamp)
    maker = ItemMaker(plan.info, encoder, prune, known.mark, creates=bool(target.parts))
    records, first = admission.check_first(documents)
    if first is not None:
        plan.check_fields(client, first)
        plan = plan.with_fields(*((None, None) if first.joined else (first.text_field, first.title_field)))
    if model is not None:
        await_ready(client, model, notify=notify)
    letters = DeadLetterFile(dead_letter) if dead_letter is not None else None
    counts = (maker.truncation, maker.encoding_s) if spread is None else (spread.truncation, spread.busy_s)
    answers = not maker.encodes or spread is not None
    account = Account(name, letters, *counts, progress, answers, maker.watch)
    timeout = request_timeout(client, CLUSTER_REQUEST_TIMEOUT_S) if model else None
    seen = DuplicateFilter(duplicates)
    admitted = admission.windows(records, account, seen)
    windows = cut_into_chunks(unknown(admitted, known, account), plan.info, encoder, account)
    most = bulk_documents or BULK_DOCUMENTS[encode]
    if model is not None and model.is_remote and encode == "cluster":
        within = max(1, min(plan.batch_size, TEXTS_A_CALL) * CALLS_AT_ONCE // workers)
        if most > within and notify is not None:
            notify(
                f"Bulk requests hold {within:,} documents, not {most:,}: the calls of more find no connection"
            )
        most = min(most, within)
    requests = Requests(most, bulk_bytes, workers, plan.runs, timeout)
    tried_on: list[Window] = []

    def shown() -> Iterator[Window]:
        for window in admitted:
            tried_on.append(window)
            yield window

    def work() -> None:
        if spread is None:
            sizes = requests.sizes(client)
            work_off(client, name, windows, maker, account, requests, sizes, witness, tried)
        else:
            everything = chain(tried_on, admitted)
            spread.run(
                everything,
                account,
                plan=plan,
                uuid=uuid,
                prune=prune,
                reencode=reencode,
                requests=requests,
            )

    with closing(seen), closing(letters) if letters is not None else nullcontext(), spread or nullcontext():
        if spread is None:
            items = (maker.make(window.documents, account.progress) for window in windows)
        else:  # a trial's documents are encoded here, and count when they have been encoded there
            cut = cut_into_chunks(shown(), plan.info, encoder, Account(name, None))
            items = (maker.make(window.documents) for window in cut)
        try:
            tried, uuid = prepare(client, plan, plan_now, items, account, timeout, notify)
        except KeyboardInterrupt:
            raise IngestInterrupted(account.report()) from None
        prove = Proof(client, target, plan.info, model).check if model and model.is_remote else None
        witness = Witness(lambda: check_that_it_stayed(client, target, uuid), prove)
        sweeper = Sweeper(client, name) if delete_missing is not None else None
        _load(client, name, work, account)
        check_that_it_stayed(client, target, uuid)
        if model is not None and account.indexed:
            check_pipeline(client, plan)
        if sweeper is not None and delete_missing is not None:
            try:
                delete_what_is_missing(sweeper, seen, account, delete_missing, notify or (lambda _: None))
            except KeyboardInterrupt:
                raise IngestInterrupted(account.report()) from None
    report = account.report()
    if account.read != account.settled:
        raise IndexingError(
            f"{account.read} records were read, but only {account.settled} are accounted for",
            hint="This is a bug in oskit; please report it",
        )
    return report


def dry_run(
    index: str,
    documents: Iterable[Document | Refusal],
    settings: IndexSettings | None = None,
    *,
    encoder: TextEncoder | None = None,
    encode: EncodeMode | None = None,
    seen: DuplicateFilter | None = None,
) -> IngestReport:
    """What :func:`ingest` would do with the documents, without a cluster: ``indexed`` is what it would send.

    With an ``encoder`` the documents are tokenized, not encoded, to count what of them is too long.

    Args:
        seen: Learns the ids of the documents, for somebody who wants to know them, and tells which of
            several with one id is taken.

    Raises:
        DataError: A source cannot be read.
    """
    settings = settings or IndexSettings()
    check_chunking(settings, encode, encoder)
    key, documents = key_of_vectors(documents)
    info = IndexInfo(
        index,
        settings.kind,
        key_for(settings.kind, encoder.vocabulary.key_format if encoder is not None else key),
        settings.embedding_path,
        settings.passage_field,
        "none" if encode == "none" else None,
        nested=settings.nested,
        chunking=str(settings.chunking) if settings.chunking else None,
    )
    maker = ItemMaker(info, encoder, None)
    account = Account(index, None, maker.truncation, watch=maker.watch)
    admission = Admission(info, encoder)
    with closing(DuplicateFilter()) if seen is None else nullcontext(seen) as ids:
        windows = admission.windows(documents, account, ids, patient=True)
        for window in cut_into_chunks(windows, info, encoder, account):
            maker.count(window.documents)
            account.settle(BulkOutcome(indexed=len(window.documents)))
    return account.report()


def _load(client: OpenSearch, index: str, work: Callable[[], None], account: Account) -> None:
    """Run the load; whatever happens, threads end, and what was indexed can be found."""

    def refresh() -> None:
        with cluster_errors(f"refresh the index {index!r}", IndexingError):
            client.indices.refresh(index=index)

    try:
        work()
    except BaseException as error:
        with suppress(OskitError), impatient(client):
            refresh()
        if isinstance(error, KeyboardInterrupt):
            raise IngestInterrupted(account.report()) from None
        if isinstance(error, OskitError):
            raise _with_progress(error, account.report()) from error
        raise
    refresh()
    account.stop_if_hopeless()


def _done(report: IngestReport) -> str:
    return f"{report.indexed:,} documents were indexed and {report.refused:,} refused"


def _with_progress(error: OskitError, report: IngestReport) -> OskitError:
    """The same error, saying how far the load had come."""
    if report.read == 0:
        return error
    hint = error.hint
    if isinstance(error, ClusterError) and "the same command again" not in (hint or ""):
        hint = with_more(hint, RESUME)
    return type(error)(f"{error.message} (after {_done(report)})", hint=hint)
