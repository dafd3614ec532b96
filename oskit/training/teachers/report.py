"""What became of the teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from oskit.training.recipe.teachers import Normalization


@dataclass
class TeacherReport:
    """What became of one teacher."""

    kind: str  # as the recipe calls it
    name: str | None  # its folder or repository; None where it has none
    weight: float  # as configured
    effective_weight: float  # its share in the average now: the weights of those that are used sum to 1
    status: Literal["used", "unused", "dropped"]  # `unused`: its weight is 0. `dropped`: it failed
    normalize: Normalization  # how its scores of a query's candidates are normalised
    reason: str | None = None  # why it was dropped
    fingerprint: str | None = None  # digest of its files
    hits: int = 0  # scores or vectors that the cache had
    misses: int = 0  # those that were computed
    unread: int = 0  # texts that it read as they are, because its `texts` lack them

    def __str__(self) -> str:
        what = f"{self.kind} teacher" if self.name is None else f"{self.kind} teacher {self.name}"
        if self.status == "dropped":
            return f"{what}: DROPPED, {self.reason}"
        if self.status == "unused":
            return f"{what}: unused (weight 0)"
        parts = [f"weight {self.effective_weight:.2f}"]
        if self.hits or self.misses:
            parts.append(f"{self.hits:,} from the cache, {self.misses:,} computed")
        if self.unread:
            parts.append(f"{self.unread:,} texts read as they are, which its texts lack")
        return f"{what}: {'; '.join(parts)}"


@dataclass
class EnsembleReport:
    """What became of the teachers."""

    teachers: list[TeacherReport]  # all that were named, used or not
    scale: float  # what normalised scores are multiplied by
    candidates: int = 0  # candidates that were labelled
    unknown: int = 0  # candidates without a label: no teacher knows them
    alike: int = 0  # queries with several labels that are all the same
