"""JSON Lines: one record a line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import orjson

from oskit.data.compression import DAMAGE, open_bytes, source_name, unreadable
from oskit.data.documents import OSKIT_KEY, Document, FieldNames, Record, Refusal, document_from_record
from oskit.data.values import clean_value
from oskit.data.vectors import Vector
from oskit.errors import DataError

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Longest line, in bytes. OpenSearch refuses requests over 100 MB (``http.max_content_length``)."""


def read_jsonl(source: str | Path, names: FieldNames) -> Iterator[Document | Refusal]:
    """The documents of a JSONL file; every line that is not blank gives a document or a refusal.

    Raises:
        DataError: The file cannot be read, or is one JSON array instead of a record a line.
    """
    for item in read_objects_of(source):
        yield document_of(item, names)


def read_objects_of(source: str | Path) -> Iterator[Record | Refusal]:
    """The records of a JSONL file; every line that is not blank gives a record or a refusal.

    Raises:
        DataError: The file cannot be read, or is one JSON array instead of a record a line.
    """
    name = source_name(source)
    for number, line in enumerate_lines(source):
        where = f"{name}:{number}"
        if number == 1 and line.lstrip().startswith(b"["):
            raise DataError(
                f"{where} begins a JSON array, not a record a line",
                hint=f"Convert it: jq -c '.[]' {name} > NEW.jsonl",
            )
        yield parse_line(line, where)


def parse_line(line: bytes, where: str) -> Record | Refusal:
    """The record of one line, or why it has none."""
    # Only the beginning of a line that is too long is known, and it is no use to anybody.
    raw = line.decode("utf-8", "surrogateescape") if len(line) <= MAX_LINE_BYTES else ""
    try:
        return Record(where, load_object(line), raw)
    except (ValueError, RecursionError) as error:
        return Refusal(where, _reason(error), raw)


def document_of(item: Record | Refusal, names: FieldNames) -> Document | Refusal:
    """The document of a record of whatever format, or why it has none."""
    if isinstance(item, Refusal):
        return item
    note = item.values.get(OSKIT_KEY)
    if isinstance(note, dict) and isinstance(line := note.get("raw"), str):
        # A dead letter that never was a record: judge the line that was refused, not its wrapping.
        inner = parse_line(line.encode("utf-8", "surrogateescape"), str(note.get("where", item.where)))
        return document_of(inner, names)
    try:
        return document_from_record(item.values, names, item.where)
    except (ValueError, RecursionError) as error:
        identity = item.values.get("_id")
        # A dead letter must be a line of JSON, to be read again by itself, perhaps with another --text-field.
        values = {
            name: value.weights() if isinstance(value, Vector) else value
            for name, value in item.values.items()
        }
        raw = item.raw or json.dumps(clean_value(values))
        return Refusal(item.where, _reason(error), raw, str(identity) if identity else None)


def _reason(error: ValueError | RecursionError) -> str:
    return "the JSON is nested too deeply" if isinstance(error, RecursionError) else str(error)


def load_object(line: bytes) -> dict[str, Any]:
    """Parse a line that must be a JSON object; control characters inside strings are fine.

    Raises:
        ValueError: It is not; one line that says what is wrong.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"the line is longer than {MAX_LINE_BYTES // 1024 // 1024} MiB")
    record = _quickly(line)
    try:
        record = _DECODER.decode(line.decode()) if record is None else record
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1}); "
            "iconv -f LATIN1 -t UTF-8 converts a file"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {_JSON_TYPES[type(record)]}, not an object")
    return record


def _quickly(line: bytes) -> Any:
    """What orjson makes of a line; None where it may differ from what :mod:`json` does, which takes more.

    That is for integers over 64 bits, which it makes floats of, and for what it refuses: control characters,
    NaN, lone surrogates.
    """
    try:
        return None if _MANY_DIGITS.search(line) else orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


_MANY_DIGITS = re.compile(rb"[0-9]{19}")

_DECODER = json.JSONDecoder(strict=False)


_JSON_TYPES: dict[type, str] = {
    str: "string",
    list: "array",
    bool: "boolean",
    int: "number",
    float: "number",
    type(None): "null",
}


def enumerate_lines(source: str | Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1, without line ends.

    Of a line over :data:`MAX_LINE_BYTES` only the first bytes are kept, one more than allowed.

    Raises:
        DataError: The file cannot be read; names the line up to which it could.
    """
    with open_bytes(source) as stream:
        number = 0
        while True:
            try:
                line = rest = stream.readline(MAX_LINE_BYTES + 1)
                while len(line) > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):
                    rest = stream.readline(MAX_LINE_BYTES)
            except DAMAGE as error:
                raise unreadable(source_name(source), number + 1, error) from error
            if not line:
                return
            number += 1
            stripped = line.rstrip(b"\r\n")
            if stripped.strip():
                yield number, stripped


def read_objects(path: Path, use: Callable[[dict[str, Any], str], None]) -> None:
    """Call ``use(record, where)`` for every line of a small file.

    Raises:
        DataError: At the first line that is no object, or for which ``use`` raises ValueError or KeyError.
    """
    for number, line in enumerate_lines(path):
        where = f"{path}:{number}"
        try:
            use(load_object(line), where)
        except KeyError as error:
            broken_line(where, f"no field {error}")
        except ValueError as error:
            broken_line(where, str(error))


def broken_line(where: str, reason: str) -> NoReturn:
    """Raise the error for a line that must be right."""
    raise DataError(f"{where}: {reason}", hint="Correct or remove this line")
