"""Calls that change a cluster: those that a command would make, and those that it has made.

Every one that was made is a record of the logger ``oskit.cluster.changes``, at the level INFO, in the order
in which the cluster carried them out.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CHANGES = logging.getLogger("oskit.cluster.changes")

SHOWN = 12
"""Calls that are told one by one."""

READS = r"search|msearch|field_caps|simulate|count|mget|analyze|refresh|validate/query|predict/[^/]+/[^/]+"
"""Ends of paths whose POST changes nothing, as a regular expression."""

_READING_POSTS = re.compile(rf"/_({READS}|(simulate|simulate_index)/[^/]+)$")

_PAGES = re.compile(r"/_search/(scroll|point_in_time)")
"""What a reader of many documents keeps open for a while."""


PERMISSION_CHECK = "perform_permission_check"
"""With this parameter the security plugin says whether it permits a request, and carries out nothing."""


@dataclass(frozen=True)
class Call:
    """A request as people paste it into the Dev Tools console.

    Attributes:
        method: ``PUT``, ``POST`` or ``DELETE``.
        path: Without a leading slash; ``…`` stands for what is not known yet, such as the id of a new model.
        body: What JSON has a form for; None for no body.
        note: What a person should know of it, such as how often it is sent.
    """

    method: str
    path: str
    body: Any = None
    note: str = ""

    def __str__(self) -> str:
        """One line."""
        body = "" if self.body is None else f" {json.dumps(self.body, ensure_ascii=False)}"
        return f"{self.method} {self.path}{body}{f'  ({self.note})' if self.note else ''}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        known = {"method": self.method, "path": self.path, "body": self.body, "note": self.note}
        return {name: value for name, value in known.items() if value not in (None, "")}


def settings_call(body: Mapping[str, Mapping[str, Any]]) -> Call:
    """The request that changes the cluster's settings, ``persistent`` and ``transient`` ones."""
    return Call("PUT", "_cluster/settings", body)


def is_change(method: str, path: str) -> bool:
    """Whether a request leaves something else behind than it found."""
    if method == "POST":
        return not (_READING_POSTS.search(path) or _PAGES.search(path))
    return method == "PUT" or (method == "DELETE" and not _PAGES.search(path))


def record_change(method: str, path: str) -> None:
    """Tell the logger of a request that was carried out, if it changed anything."""
    if is_change(method, path):
        CHANGES.info("%s %s", method, re.sub(r"/upload_chunk/\d+$", "/upload_chunk/…", path.lstrip("/")))


class Changes(logging.Handler):
    """Collects the calls of one command: how often each was made, in the order of the first times."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.calls: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Count a call."""
        said = record.getMessage()
        self.calls[said] = self.calls.get(said, 0) + 1

    def __str__(self) -> str:
        """Them all in one line; empty if nothing was changed."""
        told = [f"{call} ({n:,} times)" if n > 1 else call for call, n in self.calls.items()]
        return ", ".join(told[:SHOWN]) + (f", and {len(told) - SHOWN:,} more" if len(told) > SHOWN else "")


@contextmanager
def changes() -> Iterator[Changes]:
    """The changes that are made inside the block, whichever client makes them."""
    collected, level = Changes(), CHANGES.level
    CHANGES.addHandler(collected)
    CHANGES.setLevel(logging.INFO)
    try:
        yield collected
    finally:
        CHANGES.removeHandler(collected)
        CHANGES.setLevel(level)
