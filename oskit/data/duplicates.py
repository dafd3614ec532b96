"""Notice ids and texts that come twice, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import pickle
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from oskit.data.documents import Document
from oskit.data.values import clean_text
from oskit.errors import DataError

Duplicates = Literal["refuse", "first", "last"]
"""What becomes of documents with one id and different contents: the first is taken and the others are
refused, or all but the first are left out, or all but the last."""

DUPLICATES: tuple[Duplicates, ...] = get_args(Duplicates)

Verdict = Literal["new", "same", "different"]
"""Of a document: it is taken, or one with its id and the same content is, or with its id and another one."""


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

    def content_of(self, *texts: str) -> bytes | None:
        """What was remembered with the texts; None where nothing was."""
        found = self._execute("SELECT content FROM seen WHERE text = ?", digest_of(*texts)).fetchone()
        return None if found is None else found[0]

    def _execute(self, statement: str, *values: bytes | None) -> sqlite3.Cursor:
        with _kept_temporarily(_sqlite_folder):
            return self._database.execute(statement, values)

    def close(self) -> None:
        """Forget everything and remove the temporary file."""
        self._database.close()


class DuplicateFilter(SeenTexts):
    """Remembers ids and digests of contents, 16 + 16 bytes a document.

    Args:
        keep: Which of the documents with one id and different contents :meth:`judge` takes.
    """

    def __init__(self, keep: Duplicates = "refuse") -> None:
        super().__init__()
        self.keep = keep

    def check(self, document: Document) -> Verdict:
        """Whether the document's id is new, or was seen with the same or with different content."""
        identity, content = clean_text(document.id), document.digest()
        if self.add(identity, content=content):
            return "new"
        return "same" if self._content_of(identity) == content else "different"

    def judge(self, documents: Iterable[Document]) -> Iterator[tuple[Document, Verdict]]:
        """Each document and what is to be done with it, in their order.

        Which is the last is known when all are read; a stream is read once, so they wait in a temporary file.

        Raises:
            DataError: The temporary folder is full, or cannot be used; or what reading raises, when what
                came before it is judged.
        """
        if self.keep != "last":
            yield from ((document, self.check(document)) for document in documents)
            return
        stream, count = iter(documents), 0
        broken: DataError | None = None
        with _kept_temporarily(tempfile.gettempdir):
            file = tempfile.TemporaryFile()  # noqa: SIM115
        with file:
            while True:
                try:
                    document = next(stream, None)
                except DataError as error:
                    document, broken = None, error
                if document is None:
                    break
                with _kept_temporarily(tempfile.gettempdir):
                    pickle.dump(document, file, pickle.HIGHEST_PROTOCOL)
                content = document.digest() + count.to_bytes(8, "big")
                key = digest_of(clean_text(document.id))
                self._execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", key, content)
                count += 1
            with _kept_temporarily(tempfile.gettempdir):
                file.seek(0)
            for number in range(count):
                document = pickle.load(file)  # noqa: S301 - our own, of a moment ago
                last = self._content_of(clean_text(document.id))
                if last[16:] == number.to_bytes(8, "big"):
                    yield document, "new"
                else:
                    yield document, "same" if last[:16] == document.digest() else "different"
        if broken is not None:
            raise broken

    def _content_of(self, identity: str) -> bytes:
        """What was remembered with an id that was seen."""
        content = self.content_of(identity)
        assert content is not None
        return content


@contextmanager
def _kept_temporarily(folder: Callable[[], str]) -> Iterator[None]:
    """Says what cannot be done where a temporary file fails, and only then looks where it is."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise DataError(
            f"cannot keep track of what was read in the temporary folder {folder()}: {error}",
            hint="Free some space there, or name another folder with TMPDIR",
        ) from error


def _sqlite_folder() -> str:
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
