"""Values of records: what JSON, UTF-8 and OpenSearch can carry."""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from typing import Any


def clean_text(text: str) -> str:
    """Replace lone surrogates by U+FFFD (they have no UTF-8), join surrogate pairs, leave the rest alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean_value(value: Any) -> Any:
    """A value that JSON can carry: no lone surrogates, no NaN (null instead), no types of Parquet's own."""
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean_text(str(key)): clean_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_value(item) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return _bytes_text(value)
    return clean_text(str(value))


def memory_of(value: Any) -> int:
    """About the memory that a value of a record takes, in bytes."""
    size, waiting = 0, [value]  # no recursion: what is nested deeper than Python goes may be read
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            size += 64 + 100 * len(value)
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list | tuple):
            size += 64 + 8 * len(value)
            waiting += value
        else:
            size += sys.getsizeof(value)
    return size


def _bytes_text(value: bytes) -> str:
    """UTF-8 if it is, else base64, which is what OpenSearch's ``binary`` fields take."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def text_of(value: Any, name: str) -> str:
    """The text of a value: a string as it is, null as the empty text, numbers and booleans as in JSON.

    Raises:
        ValueError: A list or an object, of which nobody can say how it reads as a text.
    """
    cleaned = clean_value(value)
    if cleaned is None:
        return ""
    if isinstance(cleaned, str):
        return cleaned
    if isinstance(cleaned, list | dict):
        kind = "a list" if isinstance(cleaned, list) else "an object"
        raise ValueError(f"the field {name!r} holds {kind}, not a text")
    return json.dumps(cleaned)
