"""A whole training run: its folder, its stages, what they brought."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oskit.data.atomic import write_whole
from oskit.evaluation.offline.significance import paired_bootstrap
from oskit.training.loop.events import Listener
from oskit.training.loop.folder import open_folder, stage_folders
from oskit.training.loop.preflight import preflight
from oskit.training.ranks import is_first
from oskit.training.recipe.file import load_recipe, stages_of
from oskit.training.recipe.recipe import Recipe
from oskit.versions import installed_versions

_PACKAGES = (
    *("oskit", "torch", "transformers", "sentence-transformers", "tokenizers", "datasets", "accelerate"),
    *("numpy", "scipy", "pyarrow", "bm25s"),
)

if TYPE_CHECKING:
    from oskit.evaluation.offline.significance import Significance
    from oskit.training.report.result import StageResult, TrainingResult


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    output: str | Path | None = None,
    *,
    resume: bool = False,
    listener: Listener | None = None,
) -> TrainingResult:
    """Train an encoder as a recipe says. What can be known to end the run is looked for before it begins.

    The folder keeps ``recipe.yaml`` (resolved), ``environment.json``, ``report.json``, ``README.md`` (a model
    card), ``best/`` (the encoder, as ``from_pretrained`` and ``oskit export`` take it), and for each stage
    ``data/``, ``checkpoints/``, ``curves.csv``, ``curves.png`` and ``log.jsonl``; those of a recipe with
    stages are in ``stage-1/`` and so on, each with a ``best/`` of its own.

    SIGINT, SIGTERM or SIGHUP in training saves a checkpoint and ends the run; with ``resume`` it goes on to
    the same result, bit for bit on a CPU.

    Args:
        recipe: A recipe, or what ``load_recipe`` makes one of.
        output: The run's folder: new or empty, or that of a run that ended before its first checkpoint,
            unless the run is resumed. None is ``runs/NAME``.
        resume: Go on with the run in the folder; one that has no checkpoint may begin by another recipe.
        listener: Told what happens.

    Raises:
        UsageError: The folder holds something else, or the run that is resumed had another recipe.
        MissingDependencyError: Something that a part of the recipe needs is not installed.
        DataError: Data cannot be read, or the folder not be written.
        EncoderError: The encoder cannot be loaded.
        TrainingError: Training cannot start or cannot go on.
        TrainingInterrupted: It was stopped, and a checkpoint saved.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path("runs", recipe.name) if output is None else Path(output)
    told = listener if listener is not None and is_first() else Listener()
    beginning = preflight(recipe, folder, resume=resume, warn=told.warning) if is_first() else None
    with nullcontext() if beginning is None else open_folder(folder, recipe, beginning):
        if beginning in ("new", "again"):
            _write_environment(folder)
        return _train(recipe, folder, told)


def _train(recipe: Recipe, folder: Path, told: Listener) -> TrainingResult:
    from oskit.training.loop.stages import train_stage
    from oskit.training.report.card import write_card
    from oskit.training.report.result import BEST, TrainingResult

    stages = stages_of(recipe)
    results: list[StageResult] = []
    learned: list[list[Path]] = []  # of each stage whose examples it knows, by way of earlier encoders too
    for number, (stage, own) in enumerate(zip(stages, stage_folders(folder, stages), strict=True), start=1):
        name = own.name if len(stages) > 1 else recipe.name
        told.stage_started(name, number, len(stages))
        stage = _with_folders(stage, [result.best for result in results])
        names = {stage.encoder.name, *(getattr(one, "name", None) for one in stage.labelling)}
        used = zip(results, learned, strict=True)
        earlier = [one for result, known in used if str(result.best.resolve()) in names for one in known]
        learned.append([*earlier, own])
        results.append(train_stage(stage, own, name=name, listener=told, earlier=earlier))
        told.stage_finished(results[-1])
    result = TrainingResult(folder, folder / BEST, results, _gain(results))
    if is_first():
        if len(stages) > 1:
            shutil.copytree(results[-1].best, folder / BEST, dirs_exist_ok=True)
        result.write()
        write_card(recipe, result)
    return result


def _write_environment(folder: Path) -> None:
    """What the run is made with, so that it can be made again: versions, processor, GPUs."""
    import torch

    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "packages": installed_versions(_PACKAGES),
    }
    write_whole(folder / "environment.json", json.dumps(found, indent=1) + "\n")


def _with_folders(stage: Recipe, folders: list[Path]) -> Recipe:
    """The stage with the folders of the earlier ones in place of ``{stage:1}``."""
    text = stage.model_dump_json()
    for number, folder in enumerate(folders, start=1):
        text = text.replace(f"{{stage:{number}}}", json.dumps(str(folder.resolve()))[1:-1])
    return Recipe.model_validate_json(text)


def _gain(results: list[StageResult]) -> Significance | None:
    """What the last stage brought beside the one before."""
    if len(results) < 2:
        return None
    last, before = results[-1].after, results[-2].after
    if (last.quality_logged, last.per_query.keys()) != (before.quality_logged, before.per_query.keys()):
        return None
    return paired_bootstrap(last.quality_per_query, before.quality_per_query, name=results[-2].name)
