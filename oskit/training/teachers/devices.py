"""Where teachers compute: while the first process prepares, the others of its machine lend it theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from sentence_transformers.util import get_device_name

from oskit.training.ranks import processes_here


def devices_of(wanted: str | None) -> list[str]:
    """The devices that a teacher computes on: the one that is wanted, else one for each process."""
    if wanted is not None:
        return [wanted]
    found = get_device_name()
    count = min(processes_here(), torch.cuda.device_count()) if found.startswith("cuda") else 1
    return [found] if count <= 1 else [f"cuda:{number}" for number in range(count)]


@contextmanager
def all_cores() -> Iterator[None]:
    """Compute with the threads of all processes: launchers give each its share of the cores."""
    own = torch.get_num_threads()
    torch.set_num_threads(max(own, min(own * processes_here(), os.cpu_count() or 1)))
    try:
        yield
    finally:
        torch.set_num_threads(own)
