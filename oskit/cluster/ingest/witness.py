"""What all senders of a load know together about the cluster, so that no document is blamed for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oskit.cluster.ingest.bulk import BulkItem

CHECK_EVERY_S = 5.0
"""How often a load looks whether the index is still the one that it began with."""

TELL_EVERY_S = 60.0

_SMALL = 64_000


class Witness:
    """A document that was taken, and whether the index is still the same.

    Words that nobody knows may be about a document or about the cluster. What was taken before and is refused
    now tells: then it is not the documents.

    Args:
        check: Raises IndexingError where what is loaded is not the index any more that the load began with.
        prove: Raises it where documents that one request has stored have other texts' weights.
    """

    def __init__(
        self,
        check: Callable[[], object] = lambda: None,
        prove: Callable[[Sequence[BulkItem]], object] | None = None,
    ) -> None:
        self._check = check
        self.prove = prove
        self._checked = time.monotonic()
        self._lock = threading.Lock()
        self._told_at = float("-inf")
        self.good: BulkItem | None = None

    def took(self, item: BulkItem) -> None:
        """The cluster has this document, which it encoded if it encodes; a small one is kept."""
        known = self.good
        is_better = known is None or len(item.payload) < len(known.payload) > _SMALL
        if is_better and item.document.passage.strip():  # an empty text asks nothing of a model
            self.good = item

    def check(self) -> None:
        """Look at once whether the index is still the same.

        Raises:
            IndexingError: It is not.
        """
        self._checked = time.monotonic()
        self._check()

    def check_now_and_then(self) -> None:
        """The same, where the last look was some seconds ago."""
        with self._lock:
            due = time.monotonic() - self._checked >= CHECK_EVERY_S
            if due:
                self._checked = time.monotonic()
        if due:
            self._check()

    def is_news(self) -> bool:
        """Whether nobody has told for a minute that there is something to wait for."""
        with self._lock:
            before, self._told_at = self._told_at, time.monotonic()
        return self._told_at - before > TELL_EVERY_S
