"""Several processes, as ``torchrun`` and ``accelerate launch`` start them: who prepares, who waits."""

from __future__ import annotations

import os
import time
from pathlib import Path

from oskit.errors import TrainingError

_POLL_SECONDS = 0.2


def rank() -> int:
    """The number of this process among all, 0 where there is one."""
    return _number("RANK", 0)


def world_size() -> int:
    """The number of processes."""
    return max(1, _number("WORLD_SIZE", 1))


def processes_here() -> int:
    """Those that a launcher started on this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process prepares, writes and tells."""
    return rank() == 0


def wait_for(path: Path) -> None:
    """Wait until the first process has written the file; if that one fails, its launcher ends this one too.

    No barrier, because those have a time limit, and mining may take hours.
    """
    while not path.exists():
        time.sleep(_POLL_SECONDS)


def share_of(batch_size: int) -> int:
    """Examples of a batch that this process computes.

    Raises:
        TrainingError: The batch cannot be divided evenly.
    """
    processes = world_size()
    if batch_size % processes:
        raise TrainingError(
            f"schedule.batch_size is {batch_size}, which {processes} processes cannot share evenly",
            hint=f"Make it a multiple of {processes}.",
        )
    return batch_size // processes


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default
