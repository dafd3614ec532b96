"""How large a bulk request may be: what is asked for, and what turns out to pass on the way to it."""

from __future__ import annotations

import threading


class RequestSizes:
    """Sizes of requests in bytes; all threads of a load learn together.

    A proxy refuses a request over its limit (413), whose value it does not tell. One document over the limit
    is a size like any other: it costs the others nothing, since what has passed before passes again.

    Args:
        most: No request is made larger, but for one document that is.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._passed = 0
        self._refused: int | None = None
        self._lock = threading.Lock()

    @property
    def budget(self) -> int:
        """Up to which documents are put together: a little more than has passed, or half of what did not."""
        with self._lock:
            if self._refused is None:
                return self._most
            more = self._passed + self._passed // 4
            return min(self._most, max(more if more < self._refused else self._passed, self._refused // 2))

    def passed(self, size: int) -> None:
        """A request of this size was answered."""
        with self._lock:
            if self._refused is None or size < self._refused:
                self._passed = max(self._passed, size)

    def refused(self, size: int) -> None:
        """A request of this size was too large."""
        with self._lock:
            self._refused = size if self._refused is None else min(self._refused, size)
            if self._passed >= self._refused:
                self._passed = 0  # another limit than before, as behind a balancer
