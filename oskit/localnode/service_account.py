"""Who runs the server: the current user, or, as root, an unprivileged one (OpenSearch refuses root)."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import Any, NamedTuple

from oskit.errors import NodeError

#: Tried in this order when root starts a node and names no account.
DEFAULT_ACCOUNTS = ("opensearch", "nobody")


class Account(NamedTuple):
    """A user that is not root."""

    name: str
    uid: int
    gid: int

    def subprocess_options(self) -> dict[str, Any]:
        """The arguments of ``subprocess.Popen`` that start a child as this user and nobody else."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def node_account(name: str | None = None) -> Account | None:
    """The account that the server runs as, or None for the current user.

    Args:
        name: An existing user; ``OSKIT_NODE_USER`` by default, then the first that exists of
            ``opensearch`` and ``nobody``. Not looked at unless the current user is root.

    Raises:
        NodeError: The user does not exist or is root.
    """
    if os.geteuid() != 0:
        return None
    wanted = name or os.environ.get("OSKIT_NODE_USER")
    for candidate in (wanted,) if wanted else DEFAULT_ACCOUNTS:
        try:
            entry = pwd.getpwnam(candidate)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise NodeError(
                f"OpenSearch refuses to run as {candidate!r}, which is root",
                hint="Name an unprivileged user in OSKIT_NODE_USER.",
            )
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise NodeError(
        f"OpenSearch refuses to run as root, and there is no user {wanted or ' or '.join(DEFAULT_ACCOUNTS)}",
        hint="Make one (useradd --system opensearch) or name an existing one in OSKIT_NODE_USER.",
    )


def can_enter(path: Path, account: Account | None) -> bool:
    """Whether ``account`` may enter ``path`` and all folders above it (those that exist)."""
    if account is None:
        return True
    for folder in (path, *path.parents):
        try:
            info = folder.stat()
        except OSError:
            continue
        if info.st_uid == account.uid:
            bit = stat.S_IXUSR
        elif info.st_gid == account.gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not info.st_mode & bit:
            return False
    return True


def give_to(path: Path, account: Account | None) -> None:
    """Make ``account`` the owner of ``path`` and of everything in it."""
    if account is None:
        return
    os.chown(path, account.uid, account.gid)
    for folder, folders, files in os.walk(path):
        for entry in (*folders, *files):
            os.chown(Path(folder, entry), account.uid, account.gid, follow_symlinks=False)
