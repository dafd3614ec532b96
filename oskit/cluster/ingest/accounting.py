"""What became of the documents of a load: the report, and the counting behind it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from oskit.cluster.ingest.dead_letter import DeadLetterFile
from oskit.data.documents import Document, Refusal


@dataclass(frozen=True)
class IngestReport:
    """What became of the documents; ``read == indexed + refused + duplicates``.

    Attributes:
        index: The index.
        read: Records read.
        indexed: Documents that are in the index now.
        refused: Records that are not, because they, or the cluster, would not have it.
        duplicates: Documents that came again with the same id and content.
        seconds: Time it took.
        dead_letter: File that holds what was refused, if anything was and a file was asked for.
        reasons: The most frequent reasons for refusing, and how often each was given.
        retries: Documents sent again because the cluster was busy.
    """

    index: str
    read: int
    indexed: int
    refused: int
    duplicates: int
    seconds: float
    dead_letter: str | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    retries: int = 0

    @property
    def docs_per_second(self) -> float:
        """Documents indexed in a second."""
        return self.indexed / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "docs_per_second": round(self.docs_per_second, 2)}


class Account:
    """Counts from several threads.

    Args:
        index: The index.
        dead_letter: Where refused documents go.
        progress: Told how many more documents have met their fate.
    """

    def __init__(
        self, index: str, dead_letter: DeadLetterFile | None, progress: Callable[[int], object] | None
    ) -> None:
        self._index = index
        self._dead_letter = dead_letter
        self._progress = progress
        self._lock = threading.Lock()
        self._start = time.perf_counter()
        self._reasons: Counter[str] = Counter()
        self.read = 0
        self.indexed = 0
        self.refused = 0
        self.duplicates = 0
        self.retries = 0

    def refuse(self, item: Document | Refusal, reason: str, status: int | None = None) -> None:
        """Count a record that is not indexed, and keep it in the dead-letter file.

        Raises:
            DataError: The file cannot be written.
        """
        with self._lock:
            self.refused += 1
            # Reasons name the document; without that, equal reasons are counted together.
            self._reasons[reason.replace(item.id or "\0", "…")[:200]] += 1
            if self._dead_letter is not None:
                self._dead_letter.add(item, reason, status)
        self._tell(1)

    def index(self, count: int, retries: int = 0) -> None:
        """Count indexed documents."""
        with self._lock:
            self.indexed += count
            self.retries += retries
        self._tell(count)

    def duplicate(self) -> None:
        """Count a document that came before."""
        with self._lock:
            self.duplicates += 1
        self._tell(1)

    @property
    def settled(self) -> int:
        """Records whose fate is known."""
        return self.indexed + self.refused + self.duplicates

    @property
    def first_reason(self) -> str:
        """The most frequent reason for refusing."""
        return self._reasons.most_common(1)[0][0] if self._reasons else ""

    def report(self) -> IngestReport:
        """The figures so far; what was read but is still on its way is left out."""
        with self._lock:
            written = self._dead_letter is not None and self._dead_letter.written
            return IngestReport(
                index=self._index,
                read=self.settled,
                indexed=self.indexed,
                refused=self.refused,
                duplicates=self.duplicates,
                seconds=round(time.perf_counter() - self._start, 3),
                dead_letter=str(self._dead_letter.path) if self._dead_letter and written else None,
                reasons=dict(self._reasons.most_common(5)),
                retries=self.retries,
            )

    def _tell(self, count: int) -> None:
        if self._progress is not None:
            self._progress(count)
