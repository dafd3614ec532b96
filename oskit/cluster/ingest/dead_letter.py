"""The dead-letter file: documents that were refused, with the reason, ready to be ingested again."""

from __future__ import annotations

import contextlib
import errno
import json
from pathlib import Path
from typing import IO, Any

from oskit.data.documents import OSKIT_KEY, Document, Refusal
from oskit.data.values import clean_value
from oskit.errors import DataError


class DeadLetterFile:
    """A JSONL file that comes into being with the first refused document; appended to if it exists.

    A line is the document with one more key, ``_oskit``, which the readers of :mod:`oskit.data` know and
    drop: it holds the reason, and which fields are the text and the title. What never was a document is
    kept as it was read, in ``_oskit.raw``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def add(self, item: Document | Refusal, reason: str, status: int | None = None) -> None:
        """Write one line, at once.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            if self._file is None:
                broken_off = _breaks_off(self.path)
                # ASCII, so that bytes that are not UTF-8 survive as escaped surrogates.
                self._file = self.path.open("a", encoding="ascii", newline="\n")
                if broken_off:
                    self._file.write("\n")
            self._file.write(json.dumps(dead_letter(item, reason, status)) + "\n")
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"cannot write the dead-letter file {self.path}: {error.strerror or error}",
                hint="Free some space there, or name another with --dead-letter"
                if error.errno in (errno.ENOSPC, errno.EDQUOT)
                else "Name another with --dead-letter",
            ) from error

    @property
    def written(self) -> bool:
        """Whether anything was refused."""
        return self._file is not None

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written was told when it was to be
                self._file.close()


def _breaks_off(path: Path) -> bool:
    """Whether a file ends within a line, as after a kill or on a full disk: the next would go on in it."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def dead_letter(item: Document | Refusal, reason: str, status: int | None = None) -> dict[str, Any]:
    """The line of a refused document."""
    note: dict[str, Any] = {"reason": reason, "where": item.where}
    if status is not None:
        note["status"] = status
    if isinstance(item, Refusal):
        note["raw"] = item.raw
        return {OSKIT_KEY: note}
    note |= {"text_field": item.text_field, "title_field": item.title_field}
    note |= {"joined": True, "title_field": item.title_field if item.title else None} if item.joined else {}
    own: dict[str, Any] = clean_value(item.source())
    if item.vector is not None:
        own[item.vector.field] = item.vector.weights()
    return {"_id": item.id, OSKIT_KEY: note, **own}
