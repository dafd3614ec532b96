"""What became of the documents of a load: the report, and the counting behind it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from oskit.archive.tokenization import shattering
from oskit.cluster.ingest.bulk import BulkOutcome
from oskit.cluster.ingest.dead_letter import DeadLetterFile
from oskit.data.documents import Document, Refusal
from oskit.errors import IndexingError

if TYPE_CHECKING:
    from oskit.archive.tokenization import TextWatch, Tokenization
    from oskit.archive.truncation import Truncation


MAX_REASONS = 1_000
"""Different reasons that are counted apart; beyond that the rarer half is one."""

OTHER_REASONS = "other reasons"

_EXAMPLES = 3

HOPELESS_AFTER = 1_000
"""A load whose first so many documents were all refused is stopped."""


@dataclass(frozen=True)
class IngestReport:
    """What became of the documents; ``read == indexed + refused + duplicates``.

    Attributes:
        index: The index.
        read: Records read.
        indexed: Documents that are in the index now.
        refused: Records that are not, because they, or the cluster, would not have it.
        duplicates: Documents that came again with the same id and content, or with other content where only
            the first or the last of them is taken.
        superseded: Of those duplicates, the documents with other content, which are nowhere now.
        superseded_ids: Ids of some of them.
        unchanged: Of those indexed, the documents that the index had already, with vectors of this encoder.
        deleted: Documents that were taken out of the index, since the source no longer has them.
        seconds: Time it took.
        dead_letter: File that holds what was refused, if anything was and a file was asked for.
        reasons: The most frequent reasons for refusing, and how often each was given.
        retries: Documents sent again because the cluster was busy.
        truncation: What of the documents was too long for the encoder; None where nobody counted, as where
            the cluster encodes and no archive is given.
        chunks: Into how many the documents were cut that were new or changed; None without chunks.
        encoder_busy: Share of the time that the encoder worked, 0 to 1; None where nothing is encoded here.
        tokenization: How well the encoder's vocabulary knows the language of the documents that were encoded,
            by a sample; None like ``truncation``.
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
    truncation: Truncation | None = None
    encoder_busy: float | None = None
    unchanged: int = 0
    deleted: int = 0
    superseded: int = 0
    superseded_ids: tuple[str, ...] = ()
    chunks: int | None = None
    tokenization: Tokenization | None = None

    @property
    def encoded(self) -> int:
        """Documents that were encoded and taken."""
        return self.indexed - self.unchanged

    @property
    def told_duplicates(self) -> str:
        """For messages: what came more than once, and what became of it; empty if nothing did."""
        if not self.duplicates:
            return ""
        told = f"{self.duplicates:,} came more than once"
        if self.superseded:
            some = ", ".join(map(repr, self.superseded_ids))
            told += f"; {self.superseded:,} of them, with other content, were left out, such as {some}"
        return told

    @property
    def language_warning(self) -> str | None:
        """That the encoder's vocabulary hardly knows the documents' script or language; None if it does."""
        return shattering({"documents": self.tokenization}) if self.tokenization is not None else None

    @property
    def docs_per_second(self) -> float:
        """Documents indexed in a second."""
        return self.indexed / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        counted: dict[str, Any] = {"encoded": self.encoded, "docs_per_second": round(self.docs_per_second, 2)}
        counted |= {
            name: found and found.to_dict()
            for name, found in (("truncation", self.truncation), ("tokenization", self.tokenization))
        }
        return {**asdict(self), **counted}


def _without(identity: str | None, reason: str) -> str:
    """A reason without the id, where that is quoted: an id may be a part of any word."""
    if identity is not None:
        for quoted in (repr(identity), f"'{identity}'", f"[{identity}]"):
            reason = reason.replace(quoted, f"{quoted[0]}…{quoted[-1]}")
    return reason


