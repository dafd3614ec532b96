"""Combinations in a recipe that are known to end badly: temperatures and scales. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator

from oskit.training.recipe.recipe import Recipe

SAFE_TEMPERATURE = 2.0
SATURATING_SCALE = 5.0
FLAT_SCALE = 5.0


def risks(recipe: Recipe) -> list[str]:
    """What a person should know before training starts, in one line each; empty if nothing is odd."""
    return [*_of_distillation(recipe), *_of_contrast(recipe)]


def _of_distillation(recipe: Recipe) -> Iterator[str]:
    part, teachers = recipe.loss.distillation, recipe.teachers
    if part is None:
        return
    alone = recipe.loss.contrastive is None
    if part.kind == "kl" and part.temperature <= 1 and alone:
        yield (
            f"loss.distillation.temperature is {part.temperature:g} and there is no contrastive loss: sparse "
            "encoders trained like that ended with no active dimension (sentence-transformers, pull request "
            f"3428); {SAFE_TEMPERATURE:g} is safe"
        )
    if teachers.normalize == "none" and part.kind == "margin_mse":
        yield (
            "loss.distillation is margin_mse on scores that are not normalised: cosines differ by a few "
            "hundredths, and inner products that must too shrink the encoder to nothing; set "
            "teachers.normalize: minmax"
        )
    elif teachers.normalize == "minmax" and teachers.scale < FLAT_SCALE:
        yield (
            f"teachers.scale is {teachers.scale:g}: labels from 0 to {teachers.scale:g} hardly tell the "
            "candidates apart; 30 is the published value"
        )


def _of_contrast(recipe: Recipe) -> Iterator[str]:
    part = recipe.loss.contrastive
    if part is not None and part.scale > SATURATING_SCALE:
        yield (
            f"loss.contrastive.scale is {part.scale:g}, which cosines need: inner products of sparse vectors "
            "are large already, and the softmax saturates; 1 is usual"
        )
