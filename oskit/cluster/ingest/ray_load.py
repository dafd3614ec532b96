"""A load as a Ray Data job: encoders on many machines, each of which sends what it has encoded.

The driver plans, prepares, reads and settles as in any other load. What is admitted goes in numbered blocks
through a feed, from which a source of Ray Data takes them; an actor encodes a block, sends it, and gives back
one row that says what became of it. A block whose actor was killed is run again by Ray: documents keep their
ids, and those that are in the index by then are known by their marks and not encoded twice. A row is counted
once, so the account of the driver is that of the whole load.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from oskit.archive.truncation import Truncation, truncation_from_now
from oskit.cluster.ingest.accounting import Account
from oskit.cluster.ingest.actions import ItemMaker
from oskit.cluster.ingest.admission import Window
from oskit.cluster.ingest.bulk import BulkOutcome, RefusedItem
from oskit.cluster.ingest.cutting import cut_into_chunks
from oskit.cluster.ingest.dead_letter import DeadLetterFile
from oskit.cluster.ingest.plan import LoadPlan
from oskit.cluster.ingest.staying import check_that_it_stayed
from oskit.cluster.ingest.witness import Witness
from oskit.cluster.ingest.work import Requests, unknown, work_off
from oskit.data.documents import Document, Refusal
from oskit.errors import DataError, IndexingError, OskitError
from oskit.extras import require

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.archive.token_weights import Prune

BLOCK_WINDOWS = 4
"""Windows of a block, of which one is encoded while another is sent; the first blocks have one."""

MOST_RUNS = 6
"""Of a block; if all their processes have ended, it is what ends them, as by the memory that it takes."""

_log = logging.getLogger("oskit.ray")


@dataclass(frozen=True)
class RayJob:
    """Where documents are encoded, and by what.

    Attributes:
        connect: Makes a client of the cluster, on each machine.
        open: Opens the encoder, on each machine.
        address: Of Ray; ``"auto"`` for the one that runs here or is named by ``RAY_ADDRESS``, or else one of
            this machine alone; ``"local"`` for the latter in any case.
        encoders: Processes that encode; None for one on each machine, or for each GPU.
        on_gpu: Whether an encoder takes a GPU.
    """

    connect: Callable[[], OpenSearch]
    open: Callable[[], TextEncoder]
    address: str = "auto"
    encoders: int | None = None
    on_gpu: bool = False


@dataclass(frozen=True)
class _Task:
    """What an encoder has to know."""

    job: RayJob
    plan: LoadPlan
    uuid: str | None
    prune: Prune | None
    reencode: bool
    requests: Requests


@dataclass
class _Row:
    """What became of a block; of one whose fate is known already nothing."""

    outcome: BulkOutcome = field(default_factory=BulkOutcome)
    unchanged: int = 0
    chunks: int | None = None
    truncation: Truncation | None = None
    busy_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    error: tuple[type[OskitError], str, str | None] | None = None


class RayLoad:
    """Encoders on Ray for one load; as a context manager it is connected to Ray.

    Args:
        job: Where, and by what.

    Raises:
        MissingDependencyError: Ray is not installed.
        IndexingError: On entering: it does not answer, or does not start.
    """

    def __init__(self, job: RayJob) -> None:
        require("a load on Ray", "ray", ["ray"])
        self._job = job
        self._encoders = job.encoders or 1
        self._is_ours = False
        self._truncation: Truncation | None = None
        self._busy_s = 0.0
        self._settled: set[int] = set()
        self._failure: BaseException | None = None
        self._broken: DataError | None = None
        self._ended = False
        self._changed = threading.Condition()

    def truncation(self) -> Truncation | None:
        """What of the documents was too long."""
        return self._truncation

    def busy_s(self) -> float:
        """Seconds that an encoder has worked, on average."""
        return self._busy_s / self._encoders

    def __enter__(self) -> Self:
        ray = _ray()
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _initialize(self._job.address)
        found = ray.cluster_resources()
        machines = sum(bool(node["Alive"]) for node in ray.nodes())
        self._encoders = self._job.encoders or max(
            1, int(found.get("GPU", 0)) if self._job.on_gpu else machines
        )
        self._cpus = max(1, int(found.get("CPU", 1)) // self._encoders)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            _ray().shutdown()

    def run(
        self,
        windows: Iterable[Window],
        account: Account,
        *,
        plan: LoadPlan,
        uuid: str | None,
        prune: Prune | None,
        reencode: bool,
        requests: Requests,
    ) -> None:
        """Encode and send, elsewhere; returns when each document is settled in the account.

        Raises:
            OskitError: What an encoder raises, or Ray does.
        """
        if plan.recreate:  # the index that was there is gone, and a block that is run again asks the new one
            plan = replace(plan, existing=None, recreate=False)
        task = _Task(self._job, plan, uuid, prune, reencode, requests)
        ray = _ray()
        feed = ray.remote(_Feed).options(num_cpus=0, max_restarts=0).remote()
        thread = threading.Thread(
            target=self._settle_all, args=(feed, task, account), name="oskit-ray", daemon=True
        )
        thread.start()
        number = 0
        try:
            for number, block in enumerate(self._blocks(windows, account), 1):
                self._wait(partial(self._has_room, number))
                self._ask(feed.put.remote(number - 1, block))
                account.stop_if_hopeless()
            self._ask(feed.finish.remote(number))
            self._wait(lambda: self._ended)
            if self._broken is not None:
                raise self._broken
        finally:
            with self._changed:
                self._ended = True
            ray.kill(feed)
            thread.join(10)

    def _blocks(self, windows: Iterable[Window], account: Account) -> Iterator[bytes]:
        waiting: list[Window] = []
        made = 0
        try:
            for window in windows:
                if account.watch is not None:
                    account.watch.look(document.passage for document in window.documents)
                waiting.append(window)
                if len(waiting) >= (1 if made < 4 * self._encoders else BLOCK_WINDOWS):
                    yield pickle.dumps(waiting)
                    waiting, made = [], made + 1
        except DataError as error:  # what stands before the damage is loaded
            self._broken = error
        if waiting:
            yield pickle.dumps(waiting)

    def _has_room(self, number: int) -> bool:
        return number - len(self._settled) <= 2 * self._encoders + 2

    def _wait(self, done: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or done())
        if self._failure is not None:
            raise self._failure

    def _ask(self, answer: Any) -> None:
        ray = _ray()
        try:
            ray.get(answer)
        except ray.exceptions.RayError as error:
            raise _failed(error) from error

    def _settle_all(self, feed: Any, task: _Task, account: Account) -> None:
        """Count what comes back of each block, in a thread of its own."""
        try:
            for found in _dataset(feed, task, self._encoders, self._cpus).iter_rows():
                number, row = int(found["number"]), pickle.loads(found["row"])  # noqa: S301 - our own
                if number not in self._settled:
                    self._settle(row, account)
                    _ray().get(feed.drop.remote(number))
                with self._changed:
                    self._settled.add(number)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                if not self._ended:
                    self._failure = error if isinstance(error, OskitError) else _failed(error)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _settle(self, row: _Row, account: Account) -> None:
        account.keep(row.unchanged)
        if row.chunks is not None:
            account.cut(row.chunks)
        here = [item for item in row.outcome.refused if not item.status]
        for item in here:
            account.refuse(item.document, item.reason)
        row.outcome.refused = [item for item in row.outcome.refused if item.status]
        account.settle(row.outcome)
        self._busy_s += row.busy_s
        if row.truncation is not None:
            self._truncation = self._truncation + row.truncation if self._truncation else row.truncation
        for note in row.notes:
            _log.warning("%s", note)
        if row.error is not None:
            kind, message, hint = row.error
            raise kind(message, hint=hint)


def _ray() -> Any:
    """Ray, whose types are partly there."""
    import ray
    import ray.data

    return ray


def _initialize(address: str) -> None:
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else warnings about Ray Data itself
    try:
        _ray().init(
            None if address == "auto" else address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if address != "local" else False,
        )
    except Exception as error:
        where = (
            "Ray cannot be started" if address in ("auto", "local") else f"Ray at {address} does not answer"
        )
        raise IndexingError(
            f"{where}: {_last_line(error)}", hint="Check --ray, and `ray status` there"
        ) from error
    finally:
        if is_main and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in the place of ours


def _failed(error: BaseException) -> IndexingError:
    from oskit.cluster.ingest.load import RESUME

    return IndexingError(f"the job on Ray failed: {_last_line(error)}", hint=RESUME)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _dataset(feed: Any, task: _Task, encoders: int, cpus: int) -> Any:
    """A row for each block of the feed, as it is settled."""
    ray = _ray()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails comes back, and is told by us
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block of ours is one of Ray's, and goes on at once
    blocks = ray.data.read_datasource(_source(feed), override_num_blocks=1, num_cpus=0)
    return blocks.map_batches(
        _Encoder,
        fn_constructor_args=(task, feed),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=encoders),
        num_cpus=cpus,
        num_gpus=1 if task.job.on_gpu else None,
    )


class _Feed:
    """An actor that holds the blocks that are not settled yet."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytes] = {}
        self._dropped: set[int] = set()
        self._begun: Counter[int] = Counter()
        self._end: int | None = None

    async def put(self, number: int, block: bytes) -> None:
        self._blocks[number] = block

    async def begin(self, number: int) -> int:
        """How often a block has been begun, with this time."""
        self._begun[number] += 1
        return self._begun[number]

    async def drop(self, number: int) -> None:
        self._blocks.pop(number, None)
        self._dropped.add(number)

    async def finish(self, number: int) -> None:
        self._end = number

    async def get(self, number: int) -> bytes | None:
        """A block, as soon as it is there; an empty one where it was settled; None behind the last."""
        while number not in self._blocks:
            if number == self._end:
                return None
            if number in self._dropped:
                return b""
            await asyncio.sleep(0.02)
        return self._blocks[number]


