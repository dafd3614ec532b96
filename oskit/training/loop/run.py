"""A whole training run: its folder, its stages, what they brought."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oskit.errors import DataError, UsageError
from oskit.evaluation.offline.significance import paired_bootstrap
from oskit.training.loop.environment import write_environment
from oskit.training.loop.events import Listener
from oskit.training.loop.ranks import is_first
from oskit.training.loop.stages import train_stage
from oskit.training.recipe.file import load_recipe, resolved_yaml, stages_of
from oskit.training.recipe.notebook_config import is_legacy, legacy_output
from oskit.training.recipe.recipe import Recipe
from oskit.training.report.card import write_card
from oskit.training.report.result import BEST, StageResult, TrainingResult

RECIPE = "recipe.yaml"


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    output: str | Path | None = None,
    *,
    resume: bool = False,
    listener: Listener | None = None,
) -> TrainingResult:
    """Train an encoder as a recipe says.

    The folder keeps ``recipe.yaml`` (resolved), ``environment.json``, ``report.json``, ``README.md`` (a model
    card), ``best/`` (the encoder, as ``from_pretrained`` and ``oskit export`` take it), and for each stage
    ``data/``, ``checkpoints/``, ``curves.csv``, ``curves.png`` and ``log.jsonl``; those of a recipe with
    stages are in ``stage-1/`` and so on, each with a ``best/`` of its own.

    SIGINT or SIGTERM in training saves a checkpoint and ends the run; with ``resume`` it goes on to the same
    result, bit for bit on a CPU.

    Args:
        recipe: A recipe, or what ``load_recipe`` makes one of.
        output: The run's folder; new or empty, unless the run is resumed. None is ``runs/NAME``,
            or what a ``CONFIG`` of old says.
        resume: Go on with the run in the folder; one that never began begins.
        listener: Told what happens.

    Raises:
        UsageError: The folder holds something else, or the run that is resumed had another recipe.
        DataError: Data cannot be read, or the folder not be written.
        EncoderError: The encoder cannot be loaded.
        TrainingError: Training cannot start or cannot go on.
        TrainingInterrupted: It was stopped, and a checkpoint saved.
    """
    if output is None and isinstance(recipe, Mapping) and is_legacy(recipe):
        output = legacy_output(recipe)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path("runs", recipe.name) if output is None else Path(output)
    told = listener if listener is not None and is_first() else Listener()
    if is_first():
        _open_folder(folder, recipe, resume=resume)
    stages = stages_of(recipe)
    results: list[StageResult] = []
    for number, stage in enumerate(stages, start=1):
        name = f"stage-{number}" if len(stages) > 1 else recipe.name
        own = folder / name if len(stages) > 1 else folder
        told.stage_started(name, number, len(stages))
        stage = _with_folders(stage, [result.best for result in results])
        results.append(train_stage(stage, own, name=name, listener=told))
        told.stage_finished(results[-1])
    result = TrainingResult(folder, folder / BEST, results, _gain(results))
    if is_first():
        if len(stages) > 1:
            shutil.copytree(results[-1].best, folder / BEST, dirs_exist_ok=True)
        result.write()
        write_card(recipe, result)
    return result


def _open_folder(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    text = resolved_yaml(recipe)
    kept = folder / RECIPE
    if resume and kept.is_file():
        if kept.read_text(encoding="utf-8") != text:
            raise UsageError(
                f"{kept} is another recipe than the one given, so its run cannot go on",
                hint="Give the recipe of the run, or another output folder.",
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} exists and is not empty",
            hint="Give a new folder, or go on with the run in it: --resume.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(text, encoding="utf-8")
        write_environment(folder)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error


def _with_folders(stage: Recipe, folders: list[Path]) -> Recipe:
    """The stage with the folders of the earlier ones in place of ``{stage:1}``."""
    text = stage.model_dump_json()
    for number, folder in enumerate(folders, start=1):
        text = text.replace(f"{{stage:{number}}}", json.dumps(str(folder.resolve()))[1:-1])
    return Recipe.model_validate_json(text)


def _gain(results: list[StageResult]) -> Any:
    """What the last stage brought beside the one before."""
    if len(results) < 2 or results[-1].after.per_query.keys() != results[-2].after.per_query.keys():
        return None
    last, before = results[-1], results[-2]
    return paired_bootstrap(last.after.per_query, before.after.per_query, name=before.name)
