"""What runs on Ray's machines in a load: the feed of blocks, the source that reads it, and the encoders."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oskit.archive.siblings import archive_sha256
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
from oskit.errors import IndexingError, OskitError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.archive.token_weights import Prune

MOST_RUNS = 6
"""Of a block; if all their processes have ended, it is what ends them, as by the memory that it takes."""


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
class Task:
    """What an encoder has to know."""

    job: RayJob
    plan: LoadPlan
    uuid: str | None
    prune: Prune | None
    reencode: bool
    requests: Requests


@dataclass
class Row:
    """What became of a block; of one whose fate is known already nothing."""

    outcome: BulkOutcome = field(default_factory=BulkOutcome)
    unchanged: int = 0
    chunks: int | None = None
    truncation: Truncation | None = None
    busy_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    error: tuple[type[OskitError], str, str | None] | None = None


def ray_module() -> Any:
    """Ray, whose types are partly there."""
    import ray
    import ray.data

    return ray


class Feed:
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


def source(feed: Any) -> Any:
    """What Ray Data reads: the blocks of the feed, in their order; read anew, the same ones come."""
    import pyarrow
    from ray.data.block import BlockMetadata

    ray = ray_module()
    base: Any = ray.data.Datasource

    def read() -> Iterator[Any]:
        number = 0
        while (block := ray_module().get(feed.get.remote(number))) is not None:
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


class Encoder:
    """An actor that encodes blocks and sends them; opened with the first, so that a failure comes back."""

    def __init__(self, task: Task, feed: Any) -> None:
        self._task, self._feed = task, feed
        self._notes: list[str] = []
        self._is_open = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        number, block = int(batch["number"][0]), bytes(batch["block"][0])
        row = Row()
        if block and ray_module().get(self._feed.begin.remote(number)) > MOST_RUNS:
            message = f"a block of documents has ended {MOST_RUNS} processes that encoded it"
            row.error = IndexingError, message, "There may be too little memory: see what Ray's log says"
        elif block:
            row = self._work_off(pickle.loads(block))  # noqa: S301 - our own
        return {"number": [number], "row": [pickle.dumps(row)]}

    def _work_off(self, windows: list[Window]) -> Row:
        task, row, letters = self._task, Row(), _Letters()
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
        has = archive_sha256(self._encoder)
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
