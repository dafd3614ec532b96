"""Where the distribution is cached and where nodes keep their data."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from oskit.cluster.node.account import Account, can_enter
from oskit.errors import NodeError, UsageError

# Other users cannot enter root's home, so what the server reads lies here when root starts it.
SYSTEM_CACHE = Path("/var/cache/oskit")
SYSTEM_STATE = Path("/var/lib/oskit")


def cache_root(account: Account | None) -> Path:
    """The folder of assembled distributions: ``OSKIT_CACHE_DIR``, else the user's cache folder.

    A folder that ``account`` cannot enter is replaced by one under ``/var/cache``.
    """
    return _reachable("OSKIT_CACHE_DIR", platformdirs.user_cache_dir("oskit"), SYSTEM_CACHE, account)


def state_root(account: Account | None) -> Path:
    """The folder of all nodes: ``OSKIT_STATE_DIR``, else the user's state folder (see `cache_root`)."""
    return (
        _reachable("OSKIT_STATE_DIR", platformdirs.user_state_dir("oskit"), SYSTEM_STATE, account) / "nodes"
    )


def _reachable(variable: str, default: str, system: Path, account: Account | None) -> Path:
    explicit = os.environ.get(variable)
    chosen = Path(explicit or default).expanduser().absolute()
    if not can_enter(chosen, account):
        # Two explicit folders must not become one.
        chosen = system / hashlib.sha256(explicit.encode()).hexdigest()[:12] if explicit else system
    try:
        chosen.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise NodeError(
            f"Cannot make the folder {chosen}: {error.strerror}",
            hint=f"Name a folder that can be written in {variable}.",
        ) from None
    return chosen


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
