"""Send documents with the bulk API, and account for every one of them.

opensearch-py's helpers either raise at the first item that is refused or never retry it; here an item is
retried for as long as its refusal is passing, and what is refused for good comes back with its reason. A
refusal that is not about the document ends the load: in a dead-letter file it would hide among the documents
that somebody has to look at. What the words mean says :mod:`oskit.cluster.client.server_words`; of words that
nobody knows a document that was taken before tells (:mod:`oskit.cluster.ingest.witness`).
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opensearchpy.exceptions import ConnectionTimeout, TransportError

from oskit.cluster.client.connection import COMPRESSED
from oskit.cluster.client.failures import cluster_errors, error_reason, error_words, heard
from oskit.cluster.client.retry import Patience, is_transient, policy_of, tell, tell_once
from oskit.cluster.client.server_words import FOREIGN, Meaning, meaning
from oskit.cluster.ingest.known import marks_there
from oskit.cluster.ingest.sizes import RequestSizes
from oskit.cluster.ingest.witness import Witness
from oskit.data.documents import Document
from oskit.data.values import clean_text
from oskit.errors import ClusterConnectionError, IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

MAX_REASON_LENGTH = 1000
"""Of a refused document, in characters."""

TEXTS_IN_TIME = 100
"""Documents, or chunks of them, that may take as long as a request; more may take longer."""

_MAX_DOCUMENTS = 100_000

_MAX_BYTES = 5_000_000

_NOT_UNDERSTOOD = (400, 403, 406, 415)
"""What those may say of a compressed request who look into it on its way."""

_MAX_HELD = 20
"""Documents that are refused before any is taken, after which it is not them."""

_CREATES = b'{"create"'

_WRITTEN = ("_index", "_seq_no", "_primary_term")

TAKEN_ONCE = "the data stream has another document of this id, and takes none in its place"

_NO_SUCH_VERSION = {"if_seq_no": 2**53 - 1, "if_primary_term": 1}
"""Makes a cluster do all but write: pipelines and mapping have their say, and then comes a conflict (409)."""


@dataclass(slots=True)
class BulkItem:
    """A document and the two lines that index it."""

    document: Document
    payload: bytes
    patience: Patience | None = None
    """Begins with the item's first refusal that may pass."""
    suspect: bool = False
    """It was refused for what may be another's fault, and goes alone now."""
    written: dict[str, Any] | None = None
    """Where the cluster has put it, as a hit tells that: index, id, and the number of this very write."""


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


@dataclass(frozen=True, slots=True)
class _Said:
    """What the cluster said to one item."""

    item: BulkItem
    status: int
    reason: str

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