def _source(feed: Any) -> Any:
    """What Ray Data reads: the blocks of the feed, in their order; read anew, the same ones come."""
    import pyarrow
    from ray.data.block import BlockMetadata

    ray = _ray()
    base: Any = ray.data.Datasource

    def read() -> Iterator[Any]:
        number = 0
        while (block := _ray().get(feed.get.remote(number))) is not None:
            column = pyarrow.array([block], pyarrow.large_binary())
            yield pyarrow.table({"number": [number], "block": column})
            number += 1

    class Source(base):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
            nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ray.data.ReadTask(read, nothing)]

    return Source()


class _Encoder:
    """An actor that encodes blocks and sends them; opened with the first, so that a failure comes back."""

    def __init__(self, task: _Task, feed: Any) -> None:
        self._task, self._feed = task, feed
        self._notes: list[str] = []
        self._is_open = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        number, block = int(batch["number"][0]), bytes(batch["block"][0])
        row = _Row()
        if block and _ray().get(self._feed.begin.remote(number)) > MOST_RUNS:
            message = f"a block of documents has ended {MOST_RUNS} processes that encoded it"
            row.error = IndexingError, message, "There may be too little memory: see what Ray's log says"
        elif block:
            row = self._work_off(pickle.loads(block))  # noqa: S301 - our own
        return {"number": [number], "row": [pickle.dumps(row)]}

    def _work_off(self, windows: list[Window]) -> _Row:
        task, row, letters = self._task, _Row(), _Letters()
        try:
            if not self._is_open:
                self._open()
            account = Account(task.plan.target.index, letters)
            truncation, busy_s = truncation_from_now(self._encoder), self._maker.encoding_s() or 0.0
            try:
                work_off(
                    self._client,
                    task.plan.target.index,
                    cut_into_chunks(
                        unknown(windows, self._known, account), task.plan.info, self._encoder, account
                    ),
                    self._maker,
                    account,
                    task.requests,
                    self._sizes,
                    self._witness,
                )
            finally:
                row.unchanged = account.unchanged
                row.outcome = BulkOutcome(account.indexed - account.unchanged, letters.items, account.retries)
                row.chunks = account.chunks
                row.truncation = truncation()
                row.busy_s = (self._maker.encoding_s() or 0.0) - busy_s
        except OskitError as error:
            row.error = type(error), error.message, error.hint
        row.notes, self._notes[:] = [*self._notes], []
        return row

    def _open(self) -> None:
        task = self._task
        logging.getLogger("oskit").addHandler(_Notes(self._notes))
        self._client = task.job.connect()
        self._encoder = task.job.open()
        wanted = task.plan.info.encoder.sha256
        has = getattr(getattr(self._encoder, "archive", None), "sha256", None)
        if has != wanted:
            raise IndexingError(
                "the encoder of a machine of Ray's is not the one here",
                hint="Have the same archive under the same path on all of them",
            )
        self._known = task.plan.known(self._client, reencode=task.reencode)
        self._maker = ItemMaker(task.plan.info, self._encoder, task.prune, self._known.mark)
        self._sizes = task.requests.sizes(self._client)
        self._witness = Witness(lambda: check_that_it_stayed(self._client, task.plan.target, task.uuid))
        self._is_open = True


class _Letters(DeadLetterFile):
    """Keeps what is refused, for the driver to write; of what oskit refuses itself the status is 0."""

    def __init__(self) -> None:
        super().__init__("")
        self.items: list[RefusedItem] = []

    def add(self, item: Document | Refusal, reason: str, status: int | None = None) -> None:
        """Keep it."""
        assert isinstance(item, Document)
        self.items.append(RefusedItem(item, status or 0, reason))


class _Notes(logging.Handler):
    """Keeps what is told, for the driver to tell."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._notes) < 100:
            self._notes.append(record.getMessage())
