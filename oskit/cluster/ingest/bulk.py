"""Send documents with the bulk API, and account for every one of them.

opensearch-py's helpers either raise at the first item that is refused or never retry it; here an item is
retried for as long as its refusal is passing, and what is refused for good comes back with its reason. A
refusal that is not about the document (:mod:`oskit.cluster.client.server_words`) ends the load: in a
dead-letter file it would hide among the documents that somebody has to look at.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opensearchpy.exceptions import TransportError

from oskit.cluster.client.failures import cluster_errors, error_reason, error_words, heard
from oskit.cluster.client.retry import Patience, is_transient, policy_of, tell
from oskit.cluster.client.server_words import Meaning, meaning
from oskit.data.documents import Document
from oskit.errors import IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

MAX_REASON_LENGTH = 1000
"""Of a refused document, in characters."""

_MAX_DOCUMENTS = 100_000


@dataclass(slots=True)
class BulkItem:
    """A document and the two lines that index it."""

    document: Document
    payload: bytes
    patience: Patience | None = None
    """Begins with the item's first refusal that may pass."""


@dataclass(frozen=True, slots=True)
class RefusedItem:
    """A document that the cluster does not take."""

    document: Document
    status: int
    reason: str


@dataclass
class BulkOutcome:
    """What became of the items of one call: ``indexed + len(refused)`` is their number."""

    indexed: int = 0
    refused: list[RefusedItem] = field(default_factory=list)
    retries: int = 0


class BulkSender:
    """Sends items, a request at a time; requests shrink when the cluster is busy or finds them too large.

    Use one for each thread.

    Args:
        client: Its policy (:mod:`oskit.cluster.client.retry`) holds for each item and each request.
        index: The index; document ids come with the items.
        pipeline: Ingest pipeline that encodes the documents; ``"_none"`` for none.
        request_timeout: Limit of one request in seconds; None for the client's.
        stop: When it is set, :meth:`send` returns early, with the items that were not sent unaccounted for.
    """

    def __init__(
        self,
        client: OpenSearch,
        index: str,
        *,
        pipeline: str = "_none",
        request_timeout: float | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._client = client
        self._index = index
        self._policy = policy_of(client)
        self._stop = stop or threading.Event()
        self._limit = _MAX_DOCUMENTS
        self._ceiling = _MAX_DOCUMENTS
        self._patience = Patience(self._policy)  # with requests that fail as a whole
        self._params: dict[str, Any] = {
            "pipeline": pipeline,
            "filter_path": "items.*.status,items.*.error",
        }
        if request_timeout is not None:
            self._params["request_timeout"] = request_timeout

    def send(self, items: Sequence[BulkItem], outcome: BulkOutcome | None = None) -> BulkOutcome:
        """Index the items; returns when each is indexed or refused (or ``stop`` is set).

        Args:
            items: The documents.
            outcome: Counted in as it happens, so that it holds true when an error ends the call.

        Raises:
            ClusterError: The cluster cannot be reached, or refuses every document alike.
        """
        outcome = BulkOutcome() if outcome is None else outcome
        waiting = deque(items)
        while waiting and not self._stop.is_set():
            batch = [waiting.popleft() for _ in range(min(self._limit, len(waiting)))]
            again, wait_s = self._send_batch(batch, outcome)
            if again and wait_s:
                outcome.retries += len(again)
                self._limit = max(1, len(batch) // 2)
                self._stop.wait(wait_s)
            elif not again:
                self._limit = min(self._limit * 2, self._ceiling)
            waiting.extendleft(reversed(again))
        return outcome

    def _send_batch(self, batch: list[BulkItem], outcome: BulkOutcome) -> tuple[list[BulkItem], float]:
        """One request; returns what has to be sent again, and after how many seconds."""
        body = b"".join(item.payload for item in batch)
        with cluster_errors(f"index documents into {self._index!r}", IndexingError):
            try:
                answer = self._client.bulk(body=body, index=self._index, params=dict(self._params))
            except TransportError as failure:
                return self._after_failure(failure, batch, outcome)
        self._patience = Patience(self._policy)
        items = answer.get("items") or []
        if len(items) != len(batch):
            raise IndexingError(f"the cluster answered for {len(items)} of {len(batch)} documents")
        return self._after_answer(items, batch, outcome)

    def _after_failure(
        self, failure: TransportError, batch: list[BulkItem], outcome: BulkOutcome
    ) -> tuple[list[BulkItem], float]:
        """The request failed as a whole: wait, split it, or give up."""
        known, status = heard(failure, "item"), failure.status_code
        if status in (400, 413) and (known is None or known.scope == "item"):
            # One document can fail a whole request: find it by halving.
            if len(batch) == 1:
                reason = error_reason(failure)
                reason = f"{known.means} ({reason})" if known else reason
                outcome.refused.append(RefusedItem(batch[0].document, status, reason))
                return [], 0
            self._limit = max(1, len(batch) // 2)
            if status == 413:
                self._ceiling = self._limit
            return batch, 0
        wait = self._patience.wait_s(known) if is_transient(failure) else None
        if wait is None:
            raise failure
        tell(failure, wait)
        return batch, wait

    def _after_answer(
        self, answers: list[dict[str, Any]], batch: list[BulkItem], outcome: BulkOutcome
    ) -> tuple[list[BulkItem], float]:
        again: list[BulkItem] = []
        pause_s, busy = 0.0, ""
        ending: IndexingError | None = None  # raised when the whole answer has been counted
        for item, answer in zip(batch, answers, strict=True):
            (result,) = answer.values()
            status = int(result.get("status", 500))
            if 200 <= status < 300:
                outcome.indexed += 1
                continue
            reason = error_words(result.get("error"))[:MAX_REASON_LENGTH]
            known = meaning(reason, status, "item")
            if known is None or known.scope == "item":
                advice = known.advice(self._index) if known else None
                reason = f"{reason}; {advice}" if advice else reason
                outcome.refused.append(RefusedItem(item.document, status, reason))
            elif (wait := self._item_wait_s(item, known)) is not None:
                pause_s, busy = max(pause_s, wait), f"{status}: {reason}"
                again.append(item)
            else:
                ending = ending or IndexingError(
                    f"cannot index documents into {self._index!r}: {known.means} ({status}: {reason})",
                    hint=known.advice(self._index),
                )
        if ending is not None:
            raise ending
        if again:
            tell(f"The cluster is too busy for {len(again)} of {len(batch)} documents ({busy})", pause_s)
        return again, pause_s

    def _item_wait_s(self, item: BulkItem, known: Meaning) -> float | None:
        if known.passes != "soon":
            return None
        item.patience = item.patience or Patience(self._policy)
        return item.patience.wait_s(known)
