"""What is wrong with a recipe: a line for each problem, with the place where it was written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from oskit.errors import DataError, UsageError
from oskit.training.recipe.part import Kind
from oskit.training.recipe.recipe import Recipe
from oskit.training.recipe.tree import OPTION, Keys, dotted
from oskit.training.recipe.yaml_document import LocatedDict, LocatedList

_HINT = "`oskit train --print-schema` says what each key means."


class RecipeError(DataError):
    """A recipe is not right.

    Attributes:
        problems: One line each: place, key, what is wrong.
    """

    def __init__(self, problems: list[str], *, hint: str | None = None) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("; ".join(self.problems), hint=hint)


def validated(values: LocatedDict) -> Recipe:
    """The recipe that these values are.

    Raises:
        RecipeError: They are none; a UsageError where all that is wrong was given by ``--set``.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems, places = [], []
        for problem in error.errors(include_url=False):
            if problem["type"] == "too_short" and problem["input"]:
                continue  # what is in the list is wrong, which is told
            keys, place = _in_recipe(values, problem)
            problems.append(f"{place}: {_told(problem, keys)}")
            places.append(place)
        found = RecipeError(problems, hint=_HINT)
        if all(place.startswith(OPTION) for place in places):
            raise UsageError(found.message, hint=_HINT) from error
        raise found from error


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


def _told(problem: Any, keys: Keys) -> str:
    name, kind, location = dotted(keys), problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        known = [one for part in _parts_at(location[:-1])[:1] for one in part.model_fields]
        near = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.5)
        if near:
            return f"unknown key {name}; did you mean {near[0]}?"
        return f"unknown key {name}; there are: {', '.join(known)}"
    if kind == "missing":
        return f"{name} is missing; --set {name}=... gives it"
    if kind.startswith("union_tag"):
        given = problem["ctx"].get("tag")
        what = "needs a kind" if given is None else f"is of the unknown kind {given!r}"
        return f"{name} {what}; there are: {', '.join(map(_kind_of, _parts_at(location)))}"
    text = problem["msg"].removeprefix("Value error, ")
    text = text.replace("Input should be", "should be", 1)
    text = re.sub(r"a valid dictionary( or .*)?$", "a mapping of keys to values", text)
    text = text.replace("a valid tuple", "a list").replace(" after validation, not 0", "")
    given = problem["input"]
    scalar = given is None or isinstance(given, (str, int, float))
    shown = f", not {given!r}" if scalar and not problem["msg"].startswith("Value error") else ""
    return f"{name}: {text}{shown}" if name else f"{text}{shown}"


def _parts_at(location: tuple[Any, ...]) -> list[type[BaseModel]]:
    """The parts of a recipe that may stand at a place; of the members of a union its kind tells which."""
    parts: list[type[BaseModel]] = [Recipe]
    for key in location:
        if isinstance(key, str):
            entries = [one.model_fields[key] for one in parts if key in one.model_fields]
            inner = [found for entry in entries for found in _parts_in(entry.annotation)]
            parts = [one for one in parts if _kind_of(one) == key] or inner
    return parts


def _kind_of(part: type[BaseModel]) -> str:
    return str(part.model_fields["kind"].default) if issubclass(part, Kind) else ""


def _parts_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The parts in ``Model | None``, ``tuple[Model, ...]`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _parts_in(part)
