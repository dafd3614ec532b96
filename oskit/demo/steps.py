"""The demo's steps: what is done now, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Tell = Callable[[str], None]
"""Shows one line to whoever is waiting."""


@dataclass
class Step:
    """A step; ``result`` is what it says when it is over."""

    name: str
    seconds: float = 0.0
    result: str = ""


@dataclass
class Steps:
    """Runs steps one after the other and remembers those that are over."""

    tell: Tell
    done: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Announce a step and, once it is over, how long it took. A step that fails is announced as well."""
        self.tell(f"{len(self.done) + 1:2}. {name} …")
        current = Step(name)
        start = time.perf_counter()
        try:
            yield current
        except BaseException:
            self.tell(f"    failed after {time.perf_counter() - start:.1f} s")
            raise
        current.seconds = time.perf_counter() - start
        self.done.append(current)
        self.tell(f"    {current.result or 'done'} ({current.seconds:.1f} s)")
