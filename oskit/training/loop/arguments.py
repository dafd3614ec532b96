"""What the trainer is told: the arguments that follow from a recipe, and those that it passes on."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SparseEncoderTrainingArguments

from oskit.errors import OskitError, TrainingError, UsageError, first_line
from oskit.training.loop.folder import CHECKPOINTS
from oskit.training.ranks import share_of, world_size
from oskit.training.recipe.recipe import Recipe
from oskit.training.report.choice import CHOICE

if TYPE_CHECKING:
    from torch import nn

EVALUATIONS = 10
"""In a run, unless the recipe says otherwise."""

WORKERS = 4
"""Processes that tokenize while a GPU computes, at most; on a CPU they would take its time."""

_NOT_GIVEN = (
    *("num_train_epochs", "gradient_accumulation_steps", "auto_find_batch_size", "activation_checkpointing"),
    *("eval_delay", "prompts", "batch_sampler", "multi_dataset_batch_sampler", "resume_from_checkpoint"),
)
"""Arguments that would undo what a recipe's own keys say, beside those that they decide."""


class Arguments(SparseEncoderTrainingArguments):
    """The trainer's arguments, where a process uses one GPU.

    With several in sight the base class would put ``nn.DataParallel`` around the model and multiply the
    batch.
    """

    @property
    def n_gpu(self) -> int:
        """GPUs of this process."""
        return min(1, int(super().n_gpu))


def training_arguments(
    recipe: Recipe, folder: Path, total: int, *, rates: dict[str, float], routes: dict[str, str]
) -> Arguments:
    """The arguments of a stage with its folder, of ``total`` optimizer steps.

    ``rates`` are learning rates other than the transformer's, by patterns of parameter names; ``routes`` say
    which side of an inference-free encoder each column of texts goes through.

    Raises:
        TrainingError: The trainer refuses a value of ``schedule.arguments``, which are passed on.
    """
    passed = recipe.schedule.arguments
    gpu = torch.cuda.is_available()
    workers = min(WORKERS, max(0, (os.cpu_count() or 1) // world_size() - 1)) if gpu else 0
    given = {"dataloader_pin_memory": gpu, "dataloader_num_workers": workers, **passed}
    given |= _decided(recipe, folder, total) | {"learning_rate_mapping": rates, "router_mapping": routes}
    if "activation_checkpointing" in _known():  # as later transformers call it
        given["activation_checkpointing"] = given.pop("gradient_checkpointing")
    with passing_on(recipe):
        return Arguments(**given)


@contextmanager
def passing_on(recipe: Recipe, *, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """What fails inside is laid to ``schedule.arguments``, if there are some: the trainer was made for them.

    Raises:
        TrainingError: In the words of the trainer, an optimizer or a loader; not where ``unless`` says so.
    """
    passed = recipe.schedule.arguments
    try:
        yield
    except OskitError:
        raise
    except Exception as error:  # whatever optimizers, schedulers and loaders raise
        if not passed or unless():
            raise
        raise TrainingError(
            f"the trainer refuses schedule.arguments ({', '.join(passed)}): {first_line(error)}",
            hint="They are those of sentence-transformers' SparseEncoderTrainingArguments.",
        ) from error


def _known() -> set[str]:
    return {field.name for field in fields(SparseEncoderTrainingArguments) if field.init}


def _decided(recipe: Recipe, folder: Path, total: int) -> dict[str, Any]:
    """The arguments that a recipe's own keys decide."""
    schedule, gpu = recipe.schedule, torch.cuda.is_available()
    every = min(total, schedule.evaluate_every or math.ceil(total / EVALUATIONS))
    automatic = schedule.precision == "auto" and gpu and torch.cuda.is_bf16_supported()
    bf16 = automatic or schedule.precision == "bf16"
    return {
        "output_dir": str(folder / CHECKPOINTS),
        "max_steps": total,
        "per_device_train_batch_size": share_of(schedule.batch_size),
        "learning_rate": schedule.learning_rate,
        "lr_scheduler_type": schedule.scheduler,
        # The rate of the first of these is 0: a run of one step would learn nothing.
        "warmup_steps": min(math.ceil(total * schedule.warmup), total - 1),
        "weight_decay": schedule.weight_decay,
        # Infinite rather than none: the norm is looked at all the same.
        "max_grad_norm": math.inf if schedule.max_grad_norm is None else schedule.max_grad_norm,
        "bf16": bf16,
        # Else the trainer refuses bf16 where there is no GPU, though CPUs can compute in it, and does not
        # let several processes know of each other.
        "use_cpu": (bf16 or world_size() > 1) and not gpu,
        "fp16": schedule.precision == "fp16",
        "gradient_checkpointing": schedule.gradient_checkpointing,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": schedule.keep_checkpoints,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{CHOICE}",
        "greater_is_better": True,
        "logging_steps": max(1, every // 5),
        "logging_nan_inf_filter": False,
        # The penalty on a batch of few documents is another one, and processes cannot share it evenly.
        "dataloader_drop_last": True,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "disable_tqdm": True,
        "report_to": "none",
    }


def check_names(recipe: Recipe) -> None:
    """Make sure that ``schedule.arguments`` names what the trainer has and other keys of a recipe leave open.

    Raises:
        UsageError: It has no such argument, or oskit sets it.
    """
    ours = {*_decided(recipe, Path(), 1), "learning_rate_mapping", "router_mapping", *_NOT_GIVEN}
    for name in recipe.schedule.arguments:
        if name in ours:
            hint = "Give the key of the recipe that says it; docs/recipe-keys.md lists them."
            raise UsageError(f"schedule.arguments.{name}: oskit sets this one itself", hint=hint)
        if name not in _known():
            near = difflib.get_close_matches(name, _known(), n=1)
            hint = f"Did you mean {near[0]}?" if near else "See SparseEncoderTrainingArguments."
            raise UsageError(f"schedule.arguments.{name}: the trainer has no such argument", hint=hint)


def rate_of(module: nn.Module, parameters: Iterable[Any], rate: float) -> dict[str, float]:
    """A learning rate of their own for some parameters of a module, by a pattern of their names."""
    wanted = {id(parameter) for parameter in parameters}
    names = [name for name, parameter in module.named_parameters() if id(parameter) in wanted]
    return {f"^(?:{'|'.join(map(re.escape, names))})$": rate} if names else {}
