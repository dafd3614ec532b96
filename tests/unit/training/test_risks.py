"""Temperatures and scales that are known to end badly."""

from __future__ import annotations

from typing import Any

import pytest

from oskit.training.recipe.known_problems import risks
from oskit.training.recipe.recipe import Recipe


def found(loss: dict[str, Any] | None = None, **teachers: Any) -> list[str]:
    values = {"name": "x", "encoder": {"name": "x"}, "data": {"train": ["x"]}, "teachers": teachers}
    return risks(Recipe.model_validate({**values, **({} if loss is None else {"loss": loss})}))


def test_the_defaults_are_safe() -> None:
    assert found() == []
    assert found({"distillation": None, "contrastive": {}}) == []


@pytest.mark.parametrize(
    ("loss", "teachers", "named"),
    [
        ({"distillation": {"temperature": 1}}, {}, "loss.distillation.temperature is 1"),
        ({"distillation": {"kind": "margin_mse"}}, {"normalize": "none"}, "teachers.normalize: minmax"),
        ({"distillation": {}}, {"scale": 1}, "teachers.scale is 1"),
        ({"distillation": None, "contrastive": {"scale": 20}}, {}, "loss.contrastive.scale is 20"),
    ],
)
def test_each_trap_is_named(loss: dict[str, Any], teachers: dict[str, Any], named: str) -> None:
    (only,) = found(loss, **teachers)
    assert named in only


def test_what_makes_it_safe_ends_the_warning() -> None:
    assert found({"distillation": {"temperature": 1}, "contrastive": {}}) == []
    assert found({"distillation": {"kind": "kl"}}, normalize="none", scale=1) == []
