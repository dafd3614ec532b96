"""Notice ids and texts that come twice, in bounded memory."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Literal

from oskit.data.documents import Document
from oskit.data.values import clean_text


class SeenTexts:
    """Remembers texts by a digest of 16 bytes, in a temporary SQLite database that spills to disk."""

    def __init__(self) -> None:
        self._database = _temporary_database()
        self._database.execute("CREATE TABLE seen (text BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, *texts: str) -> bool:
        """Remember the texts; whether they were new."""
        cursor = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest_of(*texts),))
        return cursor.rowcount == 1

    def close(self) -> None:
        """Forget everything and remove the temporary file."""
        self._database.close()


def digest_of(*texts: str) -> bytes:
    """A digest of texts in their order, 16 bytes; where one ends and the next begins counts."""
    state = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    return state.digest()


def _temporary_database() -> sqlite3.Connection:
    # An empty name is SQLite's private temporary database on disk.
    database = sqlite3.connect("", isolation_level=None)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    return database


class DuplicateFilter:
    """Remembers ids and digests of contents in a temporary SQLite database that spills to disk.

    16 + 16 bytes a document; SQLite keeps a few megabytes of them in memory and deletes the file
    when it is closed. Not shared between threads.
    """

    def __init__(self) -> None:
        self._database = _temporary_database()
        self._database.execute("CREATE TABLE seen (id BLOB PRIMARY KEY, content BLOB) WITHOUT ROWID")

    def check(self, document: Document) -> Literal["new", "same", "different"]:
        """Whether the document's id is new, or was seen with the same or with different content."""
        key = hashlib.blake2b(clean_text(document.id).encode(), digest_size=16).digest()
        content = document.digest()
        cursor = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, content))
        if cursor.rowcount == 1:
            return "new"
        (before,) = self._database.execute("SELECT content FROM seen WHERE id = ?", (key,)).fetchone()
        return "same" if before == content else "different"

    def close(self) -> None:
        """Forget everything and remove the temporary file."""
        self._database.close()
