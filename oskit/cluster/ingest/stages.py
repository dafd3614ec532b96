"""Threads that work side by side, each on what the one before it has done: reading, encoding, sending."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Self, TypeVar

from oskit.errors import OskitError

T = TypeVar("T")


class Line:
    """The stages of one load, which end together: what fails in one of them ends all.

    As a context manager: leaving it waits until every thread has ended. Without an exception they have worked
    off what there was if :meth:`Stage.finish` was called for each; after one they end with what they are at.

    Attributes:
        stop: Set when all are to end.

    Raises:
        OskitError: On leaving: what failed first, in whichever thread.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._stages: list[Stage[Any]] = []

    def goes_on(self) -> bool:
        """Whether nothing has ended it."""
        return not self.stop.is_set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        before = self._failure
        self._halt(None)
        for stage in self._stages:
            stage._wait()
        if error is None and self._failure is not None:
            raise self._failure
        # What a thread met first may be why the rest went wrong.
        if isinstance(error, OskitError) and before is not None and error is not before:
            raise before from error

    def _halt(self, failure: BaseException | None) -> None:
        with self._changed:
            if not self.stop.is_set():
                self._failure = failure
                self.stop.set()
            self._changed.notify_all()


class Stage(Generic[T]):
    """A queue, and the threads that work it off; each takes the next item when it is done with one.

    What waits and what is being worked on is bounded in bytes, not in items: of large ones there is one at a
    time.

    Args:
        line: What it is a part of.
        name: For the threads' names.
        works: What each of the threads does with an item.
        room: Bytes that wait or are being worked on at most, but for one item that is larger.
    """

    def __init__(self, line: Line, name: str, works: Sequence[Callable[[T], object]], room: int) -> None:
        self._line = line
        self._room = room
        self._used = 0
        self._waiting: deque[tuple[T, int]] = deque()
        self._ending = False
        # Daemons, so that a second Ctrl-C ends the process at once.
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=f"oskit-{name}-{number}", daemon=True)
            for number, work in enumerate(works)
        ]
        self._alive = len(self._threads)
        line._stages.append(self)
        for thread in self._threads:
            thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being worked on."""
        return not self._used

    def put(self, item: T, size: int) -> None:
        """Hand over an item of so many bytes; waits while there is no room.

        Raises:
            OskitError: What failed in some stage, so that nothing is taken any more.
        """
        line = self._line
        with line._changed:
            line._changed.wait_for(
                lambda: line.stop.is_set() or not self._used or self._used + size <= self._room
            )
            self._raise_if_stopped()
            self._used += size
            self._waiting.append((item, size))
            line._changed.notify_all()

    def finish(self) -> None:
        """Wait until all that was handed over is done; nothing may come any more.

        Raises:
            OskitError: As :meth:`put`.
        """
        with self._line._changed:
            self._ending = True
            self._line._changed.notify_all()
        self._wait()
        self._raise_if_stopped()

    def _wait(self) -> None:
        """Until the threads have ended."""
        # Not by Thread.join alone: interrupted by Ctrl-C, it takes a thread that runs for one that has ended
        # (Python 3.11), and a process that ends while another thread is in ONNX Runtime is aborted.
        with self._line._changed:
            self._line._changed.wait_for(lambda: not self._alive)
        for thread in self._threads:
            thread.join()

    def _raise_if_stopped(self) -> None:
        if self._line.stop.is_set():
            raise self._line._failure or _StoppedError

    def _run(self, work: Callable[[T], object]) -> None:
        try:
            self._work_off(work)
        finally:
            with self._line._changed:
                self._alive -= 1
                self._line._changed.notify_all()

    def _work_off(self, work: Callable[[T], object]) -> None:
        while (taken := self._take()) is not None:
            item, size = taken
            try:
                work(item)
            except _StoppedError:
                pass
            except BaseException as error:
                self._line._halt(error)
            taken = item = None  # type: ignore[assignment]  # not kept while the next is waited for
            with self._line._changed:
                self._used -= size
                self._line._changed.notify_all()

    def _take(self) -> tuple[T, int] | None:
        """The next item; None where there is to be none any more."""
        changed, stop = self._line._changed, self._line.stop
        with changed:
            changed.wait_for(lambda: self._waiting or self._ending or stop.is_set())
            return self._waiting.popleft() if self._waiting and not stop.is_set() else None


class _StoppedError(Exception):
    """Another stage, or whoever feeds the first, has ended the line."""
