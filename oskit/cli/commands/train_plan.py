"""What ``oskit train --dry-run`` tells: the resolved recipe, and what would be done with which data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.cli.output import Output
    from oskit.training.data.training_data import TrainingData
    from oskit.training.recipe.recipe import Recipe
    from oskit.training.recipe.sources import DataSource


def show_plan(recipe: Recipe, folder: Path, resume: bool, out: Output) -> None:
    """Print the plan, if nothing stands in its way; data that is on this machine is read and counted.

    Raises:
        OskitError: What the run itself would end with.
    """
    from oskit.training.loop.preflight import preflight
    from oskit.training.recipe.file import resolved_yaml, stages_of
    from oskit.training.recipe.known_problems import risks

    beginning = preflight(recipe, folder, resume=resume, warn=out.warn, dry_run=True)
    text = resolved_yaml(recipe)
    recipes = stages_of(recipe)
    for risk in dict.fromkeys(risk for stage in recipes for risk in risks(stage)):
        out.warn(risk)
    stages = [_stage_plan(stage, number, _count(stage, out)) for number, stage in enumerate(recipes, start=1)]
    for stage in stages:
        if stage["lengths"] and stage["lengths"].warning:
            out.warn(stage["lengths"].warning)
    plan: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "folder": folder, "stages": stages}

    def show(console: Console) -> None:
        click.echo(text)
        for stage in stages:
            for line in stage["lines"]:
                console.print(line, markup=False, soft_wrap=True)
        hows = {"new": "", "again": ", in place of one without a checkpoint", "resumed": " and go on"}
        told = f"The run would be in {folder}{hows[beginning]}. Nothing was written."
        console.print(told, markup=False, soft_wrap=True)

    out.result(plan, show)


def _count(recipe: Recipe, out: Output) -> dict[str, Any]:
    """Examples of the sources that are on this machine; a source of the Hub is not fetched for a dry run."""
    from oskit.training.report.lengths import planned_lengths

    remote = [source.name for source in recipe.data.train if _is_remote(source)]
    local = [source for source in recipe.data.train if not _is_remote(source)]
    found: dict[str, Any] = {"sources": [], "not_read": remote, "examples": None, "held_out": None}
    found["notes"] = []
    found["lengths"] = planned_lengths(recipe, ())
    if not local:
        return found
    from oskit.training.data.training_data import load_training_data

    with out.progress("Reading training data", None, "records") as bar:
        data = load_training_data(local, seed=recipe.seed, progress=bar.advance)
    found["sources"] = [str(source) for source in data.sources]
    found["lengths"] = planned_lengths(recipe, data.passages())
    if not remote:
        data, found["held_out"] = _after_hold_out(recipe, data)
        found["examples"], found["notes"] = data.visits, list(data.notes)
    return found


def _is_remote(source: DataSource) -> bool:
    return source.path == "-" or any(place.hub is not None for place in source.places)


def _after_hold_out(recipe: Recipe, data: TrainingData) -> tuple[TrainingData, int]:
    if recipe.evaluation.collection is not None or not 0 < recipe.data.hold_out < 1:
        return data, 0
    from oskit.training.data.holdout import hold_out

    training, collection = hold_out(data, fraction=recipe.data.hold_out, seed=0)
    return training, len(collection.queries)


def _stage_plan(recipe: Recipe, number: int, data: dict[str, Any]) -> dict[str, Any]:
    schedule, encoder = recipe.schedule, recipe.encoder
    steps = schedule.steps if data["examples"] is None else schedule.steps_of(data["examples"])
    lines = [f"Stage {number}: {encoder.architecture or 'its own architecture'}, from {encoder.name}"]
    lines += [f"  {source}" for source in data["sources"]]
    lines += [f"  {name}: read when it is trained" for name in data["not_read"]]
    lines += [f"  {note}" for note in data["notes"]]
    if data["examples"] is not None:
        held = f", {data['held_out']:,} queries held out" if data["held_out"] else ""
        lines.append(f"  {data['examples']:,} examples to train on{held}")
    unknown = "what is too long for the encoder is not counted: it is not on this machine"
    lines += [f"  {line}" for line in (data["lengths"].lines if data["lengths"] else [unknown])]
    lines += [f"  {line}" for line in (_negatives(recipe), _losses(recipe), _evaluation(recipe))]
    count = f"{steps:,} steps" if steps is not None else f"{schedule.epochs:g} epochs"
    lines.append(f"  {count} of {schedule.batch_size} examples, learning rate {schedule.learning_rate:g}")
    return {"number": number, "steps": steps, **data, "lines": lines}


def _negatives(recipe: Recipe) -> str:
    mining = recipe.data.negatives
    if mining is None:
        return "negatives: those of the data, and of the batch"
    ranker = "the dense teacher" if mining.ranker == "dense" else "BM25"
    return f"negatives: {mining.per_query} a query, mined with {ranker} from its best {mining.depth}"


def _losses(recipe: Recipe) -> str:
    losses = [f"{loss.kind} ({loss.candidates} candidates, {loss.weight:g})" for loss in recipe.loss]
    told = f"loss: {' and '.join(losses)}"
    if recipe.labelling:
        told += f"; labels of {' and '.join(f'{one.label} ({one.weight:g})' for one in recipe.labelling)}"
    return told


def _evaluation(recipe: Recipe) -> str:
    evaluation = recipe.evaluation
    if evaluation.collection is None:
        return "evaluation: the held-out queries"
    return f"evaluation: {evaluation.collection}, split {evaluation.split}"
