"""What became of the training data of a run, and of its targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataFacts:
    """What became of the data."""

    examples: int  # queries that are trained on
    negatives: int  # documents that are read beside the first one
    visits: int = 0  # what an epoch reads: every known positive once, and every query without one
    sources: list[dict[str, Any]] = field(default_factory=list)  # what was read of each source
    held_out: int = 0  # queries held out for evaluation; 0 where a collection is given
    # what else than their own answers is relevant to them (`PoolFacts`); None where nothing is
    pooling: dict[str, Any] | None = None
    # what training and evaluation queries had in common; None where queries were held out
    leakage: dict[str, Any] | None = None
    dropped_leaks: int = 0  # examples dropped for it
    mining: dict[str, Any] | None = None  # what mining found; None if nothing was mined
    teachers: dict[str, Any] | None = None  # what became of the teachers; None without distillation
    notes: list[str] = field(default_factory=list)  # what else happened to examples, in words


MISSED = 0.15
"""A target that is exceeded by more than this share is told."""


@dataclass(frozen=True)
class Target:
    """What became of a target."""

    key: str  # its key in the recipe
    value: float  # what was asked for
    reached: float  # what the encoder has
    weight: float  # the penalty's weight at the end

    @property
    def missed(self) -> str | None:
        """In one line that it is exceeded; None where it is kept."""
        if self.reached <= (1 + MISSED) * self.value:
            return None
        return (
            f"{self.key} is {self.value:g}, and the encoder has {self.reached:,.1f}: it needs more steps, a "
            "larger learning rate or a longer ramp"
        )
