"""Threads that send bulk requests while the next documents are encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from oskit.cluster.ingest.accounting import Account
from oskit.cluster.ingest.admission import DOCUMENT_BYTES
from oskit.cluster.ingest.bulk import BulkItem, BulkOutcome, BulkSender
from oskit.cluster.ingest.sizes import RequestSizes
from oskit.cluster.ingest.stages import Line, Stage

_SENT_SOON = 500
"""Items that do not wait for more where nothing else is to be sent: what waits is lost by a kill."""


class Senders:
    """Puts items together to requests, for a stage that sends them.

    Args:
        line: What the stage is a part of.
        sender: Makes the sender of a thread, which returns early once the line ends; what it has not sent
            then stays unaccounted for.
        account: Told what became of the items.
        workers: Requests in flight.
        bulk_documents: Items of a request at most.
        sizes: Bytes of a request.
    """

    def __init__(
        self,
        line: Line,
        sender: Callable[[], BulkSender],
        account: Account,
        *,
        workers: int,
        bulk_documents: int,
        sizes: RequestSizes,
    ) -> None:
        self._account = account
        self._bulk_documents = bulk_documents
        self._sizes = sizes
        self._items: list[BulkItem] = []
        self._bytes = 0
        works = [partial(self._send, sender()) for _ in range(workers)]
        self._stage: Stage[list[BulkItem]] = Stage(line, "send", works, (workers + 1) * sizes.budget)

    def put(self, items: Sequence[BulkItem]) -> None:
        """Hand over items, from one thread; waits while there is no room.

        Raises:
            OskitError: What failed in some stage.
        """
        for item in items:
            if self._items and self._bytes + len(item.payload) > self._sizes.budget:
                self._flush()
            self._items.append(item)
            self._bytes += len(item.payload)
            count = len(self._items)
            if count >= self._bulk_documents or (count >= _SENT_SOON and self._stage.is_idle):
                self._flush()

    def finish(self) -> None:
        """Wait until everything is sent.

        Raises:
            OskitError: What failed in some stage.
        """
        self._flush()
        self._stage.finish()

    def _flush(self) -> None:
        items, size = self._items, self._bytes
        self._items, self._bytes = [], 0
        if items:
            self._stage.put(items, size + DOCUMENT_BYTES * len(items))

    def _send(self, sender: BulkSender, items: list[BulkItem]) -> None:
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
        if failure is not None:
            raise failure
