"""What teachers computed, on disk, by content: computed once, shared by later runs and other processes.

One SQLite file for each identity of a teacher (its weights, its prompts, how many tokens it reads): another
model, or the same one with another prompt, has a file of its own and never reads what is not its own. Keys
are digests of texts, so the same text in another data set, order or file is known.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from oskit.errors import DataError
from oskit.folders import user_cache

logger = logging.getLogger(__name__)

Compute = Callable[[list[int]], list[bytes]]
"""Given positions of keys that are not known, :data:`SLICE` at most, the value of each."""

SLICE = 8192
"""Values that are computed between two commits: what an interruption may cost."""

_PARAMETERS = 500
_LOCK_SECONDS = 120.0


def default_cache_folder() -> Path:
    """``teachers`` in ``OSKIT_CACHE_DIR``, else in the user's cache folder."""
    return user_cache() / "teachers"


class ScoreStore:
    """Values by key, in an SQLite file of a folder. Processes may share it, threads no object.

    The identity says everything that the values depend on.

    Raises:
        DataError: The file cannot be written.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        name = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        self.path = folder / f"{name}.sqlite"
        self.misses = 0  # values that had to be computed
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            self._database, before = _open(self.path)
        self._read_of_before = np.zeros(before + 1, dtype=bool)

    @property
    def hits(self) -> int:
        """Values that were there before this object was, and were asked for: each counts once."""
        return int(self._read_of_before.sum())

    def values(self, keys: Sequence[bytes], compute: Compute) -> list[bytes]:
        """The value of each key; what is not known is computed once, a slice at a time, and kept."""
        first = {key: position for position, key in reversed(list(enumerate(keys)))}
        found = self._read(list(first))
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        self.misses += len(missing)
        for start in range(0, len(missing), SLICE):
            chosen = missing[start : start + SLICE]
            rows = list(zip(chosen, compute([first[key] for key in chosen]), strict=True))
            # Another process may have stored the same meanwhile: then its values stay.
            with self._told(), self._database:
                self._database.executemany("INSERT OR IGNORE INTO known VALUES (?, ?)", rows)
            found.update(rows)
        return [found[key] for key in keys]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _read(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _PARAMETERS):
            chosen = keys[start : start + _PARAMETERS]
            marks = ",".join("?" * len(chosen))
            sql = f"SELECT key, value, rowid FROM known WHERE key IN ({marks})"  # noqa: S608
            with self._told():
                rows = self._database.execute(sql, chosen).fetchall()
            for key, value, row in rows:
                found[key] = value
                if row < len(self._read_of_before):
                    self._read_of_before[row] = True
        return found

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise DataError(
                f"the cache of teachers' scores {self.path} cannot be read or written: {error}",
                hint="Make room, or name another folder (labels.cache_folder, or OSKIT_CACHE_DIR).",
            ) from error
        except sqlite3.Error as error:  # no fault of the teacher, which would be dropped
            raise DataError(
                f"the cache of teachers' scores {self.path} is damaged: {error}",
                hint="Remove the file: what it has is computed anew.",
            ) from error


def _open(path: Path) -> tuple[sqlite3.Connection, int]:
    """The database, and how many values it has; a file that is none is moved out of the way."""
    database = sqlite3.connect(path, timeout=_LOCK_SECONDS)
    try:
        database.execute("CREATE TABLE IF NOT EXISTS known (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
        (count,) = database.execute("SELECT COALESCE(MAX(rowid), 0) FROM known").fetchone()
        return database, int(count)
    except sqlite3.DatabaseError as error:
        database.close()
        if isinstance(error, sqlite3.OperationalError):
            raise  # locked, full or read-only: the file itself may be right
        broken = path.with_name(f"{path.name}.broken")
        logger.warning("%s is damaged (%s): moved to %s, scores are computed anew", path, error, broken)
        path.replace(broken)
        return _open(path)
