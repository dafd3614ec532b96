"""Records of one query become one example."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from oskit.training.data.arrow import BLOCK, RowWriter

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray


def merge_records(
    records: Dataset,
    keys: NDArray[np.uint64],
    sources: NDArray[np.uint16],
    kept: NDArray[np.bool_],
    row_of: Callable[[str], int],
    said: Sequence[int],
    writer: RowWriter,
) -> list[Counter[str]]:
    """Write one example for the records of each query, in the order of the first of them.

    Positives come first, then all other candidates, each once; a positive is no negative, whichever record
    says so and however it is written, nor is the document that is the query itself. Of two scores the first
    counts.

    Args:
        records: As :data:`EXAMPLES` says, one of each record.
        keys: Which belong together, ``[records]``.
        sources: The source of each, by its number, ``[records]``.
        kept: Which records are used, ``[records]``.
        row_of: The row of the corpus that a text is, or -1.
        said: Of each row of the corpus a number that near-identical texts share.
        writer: Of :data:`EXAMPLES`.

    Returns:
        What became of each source, by the names of :class:`SourceFacts`.
    """
    counts = [Counter[str]() for _ in range(int(sources.max(initial=0)) + 1)]
    for groups in _groups(keys, kept):
        rows = zip(*records[np.concatenate(groups)].values(), strict=True)
        for group in groups:
            merged = _Merged()
            for row in group.tolist():
                query, *record = next(rows)
                if row == group[0]:
                    asked = query
                counts[sources[row]]["duplicates"] += not merged.add(*record)
            found = counts[sources[group[0]]]
            example = merged.example(row_of(asked), said)
            found["dropped_negatives"] += merged.dropped
            if example is None:
                found["unanswered"] += 1
                continue
            writer.add(asked, *example)
            found["examples"] += 1
            found["positives"] += example[1]
            found["scored"] += sum(not math.isnan(score) for score in example[2])
    return counts


def _groups(keys: NDArray[np.uint64], kept: NDArray[np.bool_]) -> Iterator[list[NDArray[np.int64]]]:
    """Rows of the same key, by the first of them; blocks of groups."""
    used = np.flatnonzero(kept)
    order = used[np.argsort(keys[used], kind="stable")]
    starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]]) if len(order) else order
    ends = np.r_[starts[1:], len(order)]
    by_first = np.argsort(order[starts], kind="stable")
    for start in range(0, len(starts), BLOCK):
        yield [order[starts[group] : ends[group]] for group in by_first[start : start + BLOCK]]


class _Merged:
    """The records of one query."""

    def __init__(self) -> None:
        self.dropped = 0
        """Negatives that are none, once :meth:`example` was called."""
        self._itself = -1
        self._positives: dict[int, None] = {}
        self._negatives: set[int] = set()
        self._scores: dict[int, float] = {}

    def add(self, candidates: list[int], positives: int, scores: list[float], itself: int) -> bool:
        """Add a record; whether it brought anything new."""
        new = False
        if itself >= 0:
            self._itself = itself
        for number, row in enumerate(candidates):
            score = scores[number] if scores else math.nan
            known = self._scores.get(row)
            if known is None or (math.isnan(known) and not math.isnan(score)):
                self._scores[row] = score
                new = True
            if number >= positives:
                self._negatives.add(row)
            elif row not in self._positives:
                self._positives[row] = None
                new = True
        return new

    def example(self, asked: int, said: Sequence[int]) -> tuple[list[int], int, list[float], int] | None:
        """The candidates, how many are positives, their scores, and the row that is the query itself."""
        itself = asked if self._itself < 0 else self._itself
        if itself in self._positives:
            itself = -1
        answers = {said[row] for row in self._positives}
        others = [row for row in self._scores if said[row] not in answers and row != itself]
        rows = [*self._positives, *others]
        self.dropped = len(self._negatives.difference(others))
        scores = [self._scores[row] for row in rows]
        if all(map(math.isnan, scores)):
            scores = []
        if not self._positives and not scores:
            return None
        return rows, len(self._positives), scores, itself
