"""The weights of the sparsity penalties over the steps: by a ramp, or found for a target.

**By target** a person says how many active dimensions a document may have (or a query, or how many products
scoring may cost), and the weight is found while training. It is a PI controller of the weight's logarithm, in
its incremental form:

    change of ln(weight) = GAIN * (change of error + error / horizon),   error = ln(now / where it should be)

Where it should be is a path from what the encoder has to the target, straight in logarithms, that ends with
the ramp. What makes it robust:

* it eases off before it arrives: an error that will be gone within the horizon at the present speed lowers
  the weight already. Dimensions that were pushed out hardly come back, so the path is not to be undershot;
* the path waits for an encoder that is slower than it, and the penalty is never more than
  :data:`LARGEST_SHARE` of the losses, so that nothing winds up;
* batches have long texts or short ones, so it looks at a moving mean;
* a batch is not the collection (dropout, other lengths): each evaluation says by how much.

Its state is kept in checkpoints; a run that is resumed goes on as if it had not been stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from oskit.training.data.facts import Target
from oskit.training.internals import ExportableState
from oskit.training.recipe.objective import PenaltyPart, RampPart

GAIN = 2.5
WINDOW, HORIZON = 1 / 30, 3.0
"""Of the moving mean, as a share of the steps; of the control, in such windows."""
LARGEST_SHARE, SMALLEST_SHARE, FIRST_SHARE = 2.0, 1e-4, 1e-2
"""The weighted penalty as a share of the losses: at most, at least, and where the search begins."""
LARGEST_CHANGE = 0.25
"""Of the logarithm of the weight, in one step."""
LARGEST_LEAD = 0.3
"""How far, in logarithms, the path is ahead of the encoder."""
LARGEST_CORRECTION = math.log(2)
IDLE = 0.5
"""Below this share of the target there is no penalty: a share of the losses would be a huge weight on vectors
that are nearly empty, and kill the encoder."""

_SIDES = {"document": "documents", "query": "queries"}


class Ramp:
    """The steps of a :class:`RampPart`: 0 until the delay is over, then up to 1.

    Attributes:
        begin: Last step at which it is 0.
        end: First step at which it is 1.
    """

    def __init__(self, part: RampPart, total: int) -> None:
        self.begin = int(total * part.delay)
        self.end = self.begin + max(1, int(total * part.share))
        self._power = 2 if part.shape == "quadratic" else 1

    def linear(self, step: int) -> float:
        """How much of it is over."""
        return min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)

    def at(self, step: int) -> float:
        """The share of the whole weight."""
        share: float = self.linear(step) ** self._power
        return share


@dataclass
class _Found:
    """What a search knows; numbers that JSON keeps exactly."""

    log_weight: float | None = None
    mean: float = 0.0
    ratio: float = 0.0  # ln(losses / penalty), a moving mean
    start: float | None = None
    path: float = 0.0
    error: float | None = None
    correction: float = 0.0  # ln(what evaluations find / what batches have)
    compared: int = 0
    measured: float | None = None
    due: int = 0


class Search:
    """Finds the weight of a penalty for a target.

    Attributes:
        key: The target's in the recipe.
        observes: What the target is of, as a step calls it; ``logged`` is what evaluations call it.
    """

    def __init__(self, side: str, part: PenaltyPart, ramp: Ramp, total: int) -> None:
        aim, self.target = part.aim
        self.key = f"sparsity.{_SIDES[side]}.{aim}"
        self.observes = "flops" if aim == "target_flops" else f"{side}_dims"
        self.logged = "flops" if aim == "target_flops" else f"{side}_active"
        self.found = _Found()
        self._first = part.weight  # to begin with; None for one that makes the penalty a hundredth
        self._ramp = ramp
        self._window = min(max(total * WINDOW, 5.0), 50.0)
        self._horizon = HORIZON * self._window

    def weight(self, step: int) -> float:
        """The weight for the step after so many."""
        known = self.found.log_weight
        return 0.0 if known is None or step < self._ramp.begin or self._idle else math.exp(known)

    @property
    def _idle(self) -> bool:
        return self.found.mean * math.exp(self.found.correction) < IDLE * self.target

    def observe(self, step: int, value: float, losses: float, penalty: float) -> None:
        """What a step was like; ``step`` counts from 1, ``penalty`` is not weighted."""
        if value <= 0 or penalty <= 0 or losses <= 0:  # an encoder that is dead is the guards' business
            return
        found, share = self.found, 2 / (self._window + 1)
        ratio = math.log(losses / penalty)
        if found.start is None and found.mean == 0:
            found.mean, found.ratio = value, ratio
        found.ratio += (1.0 if self._idle else share) * (ratio - found.ratio)
        found.mean += share * (value - found.mean)
        self._compare()
        if step < self._ramp.begin:
            return
        now = math.log(found.mean)
        if found.start is None:
            found.start = found.path = now + found.correction
        before, found.path = found.error, self._along(step, now)
        found.error = now - found.path
        least, most = found.ratio + math.log(SMALLEST_SHARE), found.ratio + math.log(LARGEST_SHARE)
        if found.log_weight is None:
            first = found.ratio + math.log(FIRST_SHARE) if found.error >= 0 else least
            found.log_weight = math.log(self._first) if self._first else first
        change = found.error - (found.error if before is None else before)
        wanted = GAIN * (change + (found.error + found.correction) / self._horizon)
        found.log_weight += min(max(wanted, -LARGEST_CHANGE), LARGEST_CHANGE)
        found.log_weight = min(max(found.log_weight, least), most)

    def _along(self, step: int, now: float) -> float:
        """Where the encoder should be."""
        found, target = self.found, math.log(self.target)
        assert found.start is not None
        if found.start <= target:
            return target
        planned = found.start + self._ramp.linear(step) * (target - found.start)
        return max(planned, min(found.path, now + found.correction - LARGEST_LEAD), target)

    def measured(self, value: float) -> None:
        """What an evaluation found; the difference to the batches holds from here on."""
        if value > 0:
            # The moving mean is that of some steps ago: it is compared when it has come here.
            self.found.measured, self.found.due = value, round((self._window - 1) / 2)

    def _compare(self) -> None:
        found = self.found
        if found.measured is None:
            return
        found.due -= 1
        if found.due < 0:
            difference = math.log(found.measured / found.mean)
            difference = min(max(difference, -LARGEST_CORRECTION), LARGEST_CORRECTION)
            found.measured = None
            found.compared += 1
            found.correction += (difference - found.correction) / min(found.compared, 6)


class SparsityWeights(TrainerCallback, ExportableState):
    """The weights of the penalties before each step, by side: ``document`` and perhaps ``query``."""

    def __init__(self, ramp: RampPart, total: int, sides: Mapping[str, PenaltyPart]) -> None:
        self.ramp = Ramp(ramp, total)
        self._parts = dict(sides)
        self.searches = {
            side: Search(side, penalty, self.ramp, total)
            for side, penalty in self._parts.items()
            if penalty.aim[0] != "weight"
        }

    def at(self, step: int) -> dict[str, float]:
        """The weights by side, for the step after so many."""
        return {
            side: self.searches[side].weight(step)
            if side in self.searches
            else (penalty.weight or 0.0) * self.ramp.at(step)
            for side, penalty in self._parts.items()
        }

    def observe(self, step: int, facts: Mapping[str, float]) -> None:
        """What a step was like: ``losses``, what a target can be of, and each side's penalty unweighted."""
        for side, search in self.searches.items():
            search.observe(step, facts[search.observes], facts["losses"], facts[side])

    def outcome(self, figures: Mapping[str, float]) -> dict[str, Target]:
        """What became of the targets, by side; ``figures`` of the encoder that training ends with."""
        return {
            side: Target(
                key=search.key,
                value=search.target,
                reached=figures[search.logged],
                weight=0.0 if search.found.log_weight is None else math.exp(search.found.log_weight),
            )
            for side, search in self.searches.items()
        }

    def paths(self) -> dict[str, float]:
        """Where each search wants its side to be, for curves."""
        return {f"{one.observes}_path": math.exp(one.found.path) for one in self.searches.values()}

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """The collection's vectors are what a target is meant for."""
        for search in self.searches.values():
            if metrics and (value := metrics.get(f"eval_{search.logged}")):
                search.measured(value)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Go on with what the checkpoint knows."""
        known: Any = state.stateful_callbacks  # by name, as they come from a checkpoint
        kept = known.get(type(self).__name__, {}) if state.global_step else {}
        for side, values in kept.get("attributes", {}).items():
            if side in self.searches:
                self.searches[side].found = _Found(**values)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {side: asdict(one.found) for side, one in self.searches.items()}}
