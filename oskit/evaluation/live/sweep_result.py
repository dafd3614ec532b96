"""What a sweep found, as data: the schema of its JSON report, and which setting to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oskit.evaluation.live.sweep_settings import Setting

SWEEP_SCHEMA = "oskit.sweep/1"

DEPTHS = (10, 100, 1000)
"""Of the recall that is told."""

TIES = 1e-5
"""Relative: scores that differ by less are equal, as the cluster computes in float32."""


def recall(exact: Mapping[str, float], found: Sequence[str], depth: int) -> float | None:
    """Share of the exact top ``depth`` that was found; None where nothing matches.

    Documents of equal scores at the end stand for each other: which of them is among the first is chance.

    Args:
        exact: Scores by document, best first, of more than ``depth`` documents where there are more.
        found: Documents, best first.
    """
    scores = list(exact.values())
    due = min(depth, len(scores))
    if not due:
        return None
    least = scores[due - 1] * (1 - TIES)
    return min(due, sum(exact.get(document, 0.0) >= least for document in found[:depth])) / due


@dataclass
class SettingFigures:
    """How one setting did.

    Attributes:
        recall: By depth, mean over the queries; None where the setting finds fewer hits than that.
        ndcg: nDCG@10 over the judged queries; None without judgements.
        tokens: Mean number of query tokens.
        wall: Milliseconds that the client waited for a search: p50, p99, mean, count.
        took: The same as the cluster tells, in whole milliseconds.
        warm_up: The client's, of the searches before, which do not count.
    """

    setting: Setting
    recall: dict[int, float | None]
    ndcg: float | None
    tokens: float
    wall: dict[str, Any]
    took: dict[str, Any]
    warm_up: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the setting."""
        return self.setting.name

    @property
    def ms(self) -> float:
        """Milliseconds of a search, p50, as the client sees them."""
        return float(self.wall["p50"])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        told = {name: value for name, value in vars(self).items() if name not in ("setting", "recall")}
        recalls = {f"R@{depth}": value for depth, value in self.recall.items()}
        return {"name": self.name, "setting": self.setting.to_dict(), "recall": recalls, **told}


def front(rows: Sequence[SettingFigures]) -> list[SettingFigures]:
    """Settings that no other one beats in time and recall@10 both, fastest first (the Pareto front)."""
    found: list[SettingFigures] = []
    for row in sorted(rows, key=lambda row: (row.ms, -_of(row))):
        if not found or _of(row) > _of(found[-1]):
            found.append(row)
    return found


def fastest(rows: Sequence[SettingFigures], least_recall: float) -> SettingFigures | None:
    """The fastest setting whose recall@10 is at least so much; None if none has it."""
    enough = [row for row in front(rows) if _of(row) >= least_recall]
    return enough[0] if enough else None


def _of(row: SettingFigures) -> float:
    value = row.recall.get(10)
    return -1.0 if value is None else value


@dataclass
class SweepReport:
    """Everything :func:`oskit.evaluation.live.sweep.sweep` found.

    Attributes:
        index: As in :class:`oskit.evaluation.live.result.VerificationReport`.
        search: ``size``, ``rounds``, ``queries``, and where the exact scores come from.
        rows: A row for each setting, the one that changes nothing first.
        least_recall: The recall@10 that is asked for.
        warnings: Things to know, one line each.
    """

    created: str
    cluster: dict[str, Any]
    index: dict[str, Any]
    collection: dict[str, Any]
    search: dict[str, Any]
    rows: list[SettingFigures]
    least_recall: float
    warnings: list[str] = field(default_factory=list)

    @property
    def best(self) -> SettingFigures | None:
        """The setting to take."""
        return fastest(self.rows, self.least_recall)

    @property
    def advice(self) -> str:
        """Which setting to take, in words."""
        if (best := self.best) is None:
            most = max(self.rows, key=lambda row: (_of(row), -row.ms))
            return (
                f"no setting has a recall@10 of {self.least_recall:g}: the most is {_of(most):.3f}, by "
                f"{most.name!r} ({most.ms:.1f} ms)"
            )
        told = (
            f"take {best.name!r}: {best.ms:.1f} ms at p50, the fastest with a recall@10 of at least "
            f"{self.least_recall:g} ({_of(best):.3f})"
        )
        first = self.rows[0]
        return f"{told}; {first.name!r} takes {first.ms:.1f} ms" if first is not best else told

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; ``schema`` names its version."""
        best = self.best
        advice = {"text": self.advice, "name": best and best.name, "request": best and best.setting.request()}
        told = {name: value for name, value in vars(self).items() if name != "rows"}
        return {
            "schema": SWEEP_SCHEMA,
            "advice": advice,
            **told,
            "front": [row.name for row in front(self.rows)],
            "settings": [row.to_dict() for row in self.rows],
        }
