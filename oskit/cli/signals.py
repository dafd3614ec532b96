"""SIGTERM and SIGHUP end a command as Ctrl-C does: what was changed is put back, what was done is told."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from types import FrameType
from typing import Self

INTERRUPTED = 130
"""The exit code after Ctrl-C; after a signal it is 128 and the signal's number."""

SAME_ENDING_S = 3.0
"""A terminal that closes sends SIGHUP twice, systemd SIGTERM and SIGHUP: one ending, and its cleaning up is
not to be cut short. Whoever sends another one later means it."""


class SignalCame(KeyboardInterrupt):
    """Raised where the main thread is when a signal asks the process to end."""


class EndingSignals:
    """While entered, SIGTERM and SIGHUP raise :class:`SignalCame`.

    A signal that is ignored, as SIGHUP under ``nohup``, stays so, and so does another program's handler;
    outside the main thread Python has no signals.

    Attributes:
        came: The first signal that came.
    """

    came: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._process, self._since = os.getpid(), 0.0
        self._ours = [
            number
            for number in (signal.SIGTERM, signal.SIGHUP)
            if threading.current_thread() is threading.main_thread()
            and signal.getsignal(number) is signal.SIG_DFL
        ]
        for number in self._ours:
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._ours:
            signal.signal(number, signal.SIG_DFL)

    def exit_code(self, code: int) -> int:
        """What the command ends with: an interruption by a signal tells which."""
        return 128 + self.came if self.came and code == INTERRUPTED else code

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child is nobody's command
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if number == signal.SIGHUP:
            _leave_the_terminal()
        if self.came and time.monotonic() - self._since < SAME_ENDING_S:
            return
        self.came, self._since = self.came or signal.Signals(number), time.monotonic()
        raise SignalCame(f"interrupted by {self.came.name}")


def _leave_the_terminal() -> None:
    """A terminal that is gone answers every line with an error, and the cleaning up has some to tell."""
    with contextlib.suppress(OSError):  # closed
        for stream in (1, 2):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
