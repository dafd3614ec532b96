"""The weights of the penalties: ramps, and searches for a target on made-up encoders."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from statistics import pstdev
from types import SimpleNamespace
from typing import Any

import pytest

from oskit.training.objective.sparsity import LARGEST_SHARE, Ramp, SparsityWeights
from oskit.training.recipe.objective import DocumentPenaltyPart, PenaltyPart, RampPart


def weights(total: int, ramp: RampPart | None = None, **part: Any) -> SparsityWeights:
    return SparsityWeights(
        ramp or RampPart(share=1 / 3), total, {"document": DocumentPenaltyPart.model_validate(part)}
    )


def test_ramps_by_hand() -> None:
    quadratic = Ramp(RampPart(share=0.5, delay=0.2), 100)
    assert [quadratic.at(step) for step in (0, 20, 45, 70, 99)] == pytest.approx([0, 0, 0.25, 1, 1])
    linear = Ramp(RampPart(share=0.5, delay=0.2, shape="linear"), 100)
    assert [linear.at(step) for step in (20, 45, 70)] == pytest.approx([0, 0.5, 1])
    assert Ramp(RampPart(share=0.01), 3).at(1) == 1, "a ramp has one step at least"
    both = SparsityWeights(
        RampPart(share=0.5), 10, {"document": DocumentPenaltyPart(weight=4), "query": PenaltyPart(weight=8)}
    )
    assert both.at(3) == pytest.approx({"document": 4 * 0.36, "query": 8 * 0.36})


class Encoder:
    """``active`` dimensions that follow the weight with a lag; of those that are lost few come back.

    At a weight of .01 it has 80, and ``power`` says how much more it needs for fewer. Batches of long and of
    short texts differ, and all of them by ``bias`` from what an evaluation finds. Learning rates fall.
    """

    def __init__(self, start: float, lag: float, power: float, bias: float, needs: float = math.inf) -> None:
        self.logarithm, self.lag, self.power, self.bias, self.needs = math.log(start), lag, power, bias, needs
        self.random = random.Random(0)

    def step(self, weight: float, share_left: float) -> dict[str, float]:
        wanted = math.log(80) - self.power * math.log(max(weight, 1e-9) / 0.01)
        change = (min(wanted, math.log(self.needs)) - self.logarithm) / self.lag
        change = share_left * max(-0.05, min(change / 3 if change > 0 else change, 0.05))
        self.logarithm = min(self.logarithm + change, math.log(5000))
        seen = math.exp(self.logarithm + self.random.gauss(0, 0.25)) * self.bias
        return {"document_dims": seen, "losses": 1.0, "document": 5e-4 * self.active**2}

    @property
    def active(self) -> float:
        return math.exp(self.logarithm)


def trained(searching: SparsityWeights, encoder: Encoder, total: int, steps: range) -> list[float]:
    """Active dimensions after each step; ten evaluations."""
    found = []
    for step in steps:
        facts = encoder.step(searching.at(step)["document"], 1 - step / total)
        searching.observe(step + 1, facts)
        if (step + 1) % (total // 10) == 0:
            searching.on_evaluate(None, Any, Any, {"eval_document_active": encoder.active})  # type: ignore[arg-type]
        found.append(encoder.active)
    return found


@pytest.mark.parametrize("total", [300, 1000, 4000])
@pytest.mark.parametrize("target", [60.0, 120.0])
@pytest.mark.parametrize(("lag", "power"), [(10, 0.4), (10, 1.0), (50, 0.4), (50, 1.0)])
@pytest.mark.parametrize("bias", [1.0, 0.8])
def test_a_target_is_reached_whatever_the_encoder(
    total: int, target: float, lag: float, power: float, bias: float
) -> None:
    found = trained(
        weights(total, target=target), Encoder(180, lag * total / 600, power, bias), total, range(total)
    )
    assert found[-1] == pytest.approx(target, rel=0.15)
    assert min(found) > 0.8 * target, "what is pushed out hardly comes back"
    late = [active / target for active in found[total // 2 :]]
    assert pstdev(late) < 0.15, "no oscillation"
    assert max(abs(math.log(later / now)) for now, later in pairwise(late)) < 0.05


def test_a_target_that_the_encoder_is_below_costs_nothing() -> None:
    searching = weights(300, target=120)
    encoder = Encoder(70, 20, 0.6, 1.0, needs=70)
    trained(searching, encoder, 300, range(300))
    facts = encoder.step(0.0, 0.0)
    assert searching.at(299)["document"] * facts["document"] < 0.01 * facts["losses"]


def test_nearly_empty_vectors_are_not_penalised_for_a_target_far_above() -> None:
    """Penalties of next to nothing differ by magnitudes: a share of the losses is a weight of millions."""
    searching, draw = weights(100, target=27), random.Random(0)
    for step in range(60):
        facts = {"losses": 3.5, "document": 10 ** draw.uniform(-9, -2)}
        searching.observe(step + 1, {"document_dims": draw.uniform(0.1, 5), **facts})
        assert searching.at(step + 1)["document"] == 0.0
    for step in range(60, 90):  # it learned to speak, and has too much to say: from small weights on
        searching.observe(step + 1, {"document_dims": 60.0, "losses": 3.5, "document": 1.0})
        assert searching.at(step + 1)["document"] < 3.5 * 1.2 * LARGEST_SHARE
    assert searching.at(90)["document"] > 0


def test_a_target_out_of_reach_does_not_wind_up() -> None:
    """The penalty outweighs the losses by no more than it may, and falls as soon as the target is there."""
    searching, encoder = weights(300, target=40), Encoder(400, 5000, 0.6, 1.0)
    for step in range(300):
        facts = encoder.step(searching.at(step)["document"], 1.0)
        searching.observe(step + 1, facts)
        assert searching.at(step + 1)["document"] * facts["document"] < 1.2 * LARGEST_SHARE
    most = searching.at(300)["document"]
    for step in range(300, 360):
        searching.observe(step + 1, facts | {"document_dims": 30.0})
    assert searching.at(360)["document"] < most / 10


def test_a_dead_encoder_and_no_loss_are_no_numbers_to_go_by() -> None:
    searching = weights(100, target=40)
    searching.observe(1, {"document_dims": 0.0, "losses": 0.0, "document": 0.0})
    assert searching.at(1) == {"document": 0.0}


def test_flops_are_a_target_too_and_a_weight_is_where_the_search_begins() -> None:
    searching = weights(100, target_flops=2.0, weight=0.5)
    searching.observe(1, {"document_dims": 900.0, "flops": 2.0, "losses": 1.0, "document": 1.0})
    assert searching.at(1)["document"] == pytest.approx(0.5)
    assert searching.paths() == {"flops_path": pytest.approx(2.0)}


def test_a_search_goes_on_from_its_checkpoint_exactly() -> None:
    total = 300
    whole = trained(weights(total, target=60), Encoder(180, 20, 0.6, 0.8), total, range(total))
    first, encoder = weights(total, target=60), Encoder(180, 20, 0.6, 0.8)
    parts = trained(first, encoder, total, range(170))
    kept = json.loads(json.dumps(first.state()))
    resumed = weights(total, target=60)
    state = SimpleNamespace(global_step=170, stateful_callbacks={"SparsityWeights": kept})
    resumed.on_train_begin(None, state, Any)  # type: ignore[arg-type]
    assert parts + trained(resumed, encoder, total, range(170, total)) == whole
