"""Notice ids and texts that come twice, in bounded memory."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Literal

from oskit.data.documents import Document
from oskit.data.values import clean_text


class SeenTexts:
    """Remembers texts by a digest of 16 bytes, in a temporary SQLite database that spills to disk.

    SQLite keeps a few megabytes in memory and deletes the file when it is closed. Not shared between threads.
    """

    def __init__(self) -> None:
        # An empty name is SQLite's private temporary database on disk.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE seen (text BLOB PRIMARY KEY, content BLOB) WITHOUT ROWID")

    def add(self, *texts: str, content: bytes | None = None) -> bool:
        """Remember the texts, and ``content`` with them; whether they were new."""
        row = digest_of(*texts), content
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row).rowcount == 1

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
        query = "SELECT content FROM seen WHERE text = ?"
        (before,) = self._database.execute(query, (digest_of(identity),)).fetchone()
        return "same" if before == content else "different"


def digest_of(*texts: str) -> bytes:
    """A digest of texts in their order, 16 bytes; where one ends and the next begins counts."""
    state = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    return state.digest()
