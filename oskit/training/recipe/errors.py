"""What is wrong with a recipe: a line for each problem, with the place where it was written."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from oskit.errors import DataError, OskitError, UsageError
from oskit.training.recipe.tree import RecipeTree
from oskit.training.recipe.yaml_document import Keys, dotted

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
        keys = _keys_in(tree.values, tuple(problem["loc"]), problem["type"])
        options.append(tree.from_option(keys))
        problems.append(f"{tree.place(keys)}: {_told(problem, keys, model)}")
    return error_of(problems, all_options=all(options))


def _told(problem: Any, keys: Keys, model: type[BaseModel]) -> str:
    name, kind = dotted(keys), problem["type"]
    if kind == "extra_forbidden":
        known = fields_at(keys[:-1], model)
        near = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.5)
        if near:
            return f"unknown key {name}; did you mean {near[0]}?"
        return f"unknown key {name}; there are: {', '.join(known)}"
    if kind == "missing":
        return f"{name} is missing; --set {name}=... gives it"
    text = problem["msg"].removeprefix("Value error, ")
    text = text.replace("Input should be", "should be", 1)
    given = problem["input"]
    scalar = given is None or isinstance(given, (str, int, float))
    shown = f", not {given!r}" if scalar and not problem["msg"].startswith("Value error") else ""
    return f"{name}: {text}{shown}" if name else f"{text}{shown}"


def _keys_in(values: Any, location: tuple[Any, ...], kind: str) -> Keys:
    """pydantic's location without what stands in no recipe: names of the members of unions."""
    keys: list[str | int] = []
    for number, key in enumerate(location):
        last = number == len(location) - 1
        there = key in values if isinstance(values, dict) else _is_position(key, values)
        if there:
            values = values[key]
        elif isinstance(key, int) and key == 0:
            continue  # one source alone, which validation takes for a list of one
        elif not (last and kind == "missing"):
            break
        keys.append(key)
    return tuple(keys)


def _is_position(key: Any, values: Any) -> bool:
    return isinstance(values, list) and isinstance(key, int) and key < len(values)


def fields_at(keys: Keys, model: type[BaseModel]) -> list[str]:
    """The keys that may stand at a place."""
    found: type[BaseModel] | None = model
    for key in keys:
        if isinstance(key, str) and found is not None:
            entry = found.model_fields.get(key)
            found = None if entry is None else _model_in(entry.annotation)
    return [] if found is None else list(found.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in ``Model | None``, ``tuple[Model, ...]`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
