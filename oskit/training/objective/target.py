"""What became of a target of sparsity."""

from __future__ import annotations

from dataclasses import dataclass

MISSED = 0.15
"""A target that is exceeded by more than this share is told."""


@dataclass(frozen=True)
class Target:
    """What became of a target.

    Attributes:
        key: Its key in the recipe.
        value: What was asked for.
        reached: What the encoder has.
        weight: The penalty's weight at the end.
    """

    key: str
    value: float
    reached: float
    weight: float

    @property
    def missed(self) -> str | None:
        """In one line that it is exceeded; None where it is kept."""
        if self.reached <= (1 + MISSED) * self.value:
            return None
        return (
            f"{self.key} is {self.value:g}, and the encoder has {self.reached:,.1f}: it needs more steps, a "
            "larger learning rate or a longer ramp"
        )
