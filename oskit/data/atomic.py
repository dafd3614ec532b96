"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from oskit.errors import DataError


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8 beside its place and then put it there: a reader never sees half of it.

    Raises:
        OSError: It cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file beside the one that is wanted, which takes its place if all goes well and else goes away.

    Raises:
        DataError: It cannot be written, be it said by an OSError inside the block.
    """
    place = path.resolve()  # where a link leads
    if place.exists() and not place.is_file():
        raise DataError(f"cannot write {path}: it is there, and no file", hint="Choose another name")
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        try:
            yield part
            part.replace(place)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()
