"""Tokens and certificates, which are exchanged while the service runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from oskit.errors import OskitError, UsageError

VARIABLE = "OSKIT_SERVE_TOKEN"

logger = logging.getLogger(__name__)


class Renewal:
    """Files that are read again when they have changed.

    Args:
        files: As they were read.
        read: Reads them again; what it raises leaves all as it was.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], object]) -> None:
        self._files = files
        self._read = read
        self._seen = self._look()

    def renew(self) -> None:
        """Read them, if one is another now."""
        if (now := self._look()) == self._seen:
            return
        self._seen = now
        names = " and ".join(map(str, self._files))
        try:
            self._read()
        except OskitError as error:
            logger.warning("%s; what was read before holds on", error)
        else:
            logger.warning("%s was read again", names)

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self._files]


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def read_tokens(path: Path | None) -> tuple[str, ...]:
    """The lines of a file, or what :data:`VARIABLE` holds where there is none.

    Raises:
        UsageError: A token is none, or the file holds none.
    """
    if path is None:
        given = os.environ.get(VARIABLE)
        lines = [] if given is None else [given]
    else:
        try:
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
    tokens = tuple(line.strip() for line in lines)
    if (path is not None and not tokens) or any(
        not token or not token.isascii() or not token.isprintable() or " " in token for token in tokens
    ):
        raise UsageError(
            f"{path or VARIABLE} holds no token: printable ASCII without spaces is needed",
            hint="Make one, for instance with: openssl rand -hex 32",
        )
    return tokens
