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
        bulk_documents: Texts of a request at most: documents, or their chunks, unless one has more.
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
        self._bytes = self._texts = 0
        works = [partial(self._send, sender()) for _ in range(workers)]
        self._stage: Stage[list[BulkItem]] = Stage(line, "send", works, (workers + 1) * sizes.budget)

    def put(self, items: Sequence[BulkItem]) -> None:
        """Hand over items, from one thread; waits while there is no room.

        Raises:
            OskitError: What failed in some stage.
        """
        for item in items:
            texts = max(1, len(item.document.encoded_texts))
            too_long = self._bytes + len(item.payload) > self._sizes.budget
            if self._items and (too_long or self._texts + texts > self._bulk_documents):
                self._flush()
            self._items.append(item)
            self._bytes += len(item.payload)
            self._texts += texts
            soon = len(self._items) >= _SENT_SOON and self._stage.is_idle
            if self._texts >= self._bulk_documents or soon:
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
        self._items, self._bytes, self._texts = [], 0, 0
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
