"""Teachers' vectors on disk: computed once, written by one process, mapped into memory by all.

A table has a place for each row of the data (each query, each document of the corpus). Rows that nobody asked
for take no room: they are holes of the file, or are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from oskit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    Vectors: TypeAlias = "NDArray[np.float32] | csr_matrix"

Rows: TypeAlias = "NDArray[np.int64]"
Side = Literal["query", "document"]
Compute = Callable[[Rows], "Vectors"]
"""The vectors of some rows, in their order."""

FILLED_AT_ONCE = 8192
"""Rows whose vectors are asked for together: a few windows of the encoder."""


class VectorTable:
    """Vectors by row, dense (``[width]`` float32) or sparse, whichever comes first.

    Args:
        path: Of its files, without their suffixes; what was there is written anew.
        rows: How many rows the data has.

    Attributes:
        known: Which rows are there, bool ``[rows]``.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._path = path
        self._rows = rows
        self.known = np.zeros(rows, dtype=bool)
        self._files: _DenseFiles | _SparseFiles | None = None

    def fill(self, rows: Rows, compute: Compute, progress: Callable[[int], object] = lambda _: None) -> None:
        """See to it that these rows are there; what is missing is computed.

        Raises:
            DataError: The file cannot be written.
        """
        wanted = np.zeros_like(self.known)
        wanted[rows] = True
        missing = np.flatnonzero(wanted & ~self.known)
        for start in range(0, len(missing), FILLED_AT_ONCE):
            chosen = missing[start : start + FILLED_AT_ONCE]
            self._put(chosen, compute(chosen))
            progress(len(chosen))

    def take(self, rows: Rows) -> Vectors:
        """Vectors of rows that are there, ``[len(rows), width]``, dense or as a ``csr_matrix``."""
        assert self._files is not None, "nothing was filled in"
        return self._files.take(rows)

    def finish(self) -> dict[str, Any]:
        """Write what :func:`open_table` needs beside the vectors; returns facts that JSON can carry."""
        assert self._files is not None, "nothing was filled in"
        return self._files.finish()

    def _put(self, rows: Rows, vectors: Vectors) -> None:
        with _writing(self._path):
            if self._files is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                kind = _DenseFiles if isinstance(vectors, np.ndarray) else _SparseFiles
                self._files = kind.new(self._path, self._rows, int(vectors.shape[1]))
            self._files.put(rows, vectors)
        self.known[rows] = True


def open_table(path: Path, facts: dict[str, Any]) -> Table:
    """What :meth:`VectorTable.finish` left there, mapped into memory."""
    kind = _DenseFiles if facts["dense"] else _SparseFiles
    return kind(path, facts["rows"], facts["width"])


class Table(Protocol):
    """Vectors by row, to read."""

    def take(self, rows: Rows) -> Vectors:
        """As :meth:`VectorTable.take`."""
        ...


class _DenseFiles:
    """``.f32``: float32 ``[rows, width]``, with holes."""

    def __init__(self, path: Path, rows: int, width: int) -> None:
        self._path = path.with_name(f"{path.name}.f32")
        self._shape = rows, width
        self._mapped: NDArray[np.float32] | None = None

    @classmethod
    def new(cls, path: Path, rows: int, width: int) -> _DenseFiles:
        files = cls(path, rows, width)
        with files._path.open("wb") as file:
            file.truncate(4 * rows * width)
        return files

    def put(self, rows: Rows, vectors: Any) -> None:
        """Written, not through the mapping: where a disk is full that would end the process."""
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        bounds = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        with self._path.open("r+b") as file:
            for start, end in pairwise(bounds):
                file.seek(int(rows[start]) * self._shape[1] * 4)
                file.write(vectors[start:end].tobytes())

    def take(self, rows: Rows) -> NDArray[np.float32]:
        if self._mapped is None:
            self._mapped = np.memmap(self._path, dtype=np.float32, mode="r", shape=self._shape)
        return np.asarray(self._mapped[rows])

    def finish(self) -> dict[str, Any]:
        return {"dense": True, "rows": self._shape[0], "width": self._shape[1]}


class _SparseFiles:
    """``.ids`` (int32) and ``.weights`` (float32), row after row as they came; ``.npz``: where rows begin."""

    def __init__(self, path: Path, rows: int, width: int) -> None:
        self._names = [path.with_name(f"{path.name}.{suffix}") for suffix in ("ids", "weights", "npz")]
        self._width = width
        self._mapped: tuple[NDArray[Any], NDArray[Any]] | None = None
        self._starts = np.zeros(rows, dtype=np.int64)
        self._counts = np.zeros(rows, dtype=np.int32)
        self._size = 0
        if self._names[2].exists():
            with np.load(self._names[2]) as found:
                self._starts, self._counts = found["starts"], found["counts"]
            self._size = int(self._counts.sum(dtype=np.int64))

    @classmethod
    def new(cls, path: Path, rows: int, width: int) -> _SparseFiles:
        for suffix in ("ids", "weights", "npz"):
            path.with_name(f"{path.name}.{suffix}").unlink(missing_ok=True)
        return cls(path, rows, width)

    def put(self, rows: Rows, vectors: Any) -> None:
        counts = np.diff(vectors.indptr)
        for name, values, dtype in zip(
            self._names, (vectors.indices, vectors.data), (np.int32, np.float32), strict=False
        ):
            with name.open("ab") as file:
                file.write(values.astype(dtype, copy=False).tobytes())
        self._counts[rows] = counts
        self._starts[rows] = self._size + np.cumsum(counts, dtype=np.int64) - counts
        self._size += len(vectors.data)
        self._mapped = None

    def take(self, rows: Rows) -> csr_matrix:
        from scipy.sparse import csr_matrix

        counts = self._counts[rows].astype(np.int64)
        ends = np.cumsum(counts)
        places = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(
            self._starts[rows] - ends + counts, counts
        )
        ids, weights = self._maps()
        indptr = np.concatenate([[0], ends])
        return csr_matrix((weights[places], ids[places], indptr), shape=(len(rows), self._width))

    def finish(self) -> dict[str, Any]:
        with _writing(self._names[2]), self._names[2].open("wb") as file:
            np.savez(file, starts=self._starts, counts=self._counts)
        longest = int(self._counts.max()) if len(self._counts) else 0
        return {"dense": False, "rows": len(self._counts), "width": self._width, "longest": longest}

    def _maps(self) -> tuple[NDArray[Any], NDArray[Any]]:
        if self._mapped is None:
            ids, weights = (
                np.memmap(name, dtype=dtype, mode="r") if self._size else np.empty(0, dtype=dtype)
                for name, dtype in zip(self._names, (np.int32, np.float32), strict=False)
            )
            self._mapped = ids, weights
        return self._mapped


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the teachers' vectors {path} cannot be written: {error.strerror or error}",
            hint="Make room, or give a folder on a disk with room.",
        ) from error
