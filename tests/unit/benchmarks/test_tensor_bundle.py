"""TensorFlow's tensor bundle is read without TensorFlow, and renamed for transformers."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks.models import torch_name
from benchmarks.tensor_bundle import read_bundle
from oskit.errors import DataError


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]], *, share: bool) -> bytes:
    """A block of a LevelDB table with one restart, its compression byte and an unused checksum."""
    raw, before = b"", b""
    for key, value in entries:
        shared = 0
        while share and shared < min(len(key), len(before)) and key[shared] == before[shared]:
            shared += 1
        raw += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return raw + struct.pack("<II", 0, 1)


def write(folder: Path, variables: dict[str, np.ndarray], *, dtype: int = 1, compression: int = 0) -> Path:
    """A bundle as ``tf.train.Saver`` lays it out."""
    data, entries = b"", [(b"", field(1, 1))]
    for name in sorted(variables):
        array = variables[name]
        shape = b"".join(field(2, field(1, size)) for size in array.shape)
        raw = array.astype("<f4").tobytes()
        message = field(1, dtype) + field(2, shape) + field(4, len(data)) + field(5, len(raw))
        entries.append((name.encode(), message + varint(6 << 3 | 5) + b"abcd"))
        data += raw
    body = block(entries, share=True)
    trailer = bytes([compression]) + b"\0\0\0\0"
    handle = varint(0) + varint(len(body))
    index = block([(b"zzz", handle)], share=False)
    table = body + trailer
    footer = varint(0) + varint(0) + varint(len(table)) + varint(len(index))
    footer = footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    (folder / "v.index").write_bytes(table + index + b"\0\0\0\0\0" + footer)
    (folder / "v.data-00000-of-00001").write_bytes(data)
    return folder / "v"


def test_names_shapes_and_values_come_back(tmp_path: Path) -> None:
    variables = {
        "module/a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "module/a/bias": np.array([1.5, -2.0], dtype=np.float32),
        "module/big": np.ones((300,), dtype=np.float32),
    }
    found = read_bundle(write(tmp_path, variables))
    assert found.keys() == variables.keys()
    for name, value in variables.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("how", [{"dtype": 3}, {"compression": 1}])
def test_what_is_not_understood_is_refused(tmp_path: Path, how: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"v\.index"):
        read_bundle(write(tmp_path, {"a": np.zeros(2, dtype=np.float32)}, **how))


def test_other_files_and_cut_data_are_refused(tmp_path: Path) -> None:
    prefix = write(tmp_path, {"a": np.zeros(2, dtype=np.float32)})
    prefix.with_name("v.data-00000-of-00001").write_bytes(b"1234")
    with pytest.raises(DataError, match="has 4 bytes"):
        read_bundle(prefix)
    prefix.with_name("v.index").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="not the index"):
        read_bundle(prefix)


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("module/bert/embeddings/word_embeddings", "bert.embeddings.word_embeddings.weight"),
        ("module/bert/embeddings/LayerNorm/gamma", "bert.embeddings.LayerNorm.weight"),
        (
            "module/bert/encoder/layer_11/attention/self/query/kernel",
            "bert.encoder.layer.11.attention.self.query.weight",
        ),
        ("module/cls/predictions/output_bias", "cls.predictions.bias"),
        ("module/cls/predictions/transform/dense/bias", "cls.predictions.transform.dense.bias"),
    ],
)
def test_names(variable: str, name: str) -> None:
    assert torch_name(variable) == name
