"""Who asks the same, and what is known to answer it, however either is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from oskit.data.duplicates import digest_of
from oskit.training.data.arrow import candidate_blocks
from oskit.training.data.normalising import same_key
from oskit.training.data.training_data import TrainingData
from oskit.training.mining.rankers import Positions

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = 1024


class Asked:
    """Who asks the same, up to case, punctuation and white space, and what is known to answer it.

    Attributes:
        rows: An example of each query, as it is written; they are ranked for.
        query: Of each example which of ``rows`` asks as it does.
    """

    def __init__(self, data: TrainingData) -> None:
        self._keys = _Keys(data.corpus)
        self._groups: dict[str, int] = {}
        self._answers: list[set[int]] = []
        self._group: list[int] = []
        numbers: dict[str, int] = {}
        rows: list[int] = []
        query: list[int] = []
        for row, (text, positives) in enumerate(_positives(data.examples, self._keys)):
            if text not in numbers:
                numbers[text] = len(rows)
                rows.append(row)
            query.append(numbers[text])
            key = same_key(text)
            group = self._groups.setdefault(key, len(self._groups))
            if group == len(self._answers):
                self._answers.append({_number(key)})  # its own text is no negative
            self._group.append(group)
            self._answers[group].update(positives)
        self.rows = np.asarray(rows, dtype=np.int64)
        self.query = np.asarray(query, dtype=np.int64)

    @property
    def queries(self) -> int:
        """How many there are, however they are written."""
        return len(self._groups)

    def answers(self, row: int) -> set[int]:
        """Keys of what is known to answer an example's query."""
        return self._answers[self._group[row]]

    def keys(self, documents: Positions) -> Positions:
        """Keys of documents: near-identical ones have the same."""
        return self._keys.of(documents)


class _Keys:
    """64 bits of what near-identical texts share, computed when they are asked for."""

    def __init__(self, corpus: Dataset) -> None:
        self._texts = corpus.select_columns(["text"])
        self._keys = np.zeros(len(corpus), dtype=np.int64)
        self._known = np.zeros(len(corpus), dtype=bool)

    def of(self, documents: Positions) -> Positions:
        missing = np.unique(documents[~self._known[documents]])
        for start in range(0, len(missing), _ROWS):
            rows = missing[start : start + _ROWS]
            self._keys[rows] = [_number(same_key(text)) for text in self._texts[rows.tolist()]["text"]]
            self._known[rows] = True
        return self._keys[documents]


def _positives(examples: Dataset, keys: _Keys) -> Iterator[tuple[str, list[int]]]:
    """Each example's query, and the keys of its positives."""
    for block in candidate_blocks(examples, _ROWS):
        positives = block.table.column("positives").to_numpy()
        starts = np.cumsum(block.counts) - block.counts
        within = np.arange(len(block.candidates)) - np.repeat(starts, block.counts)
        found = keys.of(block.candidates[within < np.repeat(positives, block.counts)])
        own = np.split(found, np.cumsum(positives)[:-1])
        yield from zip(block.table.column("query").to_pylist(), map(np.ndarray.tolist, own), strict=True)


def _number(key: str) -> int:
    """64 bits of a digest: enough to tell the texts of any corpus apart."""
    return int.from_bytes(digest_of(key)[:8], "little", signed=True)
