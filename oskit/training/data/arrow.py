"""Rows to an Arrow file and back as a memory-mapped ``datasets.Dataset``: as many as the disk holds."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow
from datasets import Dataset
from numpy.typing import NDArray

from oskit.errors import DataError

_ROW, _ROWS = pyarrow.int32(), pyarrow.list_(pyarrow.int32())
NUMBERS = pyarrow.list_(pyarrow.float32())

EXAMPLES = pyarrow.schema(
    {
        "query": pyarrow.string(),
        "candidates": _ROWS,
        "positives": _ROW,
        "scores": NUMBERS,
        "itself": _ROW,
    }
)
"""A query with scored candidates, which are rows of the corpus: the known positives first, ``positives`` of
them; ``scores`` as the data gave them, NaN where it gave none, empty where it gave none at all; ``itself`` is
the document that is the query (its identical id), which is no candidate, or -1."""

LABELS = "labels"

LABELLED = EXAMPLES.append(pyarrow.field(LABELS, NUMBERS))
"""The same with what the teachers say of each candidate, NaN where they say nothing."""

CORPUS = pyarrow.schema({"id": pyarrow.string(), "text": pyarrow.string()})

BLOCK = 1000
"""Rows that are in memory at once."""


class RowWriter:
    """Writes rows, block by block, to a file that appears when all is written.

    Raises:
        DataError: The file cannot be written.
    """

    def __init__(self, path: Path, schema: pyarrow.Schema) -> None:
        self._path, self._part = path, path.with_name(f"{path.name}.part")
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pyarrow.OSFile(str(self._part), "wb")
            self._writer = pyarrow.ipc.new_stream(self._file, schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        try:
            with self._writing():
                if kind is None:
                    self._flush()
                self._writer.close()
                self._file.close()
                if kind is None:
                    self._part.replace(self._path)
        finally:
            self._part.unlink(missing_ok=True)

    def add(self, *values: Any) -> None:
        """Add a row, its values in the order of the columns."""
        self._rows.append(values)
        if len(self._rows) >= BLOCK:
            self._flush()

    def add_table(self, table: pyarrow.Table) -> None:
        """Add the rows of a table that has these columns."""
        self._flush()
        with self._writing():
            self._writer.write_table(table.select(self._schema.names).cast(self._schema))

    def _flush(self) -> None:
        if self._rows:
            columns = list(map(list, zip(*self._rows, strict=True)))
            with self._writing():
                self._writer.write_batch(pyarrow.record_batch(columns, schema=self._schema))
            self._rows = []

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"cannot write {self._path}: {error.strerror or error}",
                hint="Give a folder on a disk with room; TMPDIR names the one for temporary files",
            ) from error


def open_rows(path: Path) -> Dataset:
    """The rows of a file that :class:`RowWriter` wrote, memory-mapped."""
    return Dataset.from_file(str(path))


def blocks_of(dataset: Dataset) -> Iterator[tuple[Any, ...]]:
    """All rows, the values of each in the order of the columns, a block at a time in memory."""
    for block in dataset.iter(BLOCK):
        yield from zip(*block.values(), strict=True)


def column_of(dataset: Dataset, name: str, rows: NDArray[np.int64] | None = None) -> Iterator[Any]:
    """The values of a column, of all rows or of some, some thousands at a time in memory."""
    column = dataset.select_columns([name])
    for block in (column if rows is None else column.select(rows)).iter(10 * BLOCK):
        yield from block[name]


def numbers_of(dataset: Dataset, name: str) -> NDArray[Any]:
    """A column of numbers as an array."""
    numbers: NDArray[Any] = dataset.select_columns([name]).with_format("arrow")[:][name].to_numpy()
    return numbers


class CandidateBlock(NamedTuple):
    """Some examples, and their candidates one after the other."""

    table: pyarrow.Table  # the rows as they are
    counts: NDArray[np.int64]  # how many candidates each has, `[rows]`
    owners: NDArray[np.int64]  # whose each is: the position of the example among all, `[counts.sum()]`
    candidates: NDArray[np.int64]  # their rows of the corpus, `[counts.sum()]`


def candidate_blocks(examples: Dataset, size: int = BLOCK) -> Iterator[CandidateBlock]:
    """All examples, ``size`` at a time."""
    arrow = examples.with_format("arrow")
    for start in range(0, len(examples), size):
        table = arrow[start : start + size]
        counts, candidates = of_lists(table.column("candidates"))
        owners = np.repeat(np.arange(start, start + len(counts)), counts)
        yield CandidateBlock(table, counts, owners, candidates.astype(np.int64))


def of_lists(column: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """A column of lists as arrays: how long each is, and all values one after the other."""
    whole = column.combine_chunks()
    counts = whole.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return counts.astype(np.int64), whole.flatten().to_numpy(zero_copy_only=False)


def list_column(values: NDArray[Any], counts: NDArray[np.int64]) -> pyarrow.ListArray:
    """What :func:`of_lists` makes arrays of."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values))


def positives_of(examples: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All known pairs: the row of the example, and the row of the corpus, one after the other."""
    owners, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    positives = numbers_of(examples, "positives")
    for block in candidate_blocks(examples):
        first = np.repeat(np.cumsum(block.counts) - block.counts, block.counts)
        known = np.arange(len(first)) - first < positives[block.owners]
        owners.append(block.owners[known])
        rows.append(block.candidates[known])
    return np.concatenate(owners), np.concatenate(rows)


def candidate_counts(examples: Dataset) -> NDArray[np.int64]:
    """How many candidates each example has."""
    counts = (block.counts for block in candidate_blocks(examples))
    return np.concatenate([np.empty(0, np.int64), *counts])


def candidate_rows(examples: Dataset, corpus: Dataset) -> NDArray[np.int64]:
    """The documents of the corpus that are candidates of some example, ascending."""
    there = np.zeros(len(corpus), dtype=bool)
    for block in candidate_blocks(examples):
        there[block.candidates] = True
    return np.flatnonzero(there)


class DataFolder:
    """A folder of one's own, or a temporary one that goes with this object, or when Python ends.

    The standard library's temporary folders warn of the first.
    """

    def __init__(self, folder: str | Path | None) -> None:
        if folder is None:
            folder = tempfile.mkdtemp(prefix="oskit-data-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = Path(folder)
