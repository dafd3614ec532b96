"""What tuning a fusion found, as data: the schema of its JSON report, and what to take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from oskit.cluster.search.hybrid import Hybrid
from oskit.evaluation.offline.fusion_settings import FusionSetting
from oskit.evaluation.offline.metrics import MAIN_MEASURE
from oskit.evaluation.offline.significance import Significance

TUNE_SCHEMA = "oskit.tune/1"


@dataclass
class TunedRow:
    """One way of searching: a side alone, or a fusion at its best weights.

    Attributes:
        quality: Mean of each measure over the judged queries; of a fusion they chose the weights, too.
        held_out: nDCG@10 of each part of the queries by the weights that the other parts choose.
        curve: Of a fusion of two sides: nDCG@10 by the weight of the second one, its ends the sides alone.
        significance: Of ``held_out`` against the best side alone; None for that one.
    """

    name: str
    setting: FusionSetting
    quality: dict[str, float]
    held_out: float
    curve: list[tuple[float, float]] = field(default_factory=list)
    significance: Significance | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "name": self.name,
            "weights": self.setting.weights,
            "fusion": self.setting.fusion and self.setting.fusion.name,
            "quality": self.quality,
            "held_out": self.held_out,
            "curve": self.curve,
            "significance": self.significance and self.significance.to_dict(),
        }


@dataclass
class TuneReport:
    """Everything :func:`oskit.evaluation.live.tune.tune` found.

    Attributes:
        index: Name, kind, documents.
        collection: Name, split, number of judged queries.
        search: How the sparse side is encoded, ``pagination_depth``, ``folds``, the number of settings.
        sides: Their names, in the order of all weights.
        alone: A row for each side, the best first.
        fused: A row for each fusion at its best weights, the best first.
        held_out: nDCG@10 of each fold's queries by the setting that the other folds chose, in the mean.
        chosen: That setting for each fold.
        significance: Of ``held_out`` against the best side alone: what tuning brings on new queries.
        hybrid: The best fusion, ready to be searched by.
        warnings: Things to know, one line each.
    """

    created: str
    cluster: dict[str, Any]
    index: dict[str, Any]
    collection: dict[str, Any]
    search: dict[str, Any]
    sides: list[str]
    alone: list[TunedRow]
    fused: list[TunedRow]
    held_out: float
    chosen: list[str]
    significance: Significance
    hybrid: Hybrid
    warnings: list[str] = field(default_factory=list)

    @property
    def brings_something(self) -> bool:
        """Whether fusion is better than the best side alone, on queries that did not choose it."""
        return self.significance.verdict == "better"

    @property
    def pipeline(self) -> dict[str, Any]:
        """The search pipeline of the best fusion."""
        return self.hybrid.fusion.pipeline(self.hybrid.weights)

    @property
    def advice(self) -> str:
        """What to take, in words."""
        best, found = self.alone[0], self.significance
        chance = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
        told = (
            f"held out, fusion has {found.difference:+.3f} {MAIN_MEASURE} over {best.name} ({chance}, "
            f"{found.queries:,} queries)"
        )
        if self.brings_something:
            return f"take {self.fused[0].name}: {told}"
        if found.verdict == "worse":
            return f"search by {best.name}: {told}"
        return f"search by {best.name}, in one search and not several: {told}, which may be chance"

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; ``schema`` names its version."""
        left_out = ("alone", "fused", "hybrid", "significance")
        told = {name: value for name, value in vars(self).items() if name not in left_out}
        take = self.fused[0] if self.brings_something else self.alone[0]
        return {
            "schema": TUNE_SCHEMA,
            "advice": {"text": self.advice, "take": take.name, "fusion_helps": self.brings_something},
            **told,
            "significance": self.significance.to_dict(),
            "hybrid": self.hybrid.to_dict(),
            "pipeline": self.pipeline,
            "rows": [row.to_dict() for row in (*self.alone, *self.fused)],
        }
