"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import json as jsonlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class ProgressHandle:
    """Progress of one thing; this one shows nothing. Any thread may call it."""

    def advance(self, n: float = 1) -> None:
        """Say that ``n`` more units are done."""

    def update(
        self, description: str | None = None, completed: float | None = None, total: float | None = None
    ) -> None:
        """Change the text, the number of units done, or their total."""


class _Bar(ProgressHandle):
    """On a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, n: float = 1) -> None:
        self._progress.advance(self._task, n)

    def update(
        self, description: str | None = None, *, completed: float | None = None, total: float | None = None
    ) -> None:
        self._progress.update(self._task, description=description, completed=completed, total=total)


LINE_EVERY_S = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class _Lines(ProgressHandle):
    """In a pipe or a file: a line on stderr now and then."""

    def __init__(self, description: str, total: float | None, unit: str) -> None:
        self._description = description
        self._total = total
        self._unit = unit
        self._done = 0.0
        self._begin: tuple[float, float] | None = None
        """When the rate began to count, and what was done by then: a resumed run does not begin at 0."""
        self._made = self._said = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, n: float = 1) -> None:
        with self._lock:
            self._begin = self._begin or (self._made, 0.0)
            self._done += n
            self._say()

    def update(
        self, description: str | None = None, *, completed: float | None = None, total: float | None = None
    ) -> None:
        with self._lock:
            self._description = self._description if description is None else description
            self._total = self._total if total is None else total
            if completed is not None:
                if self._begin is None or completed < self._done:
                    self._begin = time.monotonic(), completed
                self._done = completed
            self._say()

    def _say(self) -> None:
        now = time.monotonic()
        if self._begin is None or now - self._said < LINE_EVERY_S:
            return
        self._said = now
        since, before = self._begin
        rate = (self._done - before) / max(now - since, 1e-9)
        told = []
        if self._unit:
            total = f" of {self._total:,.0f}" if self._total else ""
            told.append(f"{self._done:,.0f}{total} {self._unit}")
            told += [f"{rate:,.1f} {self._unit}/s"] if rate > 0 else []
        elif self._total:
            told.append(f"{self._done / self._total:.0%}")
        if rate > 0 and self._total and self._total > self._done:
            told.append(f"{duration((self._total - self._done) / rate)} left")
        click.echo(": ".join(filter(None, (self._description, ", ".join(told)))), err=True)


def duration(seconds: float) -> str:
    """A time as people say it, such as ``2 min 5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


WIDTH_OFF_TERMINAL = 200
"""A table in a pipe or a file must not break names and ids into two lines."""


class Output:
    """Where a command's words go.

    Args:
        json: Print results as JSON for scripts instead of text for people.
        quiet: Neither notes nor progress; warnings stay.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    def result(self, data: Any, human: Callable[[Console], None] | None = None) -> None:
        """Print the result on stdout: ``data`` as JSON with ``--json``, else what ``human`` prints."""
        if self.json:
            click.echo(jsonlib.dumps(data, indent=2, ensure_ascii=False, default=_plain))
        elif human is not None:
            from rich.console import Console

            console = Console(file=sys.stdout, highlight=False)
            if not console.is_terminal:
                console.width = WIDTH_OFF_TERMINAL
            human(console)

    def note(self, text: str) -> None:
        """Tell something useful on stderr, unless ``--quiet``."""
        if not self.quiet:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """Warn in one line on stderr, always."""
        click.echo(f"Warning: {' '.join(text.split())}", err=True)

    @contextmanager
    def progress(
        self, description: str, total: float | None = None, unit: str = "docs"
    ) -> Iterator[ProgressHandle]:
        """A bar with rate and time left on stderr; lines off a terminal or with --json; nothing with -q."""
        if self.quiet:
            yield ProgressHandle()
            return
        if self.json or not sys.stderr.isatty():
            yield _Lines(description, total, unit)
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        from oskit.cli.rate import RateColumn

        columns = (
            SpinnerColumn(),
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            RateColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield _Bar(progress, progress.add_task(description, total=total))


def _plain(value: Any) -> Any:
    """What JSON does not know: paths, numpy scalars and objects with a dictionary form."""
    if isinstance(value, Path):
        return str(value)
    for method in ("to_dict", "model_dump", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} has no JSON form")
