"""The end of a log, and what is added to it; only what is new is read."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path


def tail(path: Path, lines: int | None = None) -> str:
    """The last ``lines`` lines of a file, or all of it; empty if there is none."""
    try:
        with path.open(errors="replace") as log:
            return "".join(deque(log, lines))
    except FileNotFoundError:
        return ""


def follow(path: Path, lines: int, goes_on: Callable[[], bool], *, pause_s: float = 1.0) -> Iterator[bytes]:
    """The last ``lines`` lines, then what is added, until ``goes_on`` says no; nothing if there is no file.

    A log that was cut short, and another file under its name, are read from their beginning.
    """
    if not path.exists():
        return
    with contextlib.ExitStack() as opened:
        log = opened.enter_context(path.open("rb"))
        yield b"".join(deque(log, lines))
        more = True
        while more:
            more = goes_on()  # asked first: the last words of what has ended are read all the same
            yield log.read()
            with contextlib.suppress(FileNotFoundError):  # between two files
                there = path.stat()
                if there.st_ino != os.fstat(log.fileno()).st_ino:
                    log = opened.enter_context(path.open("rb"))
                    yield log.read()
                elif there.st_size < log.tell():
                    log.seek(0)
                    yield log.read()
            if more:
                time.sleep(pause_s)
