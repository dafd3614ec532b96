"""Which process is which: a process id alone is reused, with its start time it is not."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class ProcessId(NamedTuple):
    """A process of this boot of this machine.

    Attributes:
        pid: The process id.
        started: Its start, in clock ticks since boot (field 22 of ``/proc/PID/stat``).
        boot: The kernel's id of the boot, because ticks start again with it.
    """

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of the process that has ``pid`` now; None if there is none or it has ended."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        # The name, in parentheses, may hold blanks and parentheses.
        fields = text.rpartition(")")[2].split()
        if fields[0] in "ZX":  # ended; only its parent has not asked yet
            return None
        return cls(pid, int(fields[19]), boot)

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessId.of(self.pid) == self

    def age(self) -> float:
        """Seconds since its start."""
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - self.started / os.sysconf("SC_CLK_TCK"))


def stop_group(process: ProcessId, grace: float) -> None:
    """Ask the process and its group to end, wait up to ``grace`` seconds, then kill what is left."""
    if not process.alive():
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    if not wait_ended(process, grace):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        wait_ended(process, 10)


def wait_ended(process: ProcessId, seconds: float) -> bool:
    """Wait until the process has ended; False if it has not."""
    deadline = time.monotonic() + seconds
    while process.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)  # if it is a child of ours
    return True


def process_of(record: Mapping[str, Any]) -> ProcessId | None:
    """The process that a node's record names, if it still runs."""
    try:
        process = ProcessId(int(record["pid"]), int(record["started"]), str(record["boot"]))
    except (KeyError, TypeError, ValueError):
        return None
    return process if process.alive() else None
