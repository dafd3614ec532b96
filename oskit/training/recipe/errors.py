"""What is wrong with a recipe: a line for each problem, with the place where it was written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from oskit.errors import DataError, OskitError, UsageError
from oskit.training.recipe.part import Kind
from oskit.training.recipe.tree import RecipeTree
from oskit.training.recipe.yaml_document import Keys, dotted

GONE = {
    "gradient_cache": "the loss is that of the whole batch, however it is computed",
    "batch_size": "a teacher computes as many texts at once as memory has room for",
}
"""Keys that have gone, and what is so without them."""

_HINT = "`oskit train --print-schema` says what each key means."


class RecipeError(DataError):
    """A recipe is not right.

    Attributes:
        problems: One line each: place, key, what is wrong.
    """

    def __init__(self, problems: list[str], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems), hint=hint)


def error_of(problems: list[str], *, all_options: bool = False, hint: str | None = _HINT) -> OskitError:
    """The error to raise: of usage if every problem is one of ``--set``."""
    problems = list(dict.fromkeys(problems))
    return UsageError("; ".join(problems), hint=hint) if all_options else RecipeError(problems, hint=hint)


def validation_error(error: ValidationError, tree: RecipeTree, model: type[BaseModel]) -> OskitError:
    """pydantic's error in the words of a recipe.

    Args:
        error: What validation of ``tree`` by ``model`` raised.
        tree: The values, with their places.
        model: The model of the whole recipe.
    """
    problems, options = [], []
    for problem in error.errors(include_url=False):
        location, kind = tuple(problem["loc"]), problem["type"]
        keys = _keys_in(tree.values, location, kind)
        options.append(tree.from_option(keys))
        known = []
        if kind == "extra_forbidden":
            known = [name for one in models_at(location[:-1], model)[:1] for name in one.model_fields]
        elif kind.startswith("union_tag"):
            known = [kind_of(one) for one in models_at(location, model)]
        problems.append(f"{tree.place(keys)}: {_told(problem, keys, known)}")
    return error_of(problems, all_options=all(options))


def _told(problem: Any, keys: Keys, known: list[str]) -> str:
    name, kind = dotted(keys), problem["type"]
    if kind == "extra_forbidden":
        if keys[-1] in GONE:
            return f"{name} is no longer a key: {GONE[str(keys[-1])]}"
        near = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.5)
        if near:
            return f"unknown key {name}; did you mean {near[0]}?"
        return f"unknown key {name}; there are: {', '.join(known)}"
    if kind == "missing":
        return f"{name} is missing; --set {name}=... gives it"
    if kind.startswith("union_tag"):
        given = problem["ctx"].get("tag")
        what = "needs a kind" if given is None else f"is of the unknown kind {given!r}"
        return f"{name} {what}; there are: {', '.join(known)}"
    text = problem["msg"].removeprefix("Value error, ")
    text = text.replace("Input should be", "should be", 1)
    text = re.sub(r"a valid dictionary( or .*)?$", "a mapping of keys to values", text)
    text = text.replace("a valid tuple", "a list").replace(" after validation, not 0", "")
    given = problem["input"]
    scalar = given is None or isinstance(given, (str, int, float))
    shown = f", not {given!r}" if scalar and not problem["msg"].startswith("Value error") else ""
    return f"{name}: {text}{shown}" if name else f"{text}{shown}"


def _keys_in(values: Any, location: tuple[Any, ...], kind: str) -> Keys:
    """pydantic's location without what stands in no recipe: the kinds of members of unions."""
    keys: list[str | int] = []
    for number, key in enumerate(location):
        last = number == len(location) - 1
        there = key in values if isinstance(values, dict) else _is_position(key, values)
        if there:
            values = values[key]
        elif key == 0 or (isinstance(values, dict) and values.get("kind") == key):
            continue  # one source alone, which validation takes for a list of one
        elif not (last and kind == "missing"):
            break
        keys.append(key)
    return tuple(keys)


def _is_position(key: Any, values: Any) -> bool:
    return isinstance(values, list) and isinstance(key, int) and key < len(values)


def models_at(location: tuple[Any, ...], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The parts that may stand at a place; of the members of a union its kind tells which."""
    models = [model]
    for key in location:
        if isinstance(key, str):
            entries = [one.model_fields[key] for one in models if key in one.model_fields]
            inner = [found for entry in entries for found in models_in(entry.annotation)]
            models = [one for one in models if kind_of(one) == key] or inner
    return models


def kind_of(part: type[BaseModel]) -> str:
    """What its ``kind`` says, of a part of which there are several; else nothing."""
    return str(part.model_fields["kind"].default) if issubclass(part, Kind) else ""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The parts in ``Model | None``, ``tuple[Model, ...]`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from models_in(part)
