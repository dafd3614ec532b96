"""Parquet files, read in small batches by pyarrow (extra ``parquet``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from oskit.data.documents import Record, Refusal
from oskit.data.vectors import LARGEST_WEIGHT, SMALLEST_WEIGHT, Vector, key_bytes, write_rows
from oskit.errors import DataError, MissingDependencyError

_BATCH_ROWS = 64

FIELDS_COLUMN = "_fields"
"""Column that holds the other fields of a document as JSON, in the files of ``oskit encode``."""

METADATA_KEY = b"oskit"
"""Where such a file says which encoder made it."""

_BATCH_BYTES = 4_000_000
"""Of rows that are in memory together, about."""


def read_parquet_rows(
    path: Path, *, required: Mapping[str, str], vector: str | None = None
) -> Iterator[Record | Refusal]:
    """The rows of a Parquet file, counted from 1.

    Args:
        path: The file.
        required: Columns that must be there, and the option that names another.
        vector: Column with token weights, a map or a list of structs of a key and a weight; they are read as
            :class:`oskit.data.vectors.Vector`, or as they are where they are none.

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
            by_oskit = METADATA_KEY in (file.schema_arrow.metadata or {})
            for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
                for record in _records(batch, vector):
                    row += 1
                    if by_oskit and isinstance(record, dict):
                        record = _with_fields(record) or f"its {FIELDS_COLUMN!r} is no JSON object"
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


def read_metadata(path: Path) -> dict[str, Any]:
    """What ``oskit encode`` wrote about a Parquet file; nothing where it did not, or it cannot be read."""
    try:
        import pyarrow.parquet
    except ImportError:
        return {}
    try:
        said = (pyarrow.parquet.read_metadata(path).metadata or {}).get(METADATA_KEY)
        found = json.loads(said) if said else {}
    except (OSError, ValueError):  # ArrowInvalid is a ValueError
        return {}
    return found if isinstance(found, dict) else {}


def _check_columns(columns: list[str], required: Mapping[str, str], path: Path) -> None:
    for column, option in required.items():
        if column not in columns:
            known = ", ".join(repr(name) for name in columns[:12])
            raise DataError(f"{path} has no column {column!r}, but {known}", hint=f"Choose with {option}")


def _records(batch: Any, vector: str | None) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; a row with text that is not UTF-8 as the reason why it cannot be one."""
    if (
        vector is not None
        and vector in batch.schema.names
        and (vectors := _vectors(batch.column(vector), vector)) is not None
    ):
        for record, value in zip(_records(batch.drop_columns([vector]), None), vectors, strict=True):
            yield record if isinstance(record, str) else {**record, vector: value}
        return
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


def _with_fields(record: dict[str, Any]) -> dict[str, Any] | None:
    """A row of a file by ``oskit encode``, which keeps the fields beside text and title as JSON; None where
    somebody has written something else there."""
    kept = record.pop(FIELDS_COLUMN, None)
    try:
        return {**json.loads(kept), **record} if kept else record
    except (TypeError, ValueError):
        return None


def _vectors(column: Any, name: Any) -> list[Any] | None:
    """The values of a column of vectors; what is not one as Python has it. None where the column has none."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_map(kind):
        keys, weights = column.keys, column.items
    elif (
        (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind))  # the latter by polars
        and pyarrow.types.is_struct(kind.value_type)
        and len(kind.value_type) == 2
    ):
        keys, weights = column.values.field(0), column.values.field(1)
    else:
        return None
    is_number = pyarrow.types.is_floating(weights.type) or pyarrow.types.is_integer(weights.type)
    is_text = pyarrow.types.is_string(keys.type) or pyarrow.types.is_large_string(keys.type)
    is_key = is_text or pyarrow.types.is_integer(keys.type)
    if not is_number or not is_key or keys.null_count or weights.null_count:
        return [_pairs(value) for value in column.to_pylist()]
    encoded = keys.cast(pyarrow.string()).dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), dtype=object)
    codes, numbers = encoded.indices.to_numpy(), weights.to_numpy(zero_copy_only=False)
    numbers = numbers if numbers.dtype in (np.float32, np.int64) else numbers.astype(np.float64)
    bounds = column.offsets.to_numpy()
    bad = ~((numbers >= SMALLEST_WEIGHT) & (numbers <= LARGEST_WEIGHT))
    fine = np.where(bad, numbers.dtype.type(1), numbers)
    written = write_rows(np.array([key_bytes(key) for key in names], dtype=object)[codes], fine, bounds)
    wrong = np.concatenate([[0], np.cumsum(bad)])
    found: list[Any] = []
    for row, (start, end) in enumerate(pairwise(bounds.tolist())):
        texts = tuple(names[codes[start:end]].tolist())
        is_good = wrong[start] == wrong[end] and len({*texts}) == len(texts) and "" not in texts
        if is_good and column[row].is_valid:
            found.append(Vector(name, texts, written[row]))
        else:
            found.append(_pairs(column[row].as_py()))
    return found


def _pairs(value: Any) -> Any:
    """Pairs of key and weight, of a map or a list of structs."""
    return value and [tuple(pair.values()) if isinstance(pair, dict) else pair for pair in value]
