"""Notice ids that come twice, in bounded memory."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Literal

from oskit.data.documents import Document
from oskit.data.values import clean_text


class DuplicateFilter:
    """Remembers ids and digests of contents in a temporary SQLite database that spills to disk.

    16 + 16 bytes a document; SQLite keeps a few megabytes of them in memory and deletes the file
    when it is closed. Not shared between threads.
    """

    def __init__(self) -> None:
        # An empty name is SQLite's private temporary database on disk.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
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
