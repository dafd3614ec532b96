"""Which checkpoint is the run's encoder.

While the sparsity penalties rise, quality and cost fall together, so quality alone would often take a
checkpoint from before the penalties had their weight: not the encoder that the recipe asks for. So the best
one is looked for from the end of the ramp on; or, where the recipe names a budget of FLOPS, among all that
keep to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CHOICE = "choice"
"""Under this name the trainer finds what it has to maximise."""


@dataclass(frozen=True)
class Rule:
    """Who may be chosen."""

    ramp_end: int  # step from which the penalties have their full weight
    # budget; None for none, then only checkpoints from `ramp_end` on may be chosen
    max_flops: float | None = None

    def admits(self, step: int, flops: float) -> bool:
        """Whether a checkpoint may be chosen."""
        return step >= self.ramp_end if self.max_flops is None else flops <= self.max_flops

    def value(self, step: int, quality: float, flops: float) -> float:
        """What is maximised: the quality, in [0, 1], of those that may be chosen.

        The others lie below all of these. Of those over the budget, which may be all there are, the cheaper
        one is better; of those before the ramp's end, which never are, the later one.
        """
        if self.admits(step, flops):
            return quality
        return -1 / (1 + step) - 1 if self.max_flops is None else -flops / (1 + flops) - 1

    def __str__(self) -> str:
        if self.max_flops is None:
            return f"from the end of the ramp (step {self.ramp_end:,}) on"
        return f"within {self.max_flops:g} FLOPS"


@dataclass(frozen=True)
class Candidate:
    """A checkpoint as it was measured in training, perhaps on a part of the collection."""

    step: int  # when
    quality: float  # by the yardstick: pooled judgements if there are some, else the collection's own
    flops: float  # expected products of a query and a document
    document_active: float  # mean number of active dimensions of a document
    pooled: bool = False  # whether the quality is by pooled judgements

    def __str__(self) -> str:
        return (
            f"step {self.step:,} ({'pooled ' * self.pooled}nDCG@10 {self.quality:.3f}, "
            f"FLOPS {self.flops:.2f}, {self.document_active:.0f} tokens a document)"
        )


@dataclass(frozen=True)
class Choice:
    """The checkpoint that was chosen, and the one that quality alone would have taken."""

    rule: str  # by what, in words
    chosen: Candidate  # the run's encoder
    highest: Candidate  # the best by quality, whenever and whatever it costs
    kept: bool = True  # whether the rule admits the chosen one; a budget may be too small for all of them

    @classmethod
    def of(cls, rule: Rule, history: Iterable[Mapping[str, Any]], quality: str) -> Choice:
        """What the trainer chose, by its log (rows that measured something have ``eval_`` before their names)
        and by what quality is called there.
        """
        found = [
            Candidate(
                int(row["step"]),
                float(row[f"eval_{quality}"]),
                float(row["eval_flops"]),
                float(row["eval_document_active"]),
                quality.startswith("pooled"),
            )
            for row in history
            if f"eval_{quality}" in row
        ]
        # Of equals the first, as the trainer takes it.
        chosen = max(found, key=lambda one: rule.value(one.step, one.quality, one.flops))
        highest = max(found, key=lambda one: one.quality)
        return cls(str(rule), chosen, highest, rule.admits(chosen.step, chosen.flops))

    @property
    def line(self) -> str:
        """What people are told."""
        if not self.kept:
            return f"NO checkpoint is {self.rule}: the encoder is the cheapest one, {self.chosen}"
        told = f"the encoder is {self.chosen}, the best {self.rule}"
        if self.highest.step == self.chosen.step:
            return f"{told}, and of all"
        return f"{told}; by nDCG@10 alone it would be {self.highest}"
