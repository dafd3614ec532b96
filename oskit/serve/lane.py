"""The way of texts through one encoder: they wait, share batches, are computed, and go back.

Threads take what is next. Waiting texts are opened a window at a time: they are tokenized together and cut
into batches of neighbours in length, so that little of a batch is padding. What a request has beyond a window
waits at the end of the queue again, so that a small one is never behind all of a large one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from oskit.archive.batching import TokenIds, token_batches
from oskit.serve.refusals import overloaded

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.encoder import Steps

WINDOW_CHARACTERS = 65_536
"""Texts that are opened together: as many as have so many characters, some tens of batches."""

DOCUMENTS_NICE = 15
"""How much less of a busy core a thread gets that encodes documents: with 15 a query of a symmetric encoder
takes as long as on an idle machine (p99 4.0 ms both; 6.6 with 5, 10.6 with 0); documents take the rest."""

logger = logging.getLogger(__name__)

Write = Callable[["csr_matrix"], list[bytes]]
"""Makes an answer's part of each row of a matrix."""


class Watcher(Protocol):
    """Told what a lane does."""

    def opened(self, texts: int, tokens: int, waited: float) -> None:
        """A request's texts were tokenized, after so many seconds in the queue."""

    def computed(self, texts: int, tokens: int, seconds: float) -> None:
        """A batch went through the model; ``tokens`` with padding."""


