"""How bulk requests travel: how large, and whether compressed; learned on the way to the cluster."""

from __future__ import annotations

import logging
import threading

FIRST_BYTES = 500_000
"""Of a load's first request; each that is answered soon lets the next have twice as many."""

LEAST_BYTES = 20_000

SLOW_BYTES_S = 20_000_000
"""A link that carries less in a second is slow: to compress goes seven times as fast, and leaves a third."""

_TELLING = 100_000
"""Bytes of a request that tells something about the link: a smaller one tells of a short delay."""

_log = logging.getLogger("oskit.cluster")


class RequestSizes:
    """Sizes of requests in bytes; all threads of a load learn together.

    A request shall be answered long before its time is up, whatever takes the time: the link, or a model. A
    proxy refuses a request over its limit (413), whose value it does not tell. One document over the limit
    is a size like any other: it costs the others nothing, since what has passed before passes again.

    Args:
        most: No request is made larger, but for one document that is.
        answer_s: Seconds in which a request shall be answered.
        compresses: Whether requests may be compressed at all.
    """

    def __init__(self, most: int, answer_s: float = 12.0, *, compresses: bool = False) -> None:
        self._most = most
        self._answer_s = answer_s
        self._quick = min(most, FIRST_BYTES)
        self._passed = 0
        self._refused: int | None = None
        self._may_compress = compresses
        self._took_compressed = False
        self._slow = 0
        self._lock = threading.Lock()

    @property
    def budget(self) -> int:
        """Up to which documents are put together.

        What is answered in time; after a refusal a little more than has passed, or half of what did not.
        """
        with self._lock:
            if self._refused is None:
                return self._quick
            more = self._passed + self._passed // 4
            passes = max(more if more < self._refused else self._passed, self._refused // 2)
            return min(self._quick, passes)

    @property
    def compresses(self) -> bool:
        """Whether requests go compressed now."""
        return self._may_compress and self._slow > 1

    def answered(self, size: int, seconds: float, cluster_s: float, *, compressed: bool = False) -> None:
        """A request was answered after so long, of which the cluster worked ``cluster_s``."""
        with self._lock:
            if self._refused is None or size < self._refused:
                self._passed = max(self._passed, size)
            in_time = int(size * self._answer_s / max(seconds, 1e-3))
            if seconds > self._answer_s:
                self._quick = max(LEAST_BYTES, min(self._quick, in_time))
            elif size > self._quick // 2:
                self._quick = min(self._most, max(self._quick, min(2 * self._quick, in_time)))
            self._took_compressed |= compressed
            way_s = max(seconds - cluster_s, 1e-3)
            if self._slow > 1 or not self._may_compress or (size < _TELLING and way_s < 1):
                return
            rate = size / way_s
            self._slow = self._slow + 1 if rate < SLOW_BYTES_S else 0
            is_news = self._slow > 1
        if is_news:
            _log.info("the link carries %.1f MB/s, so requests go compressed", rate / 1e6)

    def late(self, size: int) -> None:
        """A request of this size was not answered in time."""
        with self._lock:
            self._quick = max(LEAST_BYTES, min(self._quick, size // 2))

    def compressed_failed(self) -> bool:
        """A compressed request was refused; whether that may be why: then none is compressed any more."""
        with self._lock:
            self._may_compress = self._may_compress and self._took_compressed
            return not self._took_compressed

    def refused(self, size: int) -> None:
        """A request of this size was too large."""
        with self._lock:
            self._refused = size if self._refused is None else min(self._refused, size)
            if self._passed >= self._refused:
                self._passed = 0  # another limit than before, as behind a balancer
