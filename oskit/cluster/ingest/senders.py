"""Threads that send bulk requests while the next documents are encoded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Queue
from typing import Self

from oskit.cluster.ingest.accounting import Account
from oskit.cluster.ingest.bulk import BulkItem, BulkOutcome, BulkSender


class Senders:
    """A bounded queue of bulk requests and the threads that send them.

    As a context manager: leaving it waits until everything is sent, or, after an exception, until the
    requests in flight are answered; what was not sent then stays unaccounted for. ``sender`` makes the sender
    of a thread, which returns early once the event is set.

    Raises:
        OskitError: From :meth:`put` and on leaving: what the first failing thread raised.
    """

    def __init__(
        self,
        sender: Callable[[threading.Event], BulkSender],
        account: Account,
        *,
        workers: int,
        bulk_documents: int,
        bulk_bytes: int,
    ) -> None:
        self._account = account
        self._bulk_documents = bulk_documents
        self._bulk_bytes = bulk_bytes
        self._queue: Queue[list[BulkItem] | None] = Queue(maxsize=2 * workers)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._items: list[BulkItem] = []
        self._bytes = 0
        # Daemons, so that a second Ctrl-C ends the process at once.
        self._threads = [
            threading.Thread(
                target=self._run, args=(sender(self._stop),), name=f"oskit-bulk-{number}", daemon=True
            )
            for number in range(workers)
        ]

    def put(self, items: Sequence[BulkItem]) -> None:
        """Hand over items; waits while the queue is full."""
        for item in items:
            if self._items and self._bytes + len(item.payload) > self._bulk_bytes:
                self._flush()
            self._items.append(item)
            self._bytes += len(item.payload)
            if len(self._items) >= self._bulk_documents:
                self._flush()

    def _flush(self) -> None:
        self._raise_failure()
        if self._items:
            self._queue.put(self._items)
        self._items = []
        self._bytes = 0

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self, sender: BulkSender) -> None:
        while (items := self._queue.get()) is not None:
            if self._stop.is_set():
                continue  # keep taking, or whoever puts would wait for ever
            outcome = BulkOutcome()
            try:
                try:
                    sender.send(items, outcome)
                finally:
                    self._account.settle(outcome)
            except BaseException as error:
                self._failure = self._failure or error
                self._stop.set()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            if error is None:
                self._flush()
            else:
                self._stop.set()
        finally:
            for _ in self._threads:
                self._queue.put(None)
            for thread in self._threads:
                thread.join()
        if error is None:
            self._raise_failure()
