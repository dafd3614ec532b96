"""Which process works with an index that is not finished, so that another one can tell whether it is gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def owner() -> dict[str, Any]:
    """This process, as it stands in ``_meta.oskit`` of what it works with."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}


def is_gone(own: Mapping[str, Any]) -> bool:
    """Whether the process that :func:`owner` told of is surely no more; False where that cannot be seen."""
    here = own.get("host") == socket.gethostname() and own.get("machine", _machine()) == _machine()
    if not here or os.name != "posix" or not isinstance(own.get("pid"), int):
        return False
    try:
        os.kill(own["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is somebody else's
    return False


def _machine() -> str:
    """Where process ids mean the same: two containers may have one name, and a machine starts anew."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