@dataclass
class Account:
    """Counts from several threads.

    Args:
        index: The index.
        dead_letter: Where refused documents go.
        truncation: Asked what of the documents was too long, when a report is made.
        busy_s: Asked how many seconds the encoder has worked; None where nothing is encoded here.
        progress: Told how many further records are done with.
        answers: Whether documents that the cluster has answered for count as that; else whoever encodes them
            tells ``progress``.
        watch: Knows the language of the documents; None where no vocabulary is known.
    """

    index: str
    dead_letter: DeadLetterFile | None
    truncation: Callable[[], Truncation | None] = lambda: None
    busy_s: Callable[[], float | None] = lambda: None
    progress: Callable[[int], object] = lambda _: None
    answers: bool = False
    watch: TextWatch | None = None
    read: int = 0
    indexed: int = 0
    refused: int = 0
    turned_down: int = 0
    duplicates: int = 0
    retries: int = 0
    unchanged: int = 0
    deleted: int = 0
    superseded: int = 0
    _superseded: list[str] = field(default_factory=list)
    chunks: int | None = None
    _reasons: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _start: float = field(default_factory=time.perf_counter)

    def refuse(self, item: Document | Refusal, reason: str) -> None:
        """Count a record that is not even sent, and keep it in the dead-letter file.

        Raises:
            DataError: The file cannot be written.
        """
        self._refuse(item, reason)
        self.progress(1)

    def duplicate(self, superseded: str | None = None) -> None:
        """Count a document that came more than once; its id where another content of it is taken."""
        with self._lock:
            self.duplicates += 1
            if superseded is not None:
                self.superseded += 1
                if len(self._superseded) < _EXAMPLES:
                    self._superseded.append(superseded)
        self.progress(1)

    def keep(self, count: int) -> None:
        """Count documents that the index has already."""
        with self._lock:
            self.indexed += count
            self.unchanged += count
        self.progress(count)

    def cut(self, chunks: int) -> None:
        """Count what a document was cut into."""
        with self._lock:
            self.chunks = (self.chunks or 0) + chunks

    def delete(self, count: int) -> None:
        """Count documents that were taken out of the index."""
        with self._lock:
            self.deleted += count

    def settle(self, outcome: BulkOutcome) -> None:
        """Count documents that the cluster has answered for.

        Raises:
            DataError: The dead-letter file cannot be written.
        """
        with self._lock:
            self.indexed += outcome.indexed
            self.retries += outcome.retries
            self.turned_down += len(outcome.refused)
        for refused in outcome.refused:
            self._refuse(refused.document, refused.reason, refused.status)
        if self.answers:
            self.progress(outcome.indexed + len(outcome.refused))

    def _refuse(self, item: Document | Refusal, reason: str, status: int | None = None) -> None:
        with self._lock:
            self.refused += 1
            # Reasons name the document; without that, equal reasons are counted together.
            self._reasons[_without(item.id, reason)[:200]] += 1
            if len(self._reasons) > MAX_REASONS:  # they may quote documents
                rare = self._reasons.most_common()[MAX_REASONS // 2 :]
                self._reasons -= Counter(dict(rare))
                self._reasons[OTHER_REASONS] += sum(count for _, count in rare)
            if self.dead_letter is not None:
                self.dead_letter.add(item, reason, status)

    @property
    def settled(self) -> int:
        """Records whose fate is known."""
        return self.indexed + self.refused + self.duplicates

    @property
    def first_reason(self) -> str:
        """The most frequent reason for refusing."""
        return self._reasons.most_common(1)[0][0] if self._reasons else ""

    def stop_if_hopeless(self) -> None:
        """Raises IndexingError if so much was refused, and nothing taken, that the options must be wrong."""
        # Refusals made here are no sign while documents before them are on their way to the cluster.
        refused = self.refused if self.settled == self.read else self.turned_down
        if self.indexed == 0 and refused >= HOPELESS_AFTER:
            raise IndexingError(
                f"the first {self.refused:,} records were all refused: {self.first_reason}",
                hint="Correct the options or the documents",
            )

    def report(self) -> IngestReport:
        """The figures so far; what was read but is still on its way is left out."""
        seconds, busy_s = time.perf_counter() - self._start, self.busy_s()
        with self._lock:
            written = self.dead_letter is not None and self.dead_letter.written
            return IngestReport(
                index=self.index,
                read=self.settled,
                indexed=self.indexed,
                refused=self.refused,
                duplicates=self.duplicates,
                seconds=round(seconds, 3),
                dead_letter=str(self.dead_letter.path) if self.dead_letter and written else None,
                reasons=dict(self._reasons.most_common(5)),
                retries=self.retries,
                truncation=self.truncation(),
                encoder_busy=None if busy_s is None else round(min(1.0, busy_s / seconds), 3),
                unchanged=self.unchanged,
                deleted=self.deleted,
                superseded=self.superseded,
                superseded_ids=tuple(self._superseded),
                chunks=self.chunks,
                tokenization=self.watch.found() if self.watch is not None else None,
            )
