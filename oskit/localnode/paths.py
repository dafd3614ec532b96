"""Where the distribution is cached and where nodes keep their data."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oskit.errors import NodeError, UsageError
from oskit.folders import user_cache, user_state
from oskit.localnode.service_account import Account, can_enter

# Other users cannot enter root's home, so what the server reads lies here when root starts it.
SYSTEM_CACHE = Path("/var/cache/oskit")
SYSTEM_STATE = Path("/var/lib/oskit")


def cache_root(account: Account | None) -> Path:
    """The folder of assembled distributions: ``OSKIT_CACHE_DIR``, else the user's cache folder.

    A folder that ``account`` cannot enter is replaced by one under ``/var/cache``.
    """
    return _made(cache_choice(account), "OSKIT_CACHE_DIR")


def cache_choice(account: Account | None) -> Path:
    """What `cache_root` is, or will be when it is needed."""
    return _choice("OSKIT_CACHE_DIR", user_cache(), SYSTEM_CACHE, account)


def state_root(account: Account | None) -> Path:
    """The folder of all nodes: ``OSKIT_STATE_DIR``, else the user's state folder (see `cache_root`)."""
    chosen = _choice("OSKIT_STATE_DIR", user_state(), SYSTEM_STATE, account)
    return _made(chosen, "OSKIT_STATE_DIR") / "nodes"


def _choice(variable: str, wanted: Path, system: Path, account: Account | None) -> Path:
    if can_enter(wanted, account):
        return wanted
    explicit = os.environ.get(variable)
    # Two explicit folders must not become one.
    return system / hashlib.sha256(explicit.encode()).hexdigest()[:12] if explicit else system


def _made(folder: Path, variable: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise NodeError(
            f"Cannot make the folder {folder}: {error.strerror}",
            hint=f"Name a folder that can be written in {variable}.",
        ) from None
    return folder


def check_name(name: str) -> str:
    """A node's name, which is also its folder's.

    Raises:
        UsageError: It holds something else than letters, digits, ``_`` and ``-``.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
        raise UsageError(
            f"{name!r} is not a name for a node", hint="Use letters, digits, '-' and '_', at most 63."
        )
    return name


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``; a process that dies lets go of it.

    Raises:
        NodeError: Its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError as error:
        raise NodeError(
            f"The folder {path.parent} cannot be written: {error.strerror}",
            hint="Name folders that can in OSKIT_CACHE_DIR, OSKIT_STATE_DIR and M2_REPO.",
        ) from None
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
