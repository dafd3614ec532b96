"""Combinations in a recipe that are known to end badly, and keys that others idle. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oskit.training.recipe.objective import InfoNceConfig, KlConfig, MarginMseConfig
from oskit.training.recipe.recipe import Recipe
from oskit.training.recipe.teachers import LabelsPart

SATURATING_TEMPERATURE = 0.2
FLAT_SCALE = 5.0


def risks(recipe: Recipe) -> list[str]:
    """What a person should know before training starts, in one line each; empty if nothing is odd."""
    return [*_found(recipe), *(f"{key} changes nothing: {why}" for key, why in _idle(recipe))]


def sharp_and_alone(recipe: Recipe) -> bool:
    """Whether KL at a temperature of 1 or less is all that a symmetric encoder learns from.

    Inference-free ones are published with 1: their query side cannot shrink.
    """
    sharp = all(isinstance(loss, KlConfig) and loss.temperature <= 1 for loss in recipe.loss)
    return sharp and recipe.encoder.architecture != "inference-free"


def _found(recipe: Recipe) -> Iterator[str]:
    if sharp_and_alone(recipe):
        yield (
            "the loss kl has a temperature of 1 or less and is alone: encoders trained like that ended "
            "with no active dimension (sentence-transformers, pull request 3428); 2 is safe"
        )
    raw = [one for one in recipe.labelling if (one.normalize or recipe.labels.normalize) == "none"]
    flat = recipe.labels.scale < FLAT_SCALE
    differs = any(isinstance(loss, MarginMseConfig) for loss in recipe.loss)
    if flat and differs and any(one.kind == "dense" for one in raw):
        yield (
            "the loss is margin_mse on cosines, which differ by a few hundredths: inner products that must "
            "do so shrink the encoder to nothing; set labels.normalize: minmax, or raise labels.scale"
        )
    elif flat and recipe.labelling and not raw:
        yield (
            f"labels.scale is {recipe.labels.scale:g}: labels from 0 to {recipe.labels.scale:g} hardly tell "
            "the candidates apart; 30 is the published value"
        )
    for loss in recipe.loss:
        if isinstance(loss, InfoNceConfig) and loss.temperature < SATURATING_TEMPERATURE:
            yield (
                f"the temperature of the loss info_nce is {loss.temperature:g}, which cosines need: inner "
                "products of sparse vectors are large already, and the softmax saturates; 1 is usual"
            )


def _idle(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Keys that are not as by default and yet have no effect, and why."""
    data, schedule, evaluation = recipe.data, recipe.schedule, recipe.evaluation
    models: list[tuple[str, Any]] = [
        ("encoder", recipe.encoder),
        *((f"teachers.{n}", one) for n, one in enumerate(recipe.teachers)),
    ]
    for key, model in models:
        if getattr(model, "revision", None) is not None and Path(model.name).expanduser().is_dir():
            yield f"{key}.revision", f"{model.name} is a folder"
    if not recipe.labelling:
        for key in ("scale", "normalize"):
            if getattr(recipe.labels, key) != getattr(LabelsPart(), key):
                yield f"labels.{key}", "no loss learns the labels of a teacher"
    if schedule.steps is not None and schedule.epochs != 1:
        yield f"schedule.epochs: {schedule.epochs:g}", f"schedule.steps is {schedule.steps:,}"
    if evaluation.collection is None:
        if data.leakage != "drop":
            yield f"data.leakage: {data.leakage}", "what is held out is not trained on"
        if evaluation.split != "test":
            yield f"evaluation.split: {evaluation.split}", "evaluation.collection is not given"
    elif evaluation.judgements == "own":
        yield "evaluation.judgements: own", "evaluation.collection has its judgements"
