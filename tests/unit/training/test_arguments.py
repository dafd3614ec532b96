"""What is passed on to the trainer, what is refused, and that one process means one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oskit.errors import MissingDependencyError, TrainingError, UsageError
from oskit.training.internals import overriding
from oskit.training.loop.arguments import Arguments, check_names, training_arguments
from oskit.training.recipe.recipe import Recipe


def recipe(**schedule: Any) -> Recipe:
    values = {"name": "x", "encoder": {"name": "x"}, "data": {"train": ["x"]}}
    return Recipe.model_validate({**values, "schedule": schedule})


def made(folder: Path, **schedule: Any) -> Arguments:
    return training_arguments(recipe(precision="float32", **schedule), folder, 20, rates={}, routes={})


def test_arguments_reach_the_trainer_beside_what_the_recipe_decides(tmp_path: Path) -> None:
    given = made(tmp_path, batch_size=6, arguments={"optim": "adafactor", "adam_beta2": 0.98})
    assert (given.optim, given.adam_beta2) == ("adafactor", 0.98)
    assert (given.per_device_train_batch_size, given.max_steps, given.eval_steps) == (6, 20, 2)
    assert made(tmp_path, warmup=1).warmup_steps == 19, "one step at least has a rate"
    assert made(tmp_path, max_grad_norm=None).max_grad_norm == float("inf")


@pytest.mark.parametrize("name", ["max_steps", "seed", "gradient_accumulation_steps", "num_train_epochs"])
def test_what_a_recipe_says_by_other_keys_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"schedule.arguments.{name}: oskit sets this one itself"):
        check_names(recipe(arguments={name: 1}))


def test_what_the_trainer_does_not_know_or_refuses_is_one_line(tmp_path: Path) -> None:
    check_names(recipe(arguments={"adam_beta2": 0.9, "dataloader_num_workers": 2}))
    with pytest.raises(UsageError, match=r"schedule\.arguments\.adam_beta3.*Did you mean adam_beta"):
        check_names(recipe(arguments={"adam_beta3": 0.9}))
    with pytest.raises(TrainingError, match=r"the trainer refuses schedule\.arguments \(optim\)") as caught:
        made(tmp_path, arguments={"optim": "adamw_of_nobody"})
    assert "\n" not in str(caught.value)


def test_a_method_that_is_overridden_and_has_gone_is_told() -> None:
    overriding("pop")(type("Made", (dict,), {}))
    with pytest.raises(MissingDependencyError, match=r"dict has no method gone.*Install those"):
        overriding("pop", "gone")(type("Made", (dict,), {"gone": None}))


def test_several_gpus_in_sight_do_not_multiply_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = made(tmp_path, batch_size=6)
    monkeypatch.setattr(given, "_n_gpu", 4)
    assert (given.n_gpu, given.train_batch_size) == (1, 6)
