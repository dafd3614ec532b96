"""What became of the teachers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from oskit.training.recipe.teachers import Normalization

Status = Literal["used", "unused", "dropped"]


@dataclass
class TeacherReport:
    """What became of one teacher.

    Attributes:
        kind: As the recipe calls it.
        name: Its folder or repository; None where it has none.
        weight: As configured.
        effective_weight: Its share in the average now: the weights of those that are used sum to 1.
        status: ``unused``: its weight is 0. ``dropped``: it failed.
        normalize: How its scores of a query's candidates are normalised.
        reason: Why it was dropped.
        fingerprint: Digest of its files.
        hits: Scores or vectors that the cache had.
        misses: Those that were computed.
        unread: Texts that it read as they are, because its ``texts`` lack them.
    """

    kind: str
    name: str | None
    weight: float
    effective_weight: float
    status: Status
    normalize: Normalization
    reason: str | None = None
    fingerprint: str | None = None
    hits: int = 0
    misses: int = 0
    unread: int = 0

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
    """What became of the teachers.

    Attributes:
        teachers: All that were named, used or not.
        scale: What normalised scores are multiplied by.
        candidates: Candidates that were labelled.
        unknown: Candidates without a label: no teacher knows them.
    """

    teachers: list[TeacherReport]
    scale: float
    candidates: int = 0
    unknown: int = 0

    @property
    def dropped(self) -> list[TeacherReport]:
        """Teachers that failed."""
        return [teacher for teacher in self.teachers if teacher.status == "dropped"]

    def to_dict(self) -> dict[str, Any]:
        """All attributes, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [str(teacher) for teacher in self.teachers]
        if self.unknown:
            lines.append(f"{self.unknown:,} of {self.candidates:,} candidates have no label")
        return "\n".join(lines)
