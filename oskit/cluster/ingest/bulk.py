"""Send documents with the bulk API, and account for every one of them.

opensearch-py's helpers either raise at the first item that is refused or never retry it; here an item is
retried for as long as its refusal is passing (429, 503), and what is refused for good comes back with its
reason. A refusal that is not about the document ends the load: in a dead-letter file it would hide among the
documents that somebody has to look at.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opensearchpy.exceptions import TransportError

from oskit.cluster.client.failures import cluster_errors, error_reason
from oskit.cluster.client.retry import Patience, is_transient, policy_of, tell
from oskit.data.documents import Document
from oskit.errors import IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

_BUSY = frozenset({429, 503})
"""Statuses of an item that pass."""

_OPEN_BREAKER = "circuit breaker is open"
"""ML Commons is short of memory; it says so with various statuses."""

_DEPLOY_AGAIN = "Deploy the model of the ingest pipeline again: oskit models, oskit deploy"

_OPEN_INDEX = "Open it: POST {index}/_open"

_FAULTS_OF_THE_CLUSTER = {
    "model not ready": _DEPLOY_AGAIN,
    # A document that is being encoded while its model is undeployed (DJL closes the model's memory).
    "has been closed already": _DEPLOY_AGAIN,
    _OPEN_BREAKER: "Free memory on the nodes, undeploy other models, or send less at once with --bulk-size",
    "index closed": _OPEN_INDEX,
    "index preparing to close": _OPEN_INDEX,
    "cluster_block_exception": "Free disk space on the nodes, or lift the block",
    "index_closed_exception": _OPEN_INDEX,
    "pipeline with id": "Somebody deleted the ingest pipeline; run the command again",
}
"""Words of refusals that are not about the document, and what to do."""

_WAYS_OUT = {
    "limit of total fields": "leave out fields, or allow more: "
    'PUT {index}/_settings {{"index.mapping.total_fields.limit": 2000}}',
}
"""Words of refusals that are about the document, and what helps where the document is right."""

_BUSY_FOR_LONG = "The cluster stayed busy: send less at once with --bulk-size and --workers, or wait longer \
with --retry-for"

_MAX_DOCUMENTS = 100_000


@dataclass(frozen=True, slots=True)
class BulkItem:
    """A document and the two lines that index it."""

    document: Document
    payload: bytes


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


@dataclass
class _Pending:
    item: BulkItem
    patience: Patience | None = None
    """Begins with the item's first refusal that may pass."""


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
        waiting = deque(_Pending(item) for item in items)
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

    def _send_batch(self, batch: list[_Pending], outcome: BulkOutcome) -> tuple[list[_Pending], float]:
        """One request; returns what has to be sent again, and after how many seconds."""
        body = b"".join(pending.item.payload for pending in batch)
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
        self, failure: TransportError, batch: list[_Pending], outcome: BulkOutcome
    ) -> tuple[list[_Pending], float]:
        """The request failed as a whole: wait, split it, or give up."""
        status = failure.status_code
        if status in (400, 413):
            # One document can fail a whole request: find it by halving.
            if len(batch) == 1:
                reason = error_reason(failure)
                if status == 413:
                    reason = f"the document is too large for a request ({reason})"
                outcome.refused.append(RefusedItem(batch[0].item.document, status, reason))
                return [], 0
            self._limit = max(1, len(batch) // 2)
            if status == 413:
                self._ceiling = self._limit
            return batch, 0
        wait = self._patience.wait_s(failure) if is_transient(failure) else None
        if wait is not None:
            tell(failure, wait)
            return batch, wait
        with cluster_errors(f"index documents into {self._index!r}", IndexingError):
            raise failure
        raise AssertionError("cluster_errors raises")

    def _after_answer(
        self, items: list[dict[str, Any]], batch: list[_Pending], outcome: BulkOutcome
    ) -> tuple[list[_Pending], float]:
        again: list[_Pending] = []
        pause_s, busy = 0.0, ""
        ending: IndexingError | None = None  # raised when the whole answer has been counted
        for pending, answer in zip(batch, items, strict=True):
            (result,) = answer.values()
            status = int(result.get("status", 500))
            if 200 <= status < 300:
                outcome.indexed += 1
                continue
            reason = item_reason(result.get("error"))
            passes = _passes(status, reason)
            if passes and (wait := self._item_wait_s(pending, reason)) is not None:
                pause_s, busy = max(pause_s, wait), f"{status}: {reason}"
                again.append(pending)
            elif hint := _not_the_documents_fault(status, reason) or (_BUSY_FOR_LONG if passes else None):
                ending = ending or IndexingError(
                    f"cannot index documents into {self._index!r}: {reason} ({status})",
                    hint=hint.format(index=self._index),
                )
            else:
                way_out = "".join(f"; {hint}" for words, hint in _WAYS_OUT.items() if _says(reason, words))
                reason += way_out.format(index=self._index)
                outcome.refused.append(RefusedItem(pending.item.document, status, reason))
        if ending is not None:
            raise ending
        if again:
            tell(f"The cluster is too busy for {len(again)} of {len(batch)} documents ({busy})", pause_s)
        return again, pause_s

    def _item_wait_s(self, pending: _Pending, reason: str) -> float | None:
        pending.patience = pending.patience or Patience(self._policy)
        return pending.patience.wait_s(reason)


def _passes(status: int, reason: str) -> bool:
    return status in _BUSY or _says(reason, _OPEN_BREAKER)


def _says(reason: str, words: str) -> bool:
    # Refusals by the mapping quote the document, which may hold any words.
    return words in reason.lower() and not reason.startswith("mapper_parsing_exception")


def _not_the_documents_fault(status: int, reason: str) -> str | None:
    """What to do about a refusal that every other document would get as well; None if it is this one's."""
    for words, hint in _FAULTS_OF_THE_CLUSTER.items():
        if _says(reason, words):
            return hint
    if status in (401, 403):
        return "Ask the cluster's administrator for a role with this permission, or to lift the block"
    return "The index, its pipeline or its model is gone" if status == 404 else None


def item_reason(error: Any) -> str:
    """An item's error in one line: type, reason, and what caused it."""
    if not isinstance(error, dict):
        return str(error or "no reason given")
    parts: list[str] = []
    while isinstance(error, dict):
        part = ": ".join(str(error[key]) for key in ("type", "reason") if error.get(key))
        if part and part not in parts:
            parts.append(part)
        error = error.get("caused_by")
    return " ".join("; ".join(parts).split())[:1000]
