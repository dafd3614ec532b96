"""A load as a Ray Data job: encoders on many machines, each of which sends what it has encoded.

The driver plans, prepares, reads and settles as in any other load. What is admitted goes in numbered blocks
through a feed, from which a source of Ray Data takes them; an actor encodes a block, sends it, and gives back
one row that says what became of it. A block whose actor was killed is run again by Ray: documents keep their
ids, and those that are in the index by then are known by their marks and not encoded twice. A row is counted
once, so the account of the driver is that of the whole load.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from oskit.archive.truncation import Truncation
from oskit.cluster.ingest.accounting import Account
from oskit.cluster.ingest.admission import Window
from oskit.cluster.ingest.plan import LoadPlan
from oskit.cluster.ingest.ray_encoders import Encoder, Feed, RayJob, Row, Task, ray_module, source
from oskit.cluster.ingest.work import Requests
from oskit.errors import DataError, IndexingError, OskitError
from oskit.extras import require

if TYPE_CHECKING:
    from oskit.archive.token_weights import Prune

BLOCK_WINDOWS = 4
"""Windows of a block, of which one is encoded while another is sent; the first blocks have one."""

_log = logging.getLogger("oskit.ray")


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
        ray = ray_module()
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
            ray_module().shutdown()

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
        task = Task(self._job, plan, uuid, prune, reencode, requests)
        ray = ray_module()
        feed = ray.remote(Feed).options(num_cpus=0, max_restarts=0).remote()
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
        ray = ray_module()
        try:
            ray.get(answer)
        except ray.exceptions.RayError as error:
            raise _failed(error) from error

    def _settle_all(self, feed: Any, task: Task, account: Account) -> None:
        """Count what comes back of each block, in a thread of its own."""
        try:
            for found in _dataset(feed, task, self._encoders, self._cpus).iter_rows():
                number, row = int(found["number"]), pickle.loads(found["row"])  # noqa: S301 - our own
                if number not in self._settled:
                    self._settle(row, account)
                    ray_module().get(feed.drop.remote(number))
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

    def _settle(self, row: Row, account: Account) -> None:
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


def _initialize(address: str) -> None:
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else warnings about Ray Data itself
    try:
        ray_module().init(
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


def _dataset(feed: Any, task: Task, encoders: int, cpus: int) -> Any:
    """A row for each block of the feed, as it is settled."""
    ray = ray_module()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails comes back, and is told by us
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block of ours is one of Ray's, and goes on at once
    blocks = ray.data.read_datasource(source(feed), override_num_blocks=1, num_cpus=0)
    return blocks.map_batches(
        Encoder,
        fn_constructor_args=(task, feed),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=encoders),
        num_cpus=cpus,
        num_gpus=1 if task.job.on_gpu else None,
    )
