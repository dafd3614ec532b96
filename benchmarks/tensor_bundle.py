"""TensorFlow's tensor bundle (``variables.index`` and its data file), read without TensorFlow.

The index is a table in LevelDB's format whose values are ``BundleEntryProto`` messages (tensorflow/core/
protobuf/tensor_bundle.proto); the data file holds the tensors' bytes. Only what saved models of one shard
with float32 variables need is understood; anything else is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_DT_FLOAT = 1


def read_bundle(prefix: Path) -> dict[str, NDArray[Any]]:
    """The variables of a bundle by name, float32; the arrays are copies in memory.

    Args:
        prefix: The path without ``.index`` and ``.data-00000-of-00001``.

    Raises:
        DataError: The bundle is damaged, compressed, in several shards, or holds other types.
    """
    index = prefix.with_name(prefix.name + ".index")
    data = np.memmap(prefix.with_name(prefix.name + ".data-00000-of-00001"), dtype=np.uint8, mode="r")
    variables = {}
    for key, value in _table(index):
        if not key:
            continue  # the header of the bundle
        entry = _message(value)
        name = key.decode()
        if entry.get(1) != _DT_FLOAT or entry.get(3, 0) != 0:
            raise DataError(f"{index}: the variable {name} is not float32 in one shard")
        shape = [_message(dimension).get(1, 0) for dimension in _repeated(entry.get(2, b""), 2)]
        start, size = entry.get(4, 0), entry.get(5, 0)
        raw = np.array(data[start : start + size])
        if raw.size != size or size != 4 * int(np.prod(shape, dtype=np.int64)):
            raise DataError(f"{index}: the variable {name} of shape {shape} has {raw.size} bytes")
        variables[name] = raw.view("<f4").reshape(shape)
    return variables


def _table(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table file (LevelDB's doc/table_format.md)."""
    raw = path.read_bytes()
    if len(raw) < _FOOTER or struct.unpack("<Q", raw[-8:])[0] != _MAGIC:
        raise DataError(f"{path} is not the index of a tensor bundle")
    footer = raw[-_FOOTER:]
    _, _, position = _handle(footer, 0)  # of the meta index, which is empty
    offset, size, _ = _handle(footer, position)
    for _, handle in _block(path, raw, offset, size):
        offset, size, _ = _handle(handle, 0)
        yield from _block(path, raw, offset, size)


def _block(path: Path, raw: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if raw[offset + size] != 0:
        raise DataError(f"{path}: a block is compressed, which is not understood")
    block = raw[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end, position, key = size - 4 * (restarts + 1), 0, b""
    while position < end:
        shared, position = _varint(block, position)
        fresh, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + fresh]
        position += fresh
        yield key, block[position : position + length]
        position += length


def _handle(raw: bytes, position: int) -> tuple[int, int, int]:
    offset, position = _varint(raw, position)
    size, position = _varint(raw, position)
    return offset, size, position


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol-buffers message."""
    position = 0
    while position < len(raw):
        tag, position = _varint(raw, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(raw, position)
            yield tag >> 3, value
        elif kind == 2:
            length, position = _varint(raw, position)
            yield tag >> 3, raw[position : position + length]
            position += length
        elif kind == 5:
            yield tag >> 3, raw[position : position + 4]
            position += 4
        else:
            raise DataError(f"a field of the unknown kind {kind} in the index of a tensor bundle")


def _message(raw: bytes) -> dict[int, Any]:
    return dict(_fields(raw))


def _repeated(raw: bytes, number: int) -> list[bytes]:
    return [value for field, value in _fields(raw) if field == number]
