"""Threads that send bulk requests while the next documents are encoded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from oskit.cluster.ingest.accounting import Account
from oskit.cluster.ingest.bulk import BulkItem, BulkOutcome, BulkSender
from oskit.cluster.ingest.sizes import RequestSizes
from oskit.errors import OskitError


class Senders:
    """Bulk requests that wait, and the threads that send them.

    What waits and what is being sent is bounded in bytes, not in requests: of large documents there is one
    at a time.

    As a context manager: leaving it waits until everything is sent, or, after an exception, until the
    requests in flight are answered; what was not sent then stays unaccounted for. ``sender`` makes the sender
    of a thread, which returns early once the event is set.

    Raises:
        OskitError: From :meth:`put` and on leaving: what failed first, in whichever thread.
    """

    def __init__(
        self,
        sender: Callable[[threading.Event], BulkSender],
        account: Account,
        *,
        workers: int,
        bulk_documents: int,
        sizes: RequestSizes,
    ) -> None:
        self._account = account
        self._bulk_documents = bulk_documents
        self._sizes = sizes
        self._room = 2 * workers * sizes.budget
        self._used = 0
        self._waiting: deque[list[BulkItem]] = deque()
        self._changed = threading.Condition()
        self._ending = False
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
        """Hand over items; waits while there is no room."""
        for item in items:
            if self._items and self._bytes + len(item.payload) > self._sizes.budget:
                self._flush()
            self._items.append(item)
            self._bytes += len(item.payload)
            if len(self._items) >= self._bulk_documents:
                self._flush()

    def _flush(self) -> None:
        items, size = self._items, self._bytes
        self._items, self._bytes = [], 0
        with self._changed:
            self._changed.wait_for(
                lambda: self._stop.is_set() or not self._used or self._used + size <= self._room
            )
            if self._failure is not None:
                raise self._failure
            if items:
                self._used += size
                self._waiting.append(items)
                self._changed.notify_all()

    def _run(self, sender: BulkSender) -> None:
        while (items := self._take()) is not None:
            failure = self._send(sender, items)
            with self._changed:
                self._used -= sum(len(item.payload) for item in items)
                if failure is not None:
                    self._failure = self._failure or failure
                    self._stop.set()
                self._changed.notify_all()
            items = None

    def _take(self) -> list[BulkItem] | None:
        """The next request; None where there is to be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending or self._stop.is_set())
            return self._waiting.popleft() if self._waiting and not self._stop.is_set() else None

    def _send(self, sender: BulkSender, items: list[BulkItem]) -> BaseException | None:
        """What failed, if anything did."""
        outcome = BulkOutcome()
        failure: BaseException | None = None
        try:
            sender.send(items, outcome)
        except BaseException as error:
            failure = error
        try:
            self._account.settle(outcome)
        except BaseException as error:
            failure = failure or error
        return failure

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        before = self._failure
        try:
            if error is None:
                self._flush()
            else:
                self._stop.set()
        finally:
            with self._changed:
                self._ending = True
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()
        if error is None and self._failure is not None:
            raise self._failure
        # What a thread met first may be why the rest went wrong.
        if isinstance(error, OskitError) and before is not None and error is not before:
            raise before from error
