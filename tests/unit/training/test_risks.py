"""Temperatures and scales that are known to end badly."""

from __future__ import annotations

from typing import Any

import pytest

from oskit.training.recipe.known_problems import risks
from oskit.training.recipe.recipe import Recipe

DENSE, CROSS = {"kind": "dense"}, {"kind": "cross-encoder", "name": "c"}
SHARP = {"kind": "kl", "temperature": 1}
MARGINS, NCE = {"kind": "margin_mse"}, {"kind": "info_nce"}


def found(*loss: dict[str, Any], architecture: str | None = None, **parts: Any) -> list[str]:
    values = {"name": "x", "encoder": {"name": "x", "architecture": architecture}, "data": {"train": ["x"]}}
    return risks(Recipe.model_validate({**values, **({"loss": loss} if loss else {}), **parts}))


@pytest.mark.parametrize(
    ("loss", "parts", "named"),
    [
        ([SHARP], {}, "the loss kl has a temperature of 1 or less and is alone"),
        ([MARGINS], {"labels": {"normalize": "none", "scale": 1}}, "labels.normalize: minmax"),
        ([MARGINS], {"labels": {"scale": 1}, "teachers": [{**DENSE, "normalize": "none"}]}, "on cosines"),
        ([{"kind": "kl"}], {"labels": {"scale": 1}}, "labels.scale is 1"),
        ([NCE], {"labels": {"scale": 1}}, "labels.scale changes nothing"),
        ([NCE], {"labels": {"normalize": "none"}}, "labels.normalize changes nothing"),
        (
            [NCE],
            {"schedule": {"steps": 3, "epochs": 2}},
            "schedule.epochs: 2 changes nothing",
        ),
        ([NCE], {"data": {"train": "x", "leakage": "error"}}, "data.leakage: error changes nothing"),
        (
            [NCE],
            {"teachers": [{**DENSE, "name": "/", "revision": "v1"}]},
            "teachers.0.revision changes nothing",
        ),
        ([NCE], {"evaluation": {"split": "dev"}}, "evaluation.split: dev changes nothing"),
        ([NCE], {"evaluation": {"collection": "c", "judgements": "own"}}, "evaluation.judgements: own"),
        ([{**NCE, "temperature": 0.05}], {}, "the temperature of the loss info_nce is 0.05"),
    ],
)
def test_each_trap_is_named(loss: list[dict[str, Any]], parts: dict[str, Any], named: str) -> None:
    (only,) = found(*loss, **parts)
    assert named in only


def test_what_is_no_trap_is_not_warned_of() -> None:
    raw = {"normalize": "none", "scale": 1}
    assert found() == []
    assert found(NCE) == []
    assert found(SHARP, NCE) == []
    assert found(SHARP, architecture="inference-free") == [], "as it was published"
    assert found(MARGINS, teachers=[CROSS], labels=raw) == [], "the standard: raw scores of a cross-encoder"
    assert found(MARGINS, teachers=[{"kind": "stored"}], labels=raw) == []
    assert found(MARGINS, labels={"normalize": "none", "scale": 30}) == []
    assert found({"kind": "kl"}, labels=raw) == []
