"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID


LINE_EVERY_S = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class ProgressHandle:
    """Progress of one thing; without ``progress`` nothing is shown. Any thread may call it.

    Args:
        progress: Keeps count.
        task: The one thing.
        unit: What is counted, where a line on stderr now and then stands for the bar.
    """

    def __init__(
        self, progress: Progress | None = None, task: TaskID | None = None, unit: str | None = None
    ) -> None:
        self._progress = progress
        self._task = task
        self._unit = unit
        self._said = time.monotonic()

    def advance(self, n: float = 1) -> None:
        """Say that ``n`` more units are done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, n)
            self._tell(self._progress.tasks[0])

    def update(
        self, description: str | None = None, completed: float | None = None, total: float | None = None
    ) -> None:
        """Change the text, the number of units done, or their total."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=description, completed=completed, total=total)
            self._tell(self._progress.tasks[0])

    def _tell(self, task: Task) -> None:
        now = time.monotonic()
        if self._unit is None or now - self._said < LINE_EVERY_S:
            return
        self._said = now
        told = []
        if self._unit:
            told.append(f"{task.completed:,.0f}{f' of {task.total:,.0f}' if task.total else ''} {self._unit}")
            told += [f"{task.speed:,.1f} {self._unit}/s"] if task.speed else []
        elif task.total:
            told.append(f"{task.percentage:.0f}%")
        if task.time_remaining:
            told.append(f"{duration(task.time_remaining)} left")
        click.echo(": ".join(filter(None, (task.description, ", ".join(told)))), err=True)


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

    def wrote(self, paths: Iterable[Path]) -> None:
        """Tell which files were written."""
        for path in paths:
            self.note(f"wrote {path}")

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
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        if self.json or not sys.stderr.isatty():
            counted = Progress(get_time=time.monotonic, speed_estimate_period=20 * LINE_EVERY_S)
            yield ProgressHandle(counted, counted.add_task(description, total=total), unit)
            return

        class Rate(ProgressColumn):
            """Units per second, once that is known."""

            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:,.1f} {unit}/s" if speed else "", style="progress.data.speed")

        columns = (
            SpinnerColumn(),
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield ProgressHandle(progress, progress.add_task(description, total=total))


def _plain(value: Any) -> Any:
    """What JSON does not know: paths, numpy scalars and objects with a dictionary form."""
    if isinstance(value, Path):
        return str(value)
    for method in ("to_dict", "model_dump", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} has no JSON form")
