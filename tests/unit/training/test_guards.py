"""What stops a collapsed training, and that a healthy one is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from oskit.encoder.loader.failures import out_of_memory
from oskit.errors import TrainingError
from oskit.training.loop.guards import Guards, check_finite
from oskit.training.recipe.recipe import Recipe

VOCABULARY = 30_000


def recipe(**parts: Any) -> Recipe:
    return Recipe.model_validate({"name": "x", "encoder": {"name": "x"}, "data": {"train": ["x"]}, **parts})


Step = tuple[int, dict[str, float]]


def facts(step: int, *, queries: float = 20, documents: float = 150) -> Step:
    return step, {"query_dims": queries, "document_dims": documents}


def run(guards: Guards, steps: list[Step]) -> None:
    for step in steps:
        guards.check(*step)


@pytest.mark.parametrize("side", ["query", "document"])
def test_empty_vectors_stop_the_training(side: str) -> None:
    guards = Guards(recipe(guards={"patience": 3}), vocabulary=VOCABULARY, ramp_end=10)
    dead = {"queries" if side == "query" else "documents": 0.0}
    run(guards, [facts(1, **dead), facts(2, **dead)])
    with pytest.raises(TrainingError, match=f"dead at step 3: every {side} of the last 3 steps") as caught:
        guards.check(*facts(3, **dead))
    plural = "queries" if side == "query" else "documents"
    assert f"Lower sparsity.{plural}.weight" in str(caught.value)


def test_one_live_step_in_between_is_enough() -> None:
    guards = Guards(recipe(guards={"patience": 2}), vocabulary=VOCABULARY, ramp_end=10)
    run(guards, [facts(n, documents=float(n % 2)) for n in range(1, 40)])


def test_a_low_temperature_is_named_as_the_cause() -> None:
    loss = [{"kind": "kl", "temperature": 1.0}]
    guards = Guards(recipe(guards={"patience": 1}, loss=loss), vocabulary=VOCABULARY, ramp_end=10)
    with pytest.raises(TrainingError, match=r"Raise the temperature of the loss kl to 2"):
        guards.check(*facts(1, documents=0))


def test_without_a_penalty_the_learning_rate_is_named() -> None:
    sparsity = {"documents": {"weight": 0}}
    guards = Guards(recipe(guards={"patience": 1}, sparsity=sparsity), vocabulary=VOCABULARY, ramp_end=10)
    with pytest.raises(TrainingError, match=r"Lower schedule.learning_rate"):
        guards.check(*facts(1, documents=0))


def test_dense_vectors_after_the_ramp_stop_the_training() -> None:
    guards = Guards(recipe(), vocabulary=VOCABULARY, ramp_end=10)
    with pytest.raises(TrainingError, match=r"not sparse at step 60: documents have 9,000 active") as caught:
        run(guards, [facts(n, documents=9000) for n in range(1, 200)])
    assert "Raise sparsity.documents.weight" in str(caught.value)


def test_dense_vectors_that_become_sparser_are_left_alone() -> None:
    guards = Guards(recipe(), vocabulary=VOCABULARY, ramp_end=10)
    run(guards, [facts(n, documents=15_000 * 0.99**n) for n in range(1, 300)])


def test_vectors_are_dense_while_the_penalty_grows() -> None:
    guards = Guards(recipe(), vocabulary=VOCABULARY, ramp_end=100)
    run(guards, [facts(n, documents=15_000) for n in range(1, 101)])


def test_the_limit_can_be_set_and_a_small_vocabulary_has_none() -> None:
    guards = Guards(recipe(guards={"max_active_dims": 100}), vocabulary=VOCABULARY, ramp_end=0)
    with pytest.raises(TrainingError, match="more than 100"):
        run(guards, [facts(n) for n in range(1, 100)])
    run(Guards(recipe(), vocabulary=300, ramp_end=0), [facts(n, documents=300) for n in range(1, 100)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_names_its_part(value: float) -> None:
    parts = {"kl": 1.0, "info_nce": value}
    with pytest.raises(TrainingError, match=r"step 7 \(info_nce\)"):
        check_finite(parts, 1.0, 7, 1e-3)
    check_finite({"kl": 1e30}, 1.0, 7, 1e-3)


def test_gradients_that_are_no_numbers_stop_the_training() -> None:
    with pytest.raises(TrainingError, match="weights were not changed"):
        check_finite({"kl": 1.0}, float("nan"), 3, 1e-3)
    check_finite({"kl": 1.0}, 1e6, 3, 1e-3)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert (out_of_memory(error, "a batch") is not None) is expected
