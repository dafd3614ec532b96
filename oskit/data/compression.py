"""Open files for reading, compressed or not, told apart by their first bytes and not by their names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from oskit.errors import DataError, MissingDependencyError

STDIN = "-"

COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

DAMAGE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
"""What reading a damaged or cut-off file raises; gzip's, bz2's and pyarrow's errors are OSErrors."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def open_bytes(source: str | Path) -> Iterator[IO[bytes]]:
    """Open a file, or stdin for ``-``, as a stream of uncompressed bytes without a byte order mark.

    Raises:
        DataError: The file is missing, unreadable, damaged, or text in UTF-16; also raised while reading.
        MissingDependencyError: zstd without pyarrow.
    """
    name = source_name(source)
    try:
        with _open_raw(source) as raw:
            stream = _decompressed(raw, name)
            first = stream.peek(4)[:3]
            if first[:2] in _UTF16:
                raise DataError(
                    f"{name} is UTF-16, not UTF-8", hint="Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
                )
            if first == b"\xef\xbb\xbf":
                stream.read(3)
            yield stream
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{name} is damaged or cut off: {error}", hint="Fetch or compress it again"
        ) from error


def unreadable(name: str, line: int, error: Exception) -> DataError:
    """Any of :data:`DAMAGE`, saying up to which line a file could be read."""
    return DataError(
        f"{name}:{line} cannot be read: {error}",
        hint="The file seems damaged or cut off: fetch or compress it again",
    )


def source_name(source: str | Path) -> str:
    """How messages call a source."""
    return "<stdin>" if str(source) == STDIN else str(source)


@contextmanager
def _open_raw(source: str | Path) -> Iterator[io.BufferedReader]:
    if str(source) == STDIN:
        buffer = sys.stdin.buffer
        yield buffer if isinstance(buffer, io.BufferedReader) else io.BufferedReader(cast(Any, buffer))
        return
    with Path(source).open("rb") as raw:
        yield raw


def _decompressed(raw: io.BufferedReader, name: str) -> io.BufferedReader:
    head = raw.peek(8)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        return raw
    opened: Any
    if kind == "gzip":
        opened = gzip.GzipFile(fileobj=raw)
    elif kind == "bz2":
        opened = bz2.BZ2File(raw)
    elif kind == "xz":
        opened = lzma.LZMAFile(raw)  # noqa: SIM115 - closed with the file it reads from
    else:
        try:
            import pyarrow
        except ImportError as error:
            raise MissingDependencyError.for_extra(f"reading {name} (zstd)", "pyarrow", "parquet") from error
        opened = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
    return io.BufferedReader(opened, 1 << 16)
