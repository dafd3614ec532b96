"""Runs a command for as long as the process that asked for it lives; a program of its own.

``python supervisor.py '{"command": […], …}'`` starts the command and waits until its standard input ends,
which it does when the process at the other end stops, in whatever way, SIGKILL included. Then the command's
process group is stopped and a temporary folder deleted. It is a process of its own because the kernel's
"tell me when my parent dies" means the thread that started a child, which need not live as long.

Standard library only, and no import of oskit: it must start in a moment and with no environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

_PR_SET_PDEATHSIG = 1


def main(request: dict[str, Any]) -> int:
    """Run the request; returns the command's exit status."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.close(0))
    libc = ctypes.CDLL(None, use_errno=True)
    with open(request["log"], "ab") as log:  # noqa: PTH123 - pathlib is slow to import
        child = subprocess.Popen(
            request["command"],
            env=request["environment"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Should this process be killed, the kernel kills the server.
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            **request["account"],
        )
    print(child.pid, flush=True)
    try:
        while child.poll() is None and _stdin_open(0.2):
            pass
    finally:
        status = _stop(child, request["grace"])
        if request["delete"]:
            shutil.rmtree(request["delete"], ignore_errors=True)
    return status


def _stdin_open(seconds: float) -> bool:
    """Wait for the end of standard input for some time; True if it has not come."""
    try:
        ready, _, _ = select.select([0], [], [], seconds)
        return not ready or os.read(0, 4096) != b""
    except (OSError, ValueError):
        return False


def _stop(child: subprocess.Popen[bytes], grace: float) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    # Also when it ended by itself: something in its group may be left.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