@dataclass
class _Job:
    """The texts of one request."""

    texts: Sequence[str]
    write: Write
    answer: Future[list[bytes]] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    rows: list[bytes] = field(init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = [b""] * len(self.texts)
        self.left = len(self.texts)


@dataclass(frozen=True)
class _Part:
    """Texts of a request that are opened together: those from ``start`` to ``end``."""

    job: _Job
    start: int
    end: int

    @property
    def texts(self) -> Sequence[str]:
        return self.job.texts[self.start : self.end]


@dataclass(frozen=True)
class _Text:
    job: _Job
    place: int
    ids: TokenIds


class Lane:
    """A queue before an encoder, and the threads that empty it.

    Args:
        steps: How the encoder tokenizes, and weighs a batch.
        threads: How many batches are computed at once.
        limit: Texts that may be under way; more are refused.
        watcher: Told what happens.
        nice: Whether its threads give way to others of the process that have something to do.
    """

    def __init__(
        self, steps: Steps, *, threads: int, limit: int, watcher: Watcher, name: str, nice: bool = False
    ) -> None:
        self._steps = steps
        self._limit = limit
        self._watcher = watcher
        self._nice = nice
        self._changed = threading.Condition()
        self._urgent: deque[_Part] = deque()
        self._batches: deque[list[_Text]] = deque()
        self._waiting: deque[_Part] = deque()
        self._texts = 0
        self._seconds_a_text = 0.0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"oskit-{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def under_way(self) -> int:
        """Texts that were taken and not answered yet."""
        return self._texts

    def submit(self, texts: Sequence[str], write: Write, *, urgent: bool = False) -> Future[list[bytes]]:
        """Queue the texts of a request.

        Args:
            texts: At least one.
            write: Makes what is answered for each; called in a thread of the lane.
            urgent: Go before all others, whatever waits.

        Returns:
            What ``write`` made of each text, in order. Who cancels it takes the texts out of the queue.

        Raises:
            Refusal: Too many texts are under way.
        """
        job = _Job(texts, write)
        with self._changed:
            if not urgent and self._texts and self._texts + len(texts) > self._limit:
                raise overloaded(self._texts, self._texts * self._seconds_a_text)
            self._texts += len(texts)
            (self._urgent if urgent else self._waiting).append(_Part(job, 0, len(texts)))
            self._changed.notify()
        job.answer.add_done_callback(lambda _: self._left(len(texts)))
        return job.answer

    def at_once(self, texts: Sequence[str], write: Write) -> Future[list[bytes]]:
        """Encode texts here and now: what needs no model takes less time than another thread to wake up."""
        answer: Future[list[bytes]] = Future()
        start = time.monotonic()
        try:
            ids = self._steps.tokenize(texts)
            answer.set_result(write(self._steps.weigh(ids)))
        except Exception as error:
            answer.set_exception(error)
        else:
            tokens = sum(map(len, ids))
            self._watcher.opened(len(texts), tokens, 0.0)
            self._watcher.computed(len(texts), tokens, time.monotonic() - start)
        return answer

    def close(self) -> None:
        """Answer what is under way, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _left(self, texts: int) -> None:
        with self._changed:
            self._texts -= texts

    def _work(self) -> None:
        if self._nice:
            with suppress(OSError, AttributeError):  # on Linux a thread has a priority of its own
                thread = threading.get_native_id()
                os.setpriority(
                    os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + DOCUMENTS_NICE
                )
        while (task := self._next()) is not None:
            try:
                task()
            except Exception:  # whoever waits is told after a time; the others go on
                logger.exception("a batch failed")

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while True:
                if self._urgent:
                    part = self._urgent.popleft()
                    return lambda: self._open([part], first=True)
                if self._batches:
                    batch = self._batches.popleft()
                    return lambda: self._compute(batch)
                if self._waiting:
                    parts = self._window()
                    return lambda: self._open(parts)
                if self._closed:
                    return None
                self._changed.wait()

    def _window(self) -> list[_Part]:
        parts: list[_Part] = []
        characters = 0
        while self._waiting and characters < WINDOW_CHARACTERS:
            part = self._waiting.popleft()
            end = part.start
            while end < part.end and characters < WINDOW_CHARACTERS:
                characters += len(part.job.texts[end])
                end += 1
            parts.append(replace(part, end=end))
            if end < part.end:
                self._waiting.append(replace(part, start=end))
                self._changed.notify()
        return parts

    def _open(self, parts: list[_Part], *, first: bool = False) -> None:
        """Tokenize texts and make batches of them."""
        parts = [part for part in parts if not part.job.answer.done()]
        try:
            ids = self._steps.tokenize([text for part in parts for text in part.texts])
        except Exception as error:
            if len(parts) == 1:
                _fail(parts[0].job, error)
            for part in parts if len(parts) > 1 else ():  # the others are not to suffer
                self._open([part], first=first)
            return
        texts: list[_Text] = []
        for part in parts:
            own = ids[len(texts) : len(texts) + part.end - part.start]
            self._watcher.opened(len(own), sum(map(len, own)), time.monotonic() - part.job.since)
            texts += (_Text(part.job, part.start + place, row) for place, row in enumerate(own))
        groups = token_batches(ids, self._steps.budget)
        batches = [[texts[place] for place in group] for group in groups]
        if empty := [text for text in texts if not text.ids]:
            self._answer(empty, _no_weights(len(empty)))
        with self._changed:
            if first:
                self._batches.extendleft(batches)
            else:
                self._batches.extend(batches)
            self._changed.notify(len(batches))

    def _compute(self, batch: list[_Text]) -> None:
        batch = [text for text in batch if not text.job.answer.done()]
        if not batch:
            return
        start = time.monotonic()
        try:
            matrix = self._steps.weigh([text.ids for text in batch])
            seconds = time.monotonic() - start
            self._answer(batch, matrix)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0].job, error)
            for text in batch if len(batch) > 1 else ():  # one may be the cause, the others are not to suffer
                self._compute([text])
            return
        self._watcher.computed(len(batch), len(batch) * len(batch[0].ids), seconds)
        pace = seconds / len(batch) / len(self._threads)
        self._seconds_a_text = pace if not self._seconds_a_text else 0.9 * self._seconds_a_text + 0.1 * pace

    def _answer(self, texts: list[_Text], matrix: csr_matrix) -> None:
        written = {write: write(matrix) for write in {text.job.write for text in texts}}
        done = []
        with self._changed:
            for row, text in enumerate(texts):
                job = text.job
                job.rows[text.place] = written[job.write][row]
                job.left -= 1
                if not job.left:
                    done.append(job)
        for job in done:
            with suppress(InvalidStateError):  # nobody waits any more
                job.answer.set_result(job.rows)


def _fail(job: _Job, error: Exception) -> None:
    with suppress(InvalidStateError):
        job.answer.set_exception(error)


def _no_weights(rows: int) -> csr_matrix:
    import numpy as np
    from scipy.sparse import csr_matrix

    return csr_matrix((rows, 1), dtype=np.float32)
