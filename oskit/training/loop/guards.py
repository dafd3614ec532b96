"""What stops a training that has collapsed, with the reason and advice, before hours are lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import isfinite
from statistics import fmean

from oskit.errors import TrainingError
from oskit.training.recipe.known_problems import sharp_and_alone
from oskit.training.recipe.objective import PenaltyPart
from oskit.training.recipe.recipe import Recipe

FEWEST_TOO_MANY = 2000
"""Active dimensions that are never too many: a small vocabulary cannot be off the scale."""

_WINDOW = 50
_FALLING = 0.98


class Guards:
    """Looks at every step; at ``ramp_end`` the sparsity penalties have their full weight."""

    def __init__(self, recipe: Recipe, *, vocabulary: int, ramp_end: int) -> None:
        self._recipe, self._ramp_end = recipe, ramp_end
        self._too_many = recipe.guards.max_active_dims or max(FEWEST_TOO_MANY, vocabulary // 10)
        self._dead = {"query": 0, "document": 0}
        self._recent: deque[float] = deque(maxlen=_WINDOW)

    def check(self, step: int, facts: Mapping[str, float]) -> None:
        """Look at a step, which counts from 1, and has mean active dimensions: ``query_dims``,
        ``document_dims``.

        Raises:
            TrainingError: The encoder has collapsed; says how and what to do.
        """
        for side, before in self._dead.items():
            self._dead[side] = before + 1 if facts[f"{side}_dims"] == 0 else 0
            if self._dead[side] >= self._recipe.guards.patience:
                raise TrainingError(
                    f"the encoder is dead at step {step}: every {side} of the last {self._dead[side]} "
                    "steps had an empty vector, which no gradient can change",
                    hint=self._advice_against_death(side),
                )
        if step > self._ramp_end:
            self._check_dense(step, facts["document_dims"])

    def _advice_against_death(self, side: str) -> str:
        sparsity, rate = self._recipe.sparsity, self._recipe.schedule.learning_rate
        if sharp_and_alone(self._recipe):
            return "Raise the temperature of the loss kl to 2, or add the loss info_nce."
        plural, penalty = (
            ("queries", sparsity.queries) if side == "query" else ("documents", sparsity.documents)
        )
        lower = f"lower schedule.learning_rate ({rate:g})"
        if penalty is None or penalty.aim[1] <= 0:
            return f"{lower.capitalize()} or warm up longer."
        return f"{_change(penalty, plural, harder=False)}, give it a threshold, or {lower}."

    def _check_dense(self, step: int, dims: float) -> None:
        """Off the scale for a while, and not on the way down."""
        self._recent.append(dims)
        numbers = list(self._recent)
        if len(numbers) < _WINDOW:
            return
        before, now = fmean(numbers[: _WINDOW // 2]), fmean(numbers[_WINDOW // 2 :])
        if now > self._too_many and now > _FALLING * before:
            raise TrainingError(
                f"the encoder is not sparse at step {step}: documents have {now:,.0f} active "
                f"dimensions, more than {self._too_many:,}, and they fall no longer",
                hint=f"{_change(self._recipe.sparsity.documents, 'documents', harder=True)}, train a random "
                "head with a larger schedule.head_learning_rate, or raise guards.max_active_dims.",
            )


def _change(penalty: PenaltyPart, side: str, *, harder: bool) -> str:
    name, value = penalty.aim
    return f"{'Raise' if harder == (name == 'weight') else 'Lower'} sparsity.{side}.{name} ({value:g})"


def check_finite(parts: Mapping[str, float], norm: float, step: int, learning_rate: float) -> None:
    """Stop before a loss or gradients that are no numbers reach the weights.

    Raises:
        TrainingError: Names the parts of the loss, or says that the norm is NaN or infinite.
    """
    broken = [name for name, value in parts.items() if not isfinite(value)]
    if not broken and isfinite(norm):
        return
    raise TrainingError(
        f"the loss is no finite number at step {step} ({', '.join(broken)})"
        if broken
        else f"the gradients are no finite numbers at step {step}; the weights were not changed by them",
        hint=f"Lower schedule.learning_rate ({learning_rate:g}), or set schedule.precision: float32.",
    )
