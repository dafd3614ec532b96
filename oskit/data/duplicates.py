"""Notice ids and texts that come twice, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Literal

from oskit.data.documents import Document
from oskit.data.values import clean_text
from oskit.errors import DataError


class SeenTexts:
    """Remembers texts by a digest of 16 bytes, in a temporary SQLite database that spills to disk.

    SQLite keeps a few megabytes in memory and deletes the file when it is closed. One thread at a time.
    """

    def __init__(self) -> None:
        # An empty name is SQLite's private temporary database on disk.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._execute("PRAGMA journal_mode = OFF")
        self._execute("PRAGMA synchronous = OFF")
        self._execute("CREATE TABLE seen (text BLOB PRIMARY KEY, content BLOB) WITHOUT ROWID")

    def add(self, *texts: str, content: bytes | None = None) -> bool:
        """Remember the texts, and ``content`` with them; whether they were new.

        Raises:
            DataError: The temporary folder is full, or cannot be used.
        """
        return (
            self._execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", digest_of(*texts), content).rowcount
            == 1
        )

    def __contains__(self, text: str) -> bool:
        """Whether a text was added, alone."""
        return self._execute("SELECT 1 FROM seen WHERE text = ?", digest_of(text)).fetchone() is not None

    def _execute(self, statement: str, *values: bytes | None) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise DataError(
                f"cannot keep track of what was read in the temporary folder {_temporary_folder()}: {error}",
                hint="Free some space there, or name another folder with TMPDIR",
            ) from error

    def close(self) -> None:
        """Forget everything and remove the temporary file."""
        self._database.close()


class DuplicateFilter(SeenTexts):
    """Remembers ids and digests of contents, 16 + 16 bytes a document."""

    def check(self, document: Document) -> Literal["new", "same", "different"]:
        """Whether the document's id is new, or was seen with the same or with different content."""
        identity, content = clean_text(document.id), document.digest()
        if self.add(identity, content=content):
            return "new"
        (before,) = self._execute("SELECT content FROM seen WHERE text = ?", digest_of(identity)).fetchone()
        return "same" if before == content else "different"


def _temporary_folder() -> str:
    """Where SQLite puts its temporary files (sqlite3TempFileName in its os_unix.c)."""
    named = [os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp"]  # noqa: S108
    usable = (path for path in named if path and Path(path).is_dir() and os.access(path, os.W_OK | os.X_OK))
    return next(usable, ".")


def digest_of(*texts: str) -> bytes:
    """A digest of texts in their order, 16 bytes; where one ends and the next begins counts."""
    state = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    return state.digest()