class BulkSender:
    """Sends items, a request at a time; requests shrink when the cluster is busy or finds them too large.

    Use one for each thread.

    Args:
        client: Its policy (:mod:`oskit.cluster.client.retry`) holds for each item and each request.
        index: The index; document ids come with the items.
        pipeline: Ingest pipeline that encodes the documents; ``"_none"`` for none.
        request_timeout: Limit of one request of :data:`TEXTS_IN_TIME` texts, in seconds; None for the
            client's.
        stop: When it is set, :meth:`send` returns early, with the items that were not sent unaccounted for.
        sizes: How large requests may be; shared by the senders of a load.
        witness: What they know about the cluster; shared too.
    """

    def __init__(
        self,
        client: OpenSearch,
        index: str,
        *,
        pipeline: str = "_none",
        request_timeout: float | None = None,
        stop: threading.Event | None = None,
        sizes: RequestSizes | None = None,
        witness: Witness | None = None,
    ) -> None:
        self._client = client
        self._index = index
        self._action = f"index documents into {index!r}"
        self._policy = policy_of(client)
        self._stop = stop or threading.Event()
        self._sizes = sizes or RequestSizes(_MAX_BYTES)
        self._witness = witness or Witness()
        self._compressed = False
        self._limit = _MAX_DOCUMENTS
        self._held: list[_Said] = []
        self._patience = Patience(self._policy)  # with requests that fail as a whole
        self._params: dict[str, Any] = {
            "pipeline": pipeline,
            "filter_path": "took,ingest_took,items.*._id,items.*.status,items.*.error,items.*.result",
        }
        if self._witness.prove is not None:
            self._params["filter_path"] += "".join(f",items.*.{name}" for name in _WRITTEN)
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
        while not self._stop.is_set():
            if not waiting or len(self._held) >= _MAX_HELD:
                waiting.extend(self._released())
            if not waiting:
                break
            batch = self._next(waiting)
            with cluster_errors(self._action, IndexingError):
                again, wait_s = self._send_batch(batch, outcome)
            if again and wait_s:
                outcome.retries += len(again)
                self._limit = max(1, len(batch) // 2)
                self._stop.wait(wait_s)
            elif not again:
                self._limit = min(self._limit * 2, _MAX_DOCUMENTS)
            waiting.extendleft(reversed(again))
        return outcome

    def _next(self, waiting: deque[BulkItem]) -> list[BulkItem]:
        """The items of the next request: as many as may be; a large one goes alone."""
        batch, budget = [waiting.popleft()], self._sizes.budget
        size = len(batch[0].payload)
        limit = 1 if batch[0].suspect else self._limit
        while waiting and len(batch) < limit and size + len(waiting[0].payload) <= budget:
            if waiting[0].suspect:
                break
            size += len(waiting[0].payload)
            batch.append(waiting.popleft())
        return batch

    def _send_batch(self, batch: list[BulkItem], outcome: BulkOutcome) -> tuple[list[BulkItem], float]:
        """One request; returns what has to be sent again, and after how many seconds."""
        try:
            results = self._request(batch)
        except TransportError as failure:
            return self._after_failure(failure, batch, outcome)
        self._patience = Patience(self._policy)
        return self._after_answer(results, batch, outcome)

    def _request(self, batch: Sequence[BulkItem]) -> list[tuple[int, str]]:
        """Status and reason of each document; the reason is empty where it was indexed.

        Raises:
            TransportError: The request fails as a whole.
            ClusterConnectionError: The answer does not speak of these documents.
        """
        body = batch[0].payload if len(batch) == 1 else b"".join(item.payload for item in batch)
        self._compressed = self._sizes.compresses
        headers, start = dict(COMPRESSED) if self._compressed else {}, time.perf_counter()
        params = dict(self._params)
        if limit_s := params.get("request_timeout"):
            texts = sum(len(item.document.encoded_texts) for item in batch)
            params["request_timeout"] = limit_s * max(1, texts / TEXTS_IN_TIME)
        answer = self._client.bulk(body=body, index=self._index, params=params, headers=headers)
        seconds = time.perf_counter() - start
        took = [answer.get(name) for name in ("took", "ingest_took")]
        cluster_s = sum(ms for ms in took if isinstance(ms, int)) / 1000
        self._sizes.answered(len(body), seconds, cluster_s, compressed=self._compressed)
        try:
            answers = [_result(item) for item in answer["items"]]
        except (KeyError, TypeError, ValueError, AttributeError):
            answers = []
        results = [(status, reason) for _, status, reason in answers]
        if len(answers) == len(batch) and all(identity is not None for identity, _, _ in answers):
            # Not by their order: what a pipeline refuses stands in that in which its batches failed (3.6).
            named = {identity: (status, reason) for identity, status, reason in answers}
            ids = [clean_text(item.document.id) for item in batch]
            results = [named[identity] for identity in ids if identity in named]
            if self._witness.prove is not None:
                found = {one["_id"]: one for each in answer["items"] for one in each.values()}
                for item, identity in zip(batch, ids, strict=True):
                    item.written = found.get(identity)
        if len(results) != len(batch):
            raise ClusterConnectionError(
                f"cannot {self._action}: the answer speaks of {len(results)} of {len(batch)} documents: "
                f"{FOREIGN.means} ({json.dumps(answer)[:200]})",
                hint=FOREIGN.do,
            )
        return results

    def _after_failure(
        self, failure: TransportError, batch: list[BulkItem], outcome: BulkOutcome
    ) -> tuple[list[BulkItem], float]:
        """The request failed as a whole: wait, split it, or give up."""
        known, status = heard(failure, "item"), failure.status_code
        size = sum(len(item.payload) for item in batch)
        if status == 413:
            self._sizes.refused(size)
        elif isinstance(failure, ConnectionTimeout):
            self._sizes.late(size)
        elif self._compressed and status in _NOT_UNDERSTOOD and self._sizes.compressed_failed():
            return batch, 0
        if status in (400, 413) and (known is None or known.scope == "item"):
            # One document can fail a whole request: find it by halving, or by its size.
            if len(batch) > 1:
                if status == 400:
                    self._limit = len(batch) // 2
                return batch, 0
            self._witness.check()
            said = _Said(batch[0], status, error_reason(failure))
            if known is None:
                return self._judge([said], outcome)
            outcome.refused.append(RefusedItem(said.item.document, status, f"{known.means} ({said.reason})"))
            return [], 0
        passes = is_transient(failure) or (known is not None and known.passes == "model")
        wait = self._patience.wait_s(known) if passes else None
        if wait is None:
            if status in (400, 404):
                self._witness.check()  # what is gone may have gone with the index
            raise failure
        tell(failure, wait)
        return batch, wait

    def _after_answer(
        self, results: list[tuple[int, str]], batch: list[BulkItem], outcome: BulkOutcome
    ) -> tuple[list[BulkItem], float]:
        again: list[BulkItem] = []
        suspects: list[_Said] = []
        refused: list[RefusedItem] = []
        pause_s = 0.0
        busy: tuple[_Said, Meaning | None] | None = None
        there: list[BulkItem] = []
        taken: list[BulkItem] = []
        ending: IndexingError | None = None  # raised when the whole answer has been counted
        for item, (status, reason) in zip(batch, results, strict=True):
            if not reason:
                taken.append(item)
                self._witness.took(item)
                continue
            said, known = _Said(item, status, reason), meaning(reason, status, "item")
            if status == 409 and item.payload.startswith(_CREATES):
                there.append(item)
            elif known is None and _may_be_about_it(said):
                suspects.append(said)
            elif known is not None and known.spreads and len(batch) > 1:
                item.suspect = True
                again.append(item)
            elif known is not None and known.scope == "item":
                advice = known.advice(self._index)
                told = f"{reason}; {advice}" if advice else reason
                refused.append(RefusedItem(item.document, status, told))
            elif (wait := self._item_wait_s(item, known)) is not None:
                pause_s, busy = max(pause_s, wait), (said, known)
                again.append(item)
            else:
                ending = ending or self._end(said, known)
        if self._witness.prove is not None:
            self._witness.prove(taken)
        outcome.indexed += len(taken)
        if refused or suspects or ending is not None:
            # Another index of that name has another mapping, which has nothing to do with these documents.
            self._witness.check()
        else:
            self._witness.check_now_and_then()
        outcome.refused += refused
        self._settle(there, outcome)
        if ending is not None:
            raise ending
        if busy is not None:
            self._tell_busy(*busy, len(again), len(batch), pause_s)
        if suspects:
            more, wait = self._judge(suspects, outcome)
            again, pause_s = again + more, max(pause_s, wait)
        return again, pause_s

    def _settle(self, there: Sequence[BulkItem], outcome: BulkOutcome) -> None:
        """What a data stream has: this very document, as after an answer that was lost, or another."""
        if not there:
            return
        self._client.indices.refresh(index=self._index)
        ids = [clean_text(item.document.id) for item in there]
        marks = marks_there(self._client, self._index, ids)
        for item, identity in zip(there, ids, strict=True):
            if any(mark and mark.encode() in item.payload for _, mark in marks.get(identity, ())):
                outcome.indexed += 1
            else:
                outcome.refused.append(RefusedItem(item.document, 409, TAKEN_ONCE))

    def _judge(self, suspects: list[_Said], outcome: BulkOutcome) -> tuple[list[BulkItem], float]:
        """Documents that were refused with words that nobody knows: is it them, or the cluster?

        They are sent once more, each alone: one that a model fails for takes along what is encoded with it.
        Where a document that was taken before is taken before that and after it, and one of them is not, that
        one is at fault; where none was taken so far, the others are tried first.

        Raises:
            IndexingError: It is the cluster.
        """
        good = self._witness.good
        if good is not None and (wait := self._vouch(good, suspects[0])):
            return [said.item for said in suspects], wait
        again = []
        for said in suspects:
            if not said.item.suspect:
                said.item.suspect = True
                again.append(said.item)
            elif good is None:
                self._held.append(said)
            else:
                outcome.refused.append(RefusedItem(said.item.document, said.status, said.reason))
        return again, 0

    def _released(self) -> list[BulkItem]:
        """Documents that were held back until another is taken.

        Raises:
            IndexingError: None was.
        """
        if self._held and self._witness.good is None:
            raise self._end(self._held[0], None)
        held, self._held = self._held, []
        return [said.item for said in held]

    def _vouch(self, good: BulkItem, suspect: _Said) -> float:
        """Show a document once more that was taken, without writing it; after how many seconds to ask again.

        Raises:
            IndexingError: It is refused too.
        """
        action, source = good.payload.split(b"\n", 1)
        if not action.startswith(_CREATES):  # which comes to a conflict by itself
            action = json.dumps({"index": {**json.loads(action)["index"], **_NO_SUCH_VERSION}}).encode()
        try:
            again = BulkItem(good.document, action + b"\n" + source)
            ((status, reason),) = self._request([again])
        except TransportError as failure:
            known = heard(failure, "item")
            if is_transient(failure) and (wait := self._item_wait_s(suspect.item, known)) is not None:
                tell(failure, wait)
                return wait
            if known is not None or is_transient(failure):
                raise
            said = _Said(suspect.item, int(failure.status_code), error_reason(failure))
            raise self._end(said, None) from failure
        if not reason or status == 409:
            return 0.0
        said, known = _Said(suspect.item, status, reason), meaning(reason, status, "item")
        if (known is not None or not _may_be_about_it(said)) and (
            wait := self._item_wait_s(suspect.item, known)
        ):
            self._tell_busy(said, known, 1, 1, wait)
            return wait
        raise self._end(said, known)

    def _end(self, said: _Said, known: Meaning | None) -> IndexingError:
        """The error that ends the load, since this is not about the document."""
        if known is not None:
            message = f"cannot {self._action}: {known.means} ({said})"
            return IndexingError(message, hint=known.advice(self._index))
        document = said.item.document
        where = f" ({document.where})" if document.where else ""
        if self._witness.good is None:
            return IndexingError(
                f"cannot {self._action}: none was taken so far, such as {document.id!r}{where} ({said})",
                hint="Correct what the message names, in the index, its pipelines or the documents",
            )
        return IndexingError(
            f"cannot {self._action}: {document.id!r}{where} is refused for a reason that is not its own "
            f"({said})",
            hint="Correct what the message names, in the cluster, the index or its pipelines; where it stays "
            "with this document alone, leave that out",
        )

    def _tell_busy(self, said: _Said, known: Meaning | None, count: int, of: int, pause_s: float) -> None:
        why = f"{known.means[0].upper()}{known.means[1:]}" if known is not None else ""
        if known is not None and known.passes == "model":
            if self._witness.is_news():
                tell_once(f"{why} ({said})", self._policy)
        elif known is not None and known.fault == "model":
            tell(f"{why}, so {count} of {of} documents wait ({said})", pause_s)
        else:
            tell(f"The cluster is too busy for {count} of {of} documents ({said})", pause_s)

    def _item_wait_s(self, item: BulkItem, known: Meaning | None) -> float | None:
        if known is not None and known.passes == "never":
            return None
        item.patience = item.patience or Patience(self._policy)
        return item.patience.wait_s(known)


def _result(answer: dict[str, Any]) -> tuple[str | None, int, str]:
    """Id, status and reason of one item of an answer."""
    (result,) = answer.values()
    identity, status = result.get("_id"), int(result["status"])
    if not 200 <= status < 300:
        return identity, status, error_words(result.get("error"))[:MAX_REASON_LENGTH]
    # A drop processor answers that all is well.
    return (
        (identity, 400, "an ingest pipeline drops it")
        if result.get("result") == "noop"
        else (identity, status, "")
    )


def _may_be_about_it(said: _Said) -> bool:
    """Whether words that nobody knows can be about one document.

    The cluster's own failures (5xx) are not, but a ``fail`` processor in somebody's pipeline answers 500 too.
    """
    return said.status < 500 or "fail_processor_exception" in said.reason
