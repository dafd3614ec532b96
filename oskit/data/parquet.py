"""Parquet files, read in small batches by pyarrow (extra ``parquet``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oskit.data.documents import Record, Refusal
from oskit.errors import DataError, MissingDependencyError

_BATCH_ROWS = 64

_BATCH_BYTES = 4_000_000
"""Of rows that are in memory together, about."""


def read_parquet_rows(path: Path, *, required: Mapping[str, str]) -> Iterator[Record | Refusal]:
    """The rows of a Parquet file, counted from 1.

    Args:
        path: The file.
        required: Columns that must be there, and the option that names another.

    Raises:
        DataError: The file cannot be read, or lacks the columns.
        MissingDependencyError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError.for_extra(f"reading {path}", "pyarrow", "parquet") from error
    row = 0
    try:
        # Buffered, a column is read page by page, and not as a whole, which may be all of the file.
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False) as file:
            _check_columns(file.schema_arrow.names, required, path)
            for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
                for record in _records(batch):
                    row += 1
                    where = f"{path}:{row}"
                    yield Refusal(where, record) if isinstance(record, str) else Record(where, record)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{path}:{row + 1} cannot be read as Parquet: {error}", hint="The file seems damaged or cut off"
        ) from error


def _batch_rows(metadata: Any) -> int:
    """Rows to read at once; of large ones few."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))


def count_rows(path: Path) -> int | None:
    """Rows of a Parquet file; None if it cannot be read, which reading it then explains."""
    try:
        import pyarrow
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except ImportError:
        return None
    except (OSError, pyarrow.ArrowException):
        return None


def _check_columns(columns: list[str], required: Mapping[str, str], path: Path) -> None:
    for column, option in required.items():
        if column not in columns:
            known = ", ".join(repr(name) for name in columns[:12])
            raise DataError(f"{path} has no column {column!r}, but {known}", hint=f"Choose with {option}")


def _records(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; a row with text that is not UTF-8 as the reason why it cannot be one."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for index in range(batch.num_rows):
        try:
            yield from batch.slice(index, 1).to_pylist()
        except UnicodeDecodeError:
            yield "not UTF-8"
