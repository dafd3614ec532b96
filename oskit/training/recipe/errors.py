"""What is wrong with a recipe: a line for each problem, with the place where it was written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from oskit.errors import DataError, OskitError, UsageError
from oskit.training.recipe.part import Kind
from oskit.training.recipe.tree import OPTION, Keys, dotted
from oskit.training.recipe.yaml_document import LocatedDict, LocatedList

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


def validation_error(error: ValidationError, values: LocatedDict, model: type[BaseModel]) -> OskitError:
    """pydantic's error in the words of a recipe.

    Args:
        error: What validation of the values by the model raised.
        values: Of a whole recipe.
        model: Of a whole recipe.
    """
    problems, options = [], []
    for problem in error.errors(include_url=False):
        keys, place = _in_recipe(values, problem)
        options.append(place.startswith(OPTION))
        problems.append(f"{place}: {_told(problem, keys, model)}")
    return error_of(problems, all_options=all(options))


def _in_recipe(values: Any, problem: Any) -> tuple[Keys, str]:
    """pydantic's location without the kinds of members of unions, which are no keys; and its place."""
    keys: list[str | int] = []
    place = values.places.get("", "the recipe")
    for key in problem["loc"]:
        there = range(len(values)) if isinstance(values, LocatedList) else values
        if isinstance(there, (dict, range)) and key in there:
            place = values.places.get(key, place)
            values = values[key]
        elif key == 0 or (isinstance(values, LocatedDict) and values.get("kind") == key):
            continue  # one source alone, which validation takes for a list of one
        elif problem["type"] != "missing" or key != problem["loc"][-1]:
            break
        keys.append(key)
    return tuple(keys), place


def _told(problem: Any, keys: Keys, model: type[BaseModel]) -> str:
    name, kind, location = dotted(keys), problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        known = [one for part in _parts_at(location[:-1], model)[:1] for one in part.model_fields]
        near = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.5)
        if near:
            return f"unknown key {name}; did you mean {near[0]}?"
        return f"unknown key {name}; there are: {', '.join(known)}"
    if kind == "missing":
        return f"{name} is missing; --set {name}=... gives it"
    if kind.startswith("union_tag"):
        given = problem["ctx"].get("tag")
        what = "needs a kind" if given is None else f"is of the unknown kind {given!r}"
        return f"{name} {what}; there are: {', '.join(map(_kind_of, _parts_at(location, model)))}"
    text = problem["msg"].removeprefix("Value error, ")
    text = text.replace("Input should be", "should be", 1)
    text = re.sub(r"a valid dictionary( or .*)?$", "a mapping of keys to values", text)
    text = text.replace("a valid tuple", "a list").replace(" after validation, not 0", "")
    given = problem["input"]
    scalar = given is None or isinstance(given, (str, int, float))
    shown = f", not {given!r}" if scalar and not problem["msg"].startswith("Value error") else ""
    return f"{name}: {text}{shown}" if name else f"{text}{shown}"


def _parts_at(location: tuple[Any, ...], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The parts that may stand at a place; of the members of a union its kind tells which."""
    models = [model]
    for key in location:
        if isinstance(key, str):
            entries = [one.model_fields[key] for one in models if key in one.model_fields]
            inner = [found for entry in entries for found in _parts_in(entry.annotation)]
            models = [one for one in models if _kind_of(one) == key] or inner
    return models


def _kind_of(part: type[BaseModel]) -> str:
    """What its ``kind`` says, of a part of which there are several; else nothing."""
    return str(part.model_fields["kind"].default) if issubclass(part, Kind) else ""


def _parts_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The parts in ``Model | None``, ``tuple[Model, ...]`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _parts_in(part)
