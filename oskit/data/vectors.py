"""Vectors that come with the documents: token weights, checked, and kept as the JSON that is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from oskit.data.values import clean_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST_WEIGHT = 1.1754943508222875e-38
"""The smallest positive normal 32-bit float; ``rank_features`` refuses anything below."""

LARGEST_WEIGHT = 3.4028234663852886e38
"""The largest 32-bit float."""


@dataclass(frozen=True, slots=True)
class Vector:
    """Token weights as they were read.

    Args:
        field: Name of the field that held them.
        keys: Token texts or ids.
        json: The object ``{key: weight}``, to the digit as it was read.
    """

    field: str
    keys: tuple[str, ...]
    json: bytes

    @classmethod
    def of(cls, field: str, value: Any) -> Vector:
        """Check the value of a record's field, an object or a list of pairs.

        Raises:
            ValueError: It is no object, or a weight is no positive, finite number of 32 bits; one line.
        """
        pairs = value.items() if isinstance(value, Mapping) else value
        try:
            weights = {str(key): weight for key, weight in pairs}
            if pairs is value and not all(isinstance(key, str | int) for key, _ in value):
                raise TypeError
        except (TypeError, ValueError):
            raise ValueError(f"the field {field!r} holds no weights, such as {{token: weight}}") from None
        if not all(map(str.isascii, weights)):
            weights = {clean_text(key): weight for key, weight in weights.items()}
        if len(weights) < len(value):
            raise ValueError(f"a key comes twice in {field!r}")
        if weights and (
            not {*map(type, weights.values())} <= {int, float}
            or not min(weights.values()) >= SMALLEST_WEIGHT
            or not max(weights.values()) <= LARGEST_WEIGHT  # an integer may be too large for a float
            or not math.isfinite(sum(weights.values()))  # NaN has no order
            or "" in weights
        ):
            for key, weight in weights.items():
                if not _is_good(key, weight):
                    raise ValueError(
                        f"the weight of {key!r} in {field!r} is {weight!r}: a finite number above 0 is needed"
                    )
        try:
            written = orjson.dumps(weights)
        except orjson.JSONEncodeError:  # an integer over 64 bits
            written = orjson.dumps({key: float(weight) for key, weight in weights.items()})
        return cls(field, tuple(weights), written)

    def weights(self) -> dict[str, float]:
        """The weights by key."""
        weights: dict[str, float] = orjson.loads(self.json)
        return weights


def write_rows(keys: NDArray[Any], weights: NDArray[Any], bounds: NDArray[Any]) -> list[bytes]:
    """The JSON objects of many vectors at once, in the shortest digits that give the same floats again.

    Args:
        keys: Of each weight, ``b',"key":'``, with the comma in front, so that entries need only be joined.
        weights: Finite, of 32 or 64 bits.
        bounds: Where each vector begins, and where the last one ends.
    """
    first, last = int(bounds[0]), int(bounds[-1])
    if first == last:
        return [b"{}"] * (len(bounds) - 1)
    numbers = orjson.dumps(np.ascontiguousarray(weights[first:last]), option=orjson.OPT_SERIALIZE_NUMPY)
    entries = [b""] * (2 * (last - first))
    entries[::2] = keys[first:last].tolist()
    entries[1::2] = numbers[1:-1].split(b",")
    rows = pairwise((2 * (bounds - first)).tolist())
    return [b"{" + b"".join(entries[start:end])[1:] + b"}" for start, end in rows]


def key_bytes(key: str) -> bytes:
    """A key as :func:`write_rows` takes it."""
    return b"," + orjson.dumps(key) + b":"


def _is_good(key: str, weight: Any) -> bool:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    return bool(key) and number and SMALLEST_WEIGHT <= weight <= LARGEST_WEIGHT
