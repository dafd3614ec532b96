"""What became of the training data of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataFacts:
    """What became of the data.

    Attributes:
        examples: Queries that are trained on.
        visits: What an epoch reads: every known positive once, and every query without one.
        negatives: Documents that are read beside the first one.
        sources: What was read of each source.
        held_out: Queries held out for evaluation; 0 where a collection is given.
        pooling: What else than their own answers is relevant to them (``PoolFacts``); None where nothing is.
        leakage: What training and evaluation queries had in common; None where queries were held out.
        dropped_leaks: Examples dropped for it.
        mining: What mining found; None if nothing was mined.
        teachers: What became of the teachers; None without distillation.
        notes: What else happened to examples, in words.
    """

    examples: int
    negatives: int
    visits: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)
    held_out: int = 0
    pooling: dict[str, Any] | None = None
    leakage: dict[str, Any] | None = None
    dropped_leaks: int = 0
    mining: dict[str, Any] | None = None
    teachers: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
