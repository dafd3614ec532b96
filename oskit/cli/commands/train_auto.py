"""``oskit train auto``: the recipe is chosen for the data, told, written, and trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from oskit.cli.commands.train import AUTO
from oskit.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from oskit.cli.output import Output
    from oskit.training.auto.look import Named
    from oskit.training.recipe.recipe import Recipe

MINUTES = 30.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a recipe may be called."""


def chosen_recipe(
    overrides: tuple[str, ...], folder: Path, minutes: float, *, write: bool, out: Output
) -> Recipe:
    """Choose a recipe, tell why, and write it beside the run's folder unless it is only tried.

    Raises:
        UsageError: A recipe is there already.
        OskitError: As :func:`oskit.training.auto.choose.choose`.
    """
    from oskit.cli.commands.train_display import Display
    from oskit.folders import check_writable
    from oskit.training.auto.choose import choose

    folder = folder if folder.name else folder.absolute()
    path = folder.with_name(f"{folder.name}.yaml")
    there = UsageError(
        f"{path} is there already, perhaps edited",
        hint=f"Train by it: oskit train {path} -o {folder}; or choose anew for another folder (-o).",
    )
    if write:
        if path.exists():
            raise there
        check_writable(path.parent)
    with Display(out) as display, display.python_warnings():
        named = folder.name if NAME.fullmatch(folder.name) else AUTO
        found = choose(overrides, minutes=minutes, beside=_installed(), listener=display, name=named)
    for key, why in found.reasons.items():
        out.note(f"  {key}: {why}")
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(found.yaml)
        except FileExistsError:  # of another command, which chose meanwhile
            raise there from None
        out.note(f"The recipe is {path}; edit it, and train by it with: oskit train {path}")
    return found.recipe


def _installed() -> Named:
    """The demo's models, where they are installed."""
    from oskit.demo.data import demo_encoder, demo_teacher
    from oskit.training.auto.look import Named

    def folder(find: object) -> tuple[str, ...]:
        try:
            return (str(find()),)  # type: ignore[operator]
        except MissingDependencyError:
            return ()

    teacher = folder(demo_teacher)
    return Named((*folder(demo_encoder), *teacher), teacher)
