"""What stops a training that has collapsed, with the reason and advice, before hours are lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from oskit.errors import TrainingError
from oskit.training.recipe.known_problems import sharp_and_alone
from oskit.training.recipe.objective import PenaltyPart
from oskit.training.recipe.recipe import GuardsPart, Recipe

FEWEST_TOO_MANY = 2000
"""Active dimensions that are never too many: a small vocabulary cannot be off the scale."""

_WINDOW = 50
_FALLING = 0.98


@dataclass
class StepFacts:
    """What a step was like."""

    step: int  # its number, from 1
    query_dims: float  # mean active dimensions of a query
    document_dims: float  # the same of a document
    flops: float  # expected products of a query and a document


class Guards:
    """Looks at every step.

    Args:
        recipe: Says when it is too much, and gives the advice its values.
        vocabulary: Size of the vocabulary.
        ramp_end: Step at which the sparsity penalties have their full weight.
    """

    def __init__(self, recipe: Recipe, *, vocabulary: int, ramp_end: int) -> None:
        config = recipe.guards
        self._config: GuardsPart = config
        self._too_many = config.max_active_dims or max(FEWEST_TOO_MANY, vocabulary // 10)
        self._ramp_end = ramp_end
        self._recipe = recipe
        self._dead = {"query": 0, "document": 0}
        self._recent: deque[float] = deque(maxlen=_WINDOW)

    def check(self, facts: StepFacts) -> None:
        """Look at a step.

        Raises:
            TrainingError: The encoder has collapsed; says how and what to do.
        """
        self._check_dead("query", facts.query_dims, facts.step)
        self._check_dead("document", facts.document_dims, facts.step)
        if facts.step > self._ramp_end:
            self._check_dense(facts)

    def _check_dead(self, side: str, dims: float, step: int) -> None:
        self._dead[side] = self._dead[side] + 1 if dims == 0 else 0
        if self._dead[side] >= self._config.patience:
            raise TrainingError(
                f"the encoder is dead at step {step}: every {side} of the last {self._dead[side]} steps had "
                "an empty vector, which no gradient can change",
                hint=self._advice_against_death(side),
            )

    def _advice_against_death(self, side: str) -> str:
        recipe = self._recipe
        if sharp_and_alone(recipe):
            return "Raise the temperature of the loss kl to 2, or add the loss info_nce."
        plural = "queries" if side == "query" else "documents"
        penalty = recipe.sparsity.queries if side == "query" else recipe.sparsity.documents
        if penalty is not None and penalty.aim[1] > 0:
            return (
                f"{_change(penalty, plural, harder=False)}, give it a threshold, or lower "
                f"schedule.learning_rate ({recipe.schedule.learning_rate:g})."
            )
        return f"Lower schedule.learning_rate ({recipe.schedule.learning_rate:g}) or warm up longer."

    def _check_dense(self, facts: StepFacts) -> None:
        """Off the scale for a while, and not on the way down."""
        self._recent.append(facts.document_dims)
        if len(self._recent) < _WINDOW:
            return
        numbers = list(self._recent)
        before, now = sum(numbers[: _WINDOW // 2]), sum(numbers[_WINDOW // 2 :])
        mean = now / (_WINDOW - _WINDOW // 2)
        if mean > self._too_many and now > _FALLING * before:
            harder = _change(self._recipe.sparsity.documents, "documents", harder=True)
            raise TrainingError(
                f"the encoder is not sparse at step {facts.step}: documents have {mean:,.0f} active "
                f"dimensions, more than {self._too_many:,}, and they fall no longer",
                hint=f"{harder}, train a random head with a larger "
                "schedule.head_learning_rate, or raise guards.max_active_dims.",
            )


def _change(penalty: PenaltyPart, side: str, *, harder: bool) -> str:
    name, value = penalty.aim
    return f"{'Raise' if harder == (name == 'weight') else 'Lower'} sparsity.{side}.{name} ({value:g})"


def check_loss(parts: Mapping[str, float], step: int, learning_rate: float) -> None:
    """Stop before a loss that is no number reaches the weights.

    Raises:
        TrainingError: Names the part of the loss.
    """
    broken = [name for name, value in parts.items() if not isfinite(value)]
    if broken:
        raise _not_finite(f"the loss is no finite number at step {step} ({', '.join(broken)})", learning_rate)


def check_gradient(norm: float, step: int, learning_rate: float) -> None:
    """Stop before gradients that are no numbers reach the weights.

    Raises:
        TrainingError: The norm is NaN or infinite.
    """
    if not isfinite(norm):
        what = f"the gradients are no finite numbers at step {step}; the weights were not changed by them"
        raise _not_finite(what, learning_rate)


def _not_finite(what: str, learning_rate: float) -> TrainingError:
    hint = f"Lower schedule.learning_rate ({learning_rate:g}), or set schedule.precision: float32."
    return TrainingError(what, hint=hint)
