"""Rows to an Arrow file and back as a memory-mapped ``datasets.Dataset``: as many as the disk holds."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from oskit.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

EXAMPLES = {
    "query": "string",
    "candidates": "rows",
    "positives": "row",
    "scores": "numbers",
    "itself": "row",
}
"""A query with scored candidates, which are rows of the corpus: the known positives first, ``positives`` of
them; ``scores`` as the data gave them, NaN where it gave none, empty where it gave none at all; ``itself`` is
the document that is the query (its identical id), which is no candidate, or -1."""

LABELS = "labels"

LABELLED = {**EXAMPLES, LABELS: "numbers"}
"""The same with what the teachers say of each candidate, NaN where they say nothing."""

CORPUS = {"id": "string", "text": "string"}

_ROWS = 1000
_BLOCK = 10_000


class RowWriter:
    """Writes rows in blocks, so that memory holds one block.

    Args:
        path: The file; it appears when all is written.
        columns: Name and type of each column: ``string``, ``row`` (int32), ``rows`` (a list of them) or
            ``numbers`` (a list of float32).

    Raises:
        MissingDependencyError: ``datasets`` is not installed.
        DataError: The file cannot be written.
    """

    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        datasets_module()  # its package brings pyarrow
        import pyarrow

        types: dict[str, Any] = {
            "string": pyarrow.string(),
            "row": pyarrow.int32(),
            "rows": pyarrow.list_(pyarrow.int32()),
            "numbers": pyarrow.list_(pyarrow.float32()),
        }
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._blocks: list[list[Any]] = [[] for _ in columns]
        self._pyarrow = pyarrow
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: Any = pyarrow.OSFile(str(self._part), "wb")
            self._writer: Any = pyarrow.ipc.new_stream(self._file, self._schema)

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
        for block, value in zip(self._blocks, values, strict=True):
            block.append(value)
        if len(self._blocks[0]) >= _ROWS:
            with self._writing():
                self._flush()

    def add_table(self, table: Any) -> None:
        """Add the rows of a ``pyarrow.Table`` that has these columns."""
        with self._writing():
            self._flush()
            self._writer.write_table(table.select(self._schema.names).cast(self._schema))

    def _flush(self) -> None:
        if self._blocks[0]:
            self._writer.write_batch(self._pyarrow.record_batch(self._blocks, schema=self._schema))
            for block in self._blocks:
                block.clear()

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
    """The rows of a file that :class:`RowWriter` wrote, memory-mapped.

    Raises:
        MissingDependencyError: ``datasets`` is not installed.
    """
    return datasets_module().Dataset.from_file(str(path))


def blocks_of(dataset: Dataset, size: int = _ROWS) -> Iterator[dict[str, list[Any]]]:
    """All rows, as columns of ``size`` rows at a time."""
    for start in range(0, len(dataset), size):
        yield dataset[start : start + size]


def column_of(dataset: Dataset, name: str, rows: NDArray[np.int64] | None = None) -> Iterator[Any]:
    """The values of a column, of all rows or of some, a block at a time in memory."""
    column = dataset.select_columns([name])
    numbers = range(len(dataset)) if rows is None else rows
    for start in range(0, len(numbers), _BLOCK):
        block = numbers[start : start + _BLOCK]
        found = column[block.start : block.stop] if isinstance(block, range) else column[block.tolist()]
        yield from found[name]


def numbers_of(dataset: Dataset, name: str, rows: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """A column of numbers, of all rows or of some, as an array."""
    table = dataset.select_columns([name]).with_format("arrow")
    whole = table[:] if rows is None else table[rows.tolist()]
    numbers: NDArray[Any] = whole[name].to_numpy()
    return numbers


class CandidateBlock(NamedTuple):
    """Some examples, and their candidates one after the other."""

    start: int  # position of the first of them
    table: Any  # the rows as they are, a `pyarrow.Table`
    counts: NDArray[np.int64]  # how many candidates each has, int64 `[rows]`
    candidates: NDArray[np.int64]  # their rows of the corpus, int64 `[counts.sum()]`


def candidate_blocks(examples: Dataset, size: int = _ROWS) -> Iterator[CandidateBlock]:
    """All examples, ``size`` at a time."""
    arrow = examples.with_format("arrow")
    for start in range(0, len(examples), size):
        table = arrow[start : start + size]
        counts, candidates = of_lists(table.column("candidates"))
        yield CandidateBlock(start, table, counts, candidates.astype("int64"))


def of_lists(column: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """A column of lists as arrays: how long each is, and all values one after the other."""
    whole = column.combine_chunks()
    counts = whole.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return counts.astype("int64"), whole.flatten().to_numpy(zero_copy_only=False)


def list_column(values: NDArray[Any], counts: NDArray[np.int64]) -> Any:
    """A column of lists: how long each is, and all values one after the other."""
    import pyarrow

    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values))


def positives_of(examples: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All known pairs: the row of the example, and the row of the corpus, one after the other."""
    found = [np.empty(0, dtype=np.int64)]
    counts = numbers_of(examples, "positives").astype(np.int64)
    for block in candidate_blocks(examples):
        own = counts[block.start : block.start + len(block.counts)]
        ends = np.cumsum(own)
        starts = np.cumsum(block.counts) - block.counts
        found.append(block.candidates[np.arange(own.sum()) + np.repeat(starts - (ends - own), own)])
    return np.repeat(np.arange(len(counts)), counts), np.concatenate(found)


def candidate_counts(examples: Dataset) -> NDArray[np.int64]:
    """How many candidates each example has."""
    counts = [block.counts for block in candidate_blocks(examples)]
    return np.concatenate([np.empty(0, dtype=np.int64), *counts])


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


def datasets_module() -> Any:
    """The package ``datasets``, imported now.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError.for_extra("reading training data", "datasets", "train") from error
    return datasets
