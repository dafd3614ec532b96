"""CSV and TSV files with a header line."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from oskit.data.compression import DAMAGE, open_bytes, source_name, unreadable
from oskit.data.documents import Record, Refusal
from oskit.data.jsonl import MAX_LINE_BYTES
from oskit.errors import DataError

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

_log = logging.getLogger(__name__)


def read_rows(
    source: str | Path, *, wanted: Sequence[str], required: Mapping[str, str], tabs: bool = False
) -> Iterator[Record | Refusal]:
    """The rows of a CSV file, or with ``tabs`` of a TSV file.

    CSV may be separated by commas, semicolons, tabs or bars, with quotes as in RFC 4180. In TSV quotes are
    letters like any other.

    Args:
        source: The file, or ``-``.
        wanted: Columns that may be there. The separator is one that makes them appear, else the one that
            makes the most columns, which is logged.
        required: Columns that must be there, and the option that names another.
        tabs: Whether it is TSV.

    Raises:
        DataError: The file cannot be read, or its header does not fit.
    """
    name = source_name(source)
    with open_bytes(source) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        lines = _Lines(text, name)
        try:
            yield from _rows(lines, wanted, required, name, tabs)
        finally:
            text.detach()  # or closing the wrapper would close stdin


class _Lines:
    """The lines of a text, remembering those of the row that is being parsed."""

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        self._text = text
        self._name = name
        self._row: list[str] = []
        self._size = 0
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = self._text.readline(MAX_LINE_BYTES)
        except DAMAGE as error:
            raise unreadable(self._name, self.number + 1, error) from error
        if not line:
            raise StopIteration
        self.number += 1
        self._size += len(line)
        if self._size <= MAX_LINE_BYTES:
            self._row.append(line)
        return line

    def take(self) -> str:
        """The lines since the last call, as they were read."""
        raw = "".join(self._row)
        self._row.clear()
        self._size = 0
        return raw


def _rows(
    lines: _Lines, wanted: Sequence[str], required: Mapping[str, str], name: str, tabs: bool
) -> Iterator[Record | Refusal]:
    first = next(lines, "")
    if not first.strip():
        raise DataError(f"{name}:1 must be a header line with the columns' names")
    delimiter = "\t" if tabs else _delimiter(first, wanted, name)
    header = _header(_parser(chain([first], lines), delimiter, tabs), required, name)
    lines.take()
    parser = _parser(lines, delimiter, tabs)
    while True:
        where = f"{name}:{lines.number + 1}"
        try:
            values = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            yield Refusal(where, f"not CSV: {error}", lines.take().rstrip("\r\n"))
            continue
        raw = lines.take().rstrip("\r\n")
        if not raw.strip():
            continue
        yield _record(header, values, raw, where)


def _parser(lines: Iterable[str], delimiter: str, tabs: bool) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_LINE_BYTES)  # a setting of the whole process; its default is 128 KiB
    # Strict, or a quote that is never closed would swallow the rest of the file without a word.
    return csv.reader(
        lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL, strict=True
    )


def _delimiter(header: str, wanted: Sequence[str], name: str) -> str:
    """The separator by which wanted columns appear, else the one that makes the most columns."""

    def judged(delimiter: str) -> tuple[bool, int]:
        try:
            # Not strict: a column's name may go on in the next line.
            columns = [column.strip() for column in next(csv.reader([header], delimiter=delimiter))]
        except csv.Error:
            return False, 0
        return any(column in columns for column in wanted), len(columns)

    best = max(_SEPARATORS, key=judged)
    if best != "," and not judged(best)[0]:
        _log.warning("%s is read as a table separated by %s", name, _SEPARATORS[best])
    return best


def _header(parser: Iterator[list[str]], required: Mapping[str, str], name: str) -> list[str]:
    try:
        header = [column.strip() for column in next(parser)]
    except csv.Error as error:
        raise DataError(f"{name}:1 is not a header line: {error}") from error
    known = ", ".join(repr(column[:40]) for column in header[:12])
    if repeated := {column for column in header if header.count(column) > 1}:
        raise DataError(f"{name}:1 names the column {sorted(repeated)[0]!r} twice", hint="Rename one of them")
    for column, option in required.items():
        if column not in header:
            raise DataError(
                f"{name}:1 has no column {column!r}, but {known}",
                hint=f"Choose one with {option}, or put a header line in front",
            )
    return header


def _record(header: list[str], values: list[str], raw: str, where: str) -> Record | Refusal:
    if len(values) != len(header):
        return Refusal(where, f"{len(values)} values where the header has {len(header)} columns", raw)
    if not raw.isascii() and any("\udc80" <= letter <= "\udcff" for letter in raw):
        return Refusal(where, "not UTF-8; iconv -f LATIN1 -t UTF-8 converts a file", raw)
    return Record(where, dict(zip(header, values, strict=True)))
