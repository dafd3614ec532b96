"""Recipes from YAML files, by name, or from Python: read, completed, validated.

An error says file, line and key: ``my.yaml:12: schedule.steps: should be greater than 0, not -3``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

from oskit.errors import DataError, UsageError
from oskit.training.recipe.errors import RecipeError, validated
from oskit.training.recipe.recipe import Recipe
from oskit.training.recipe.tree import (
    change,
    dotted,
    is_placeholder,
    located,
    resolve_paths,
    set_option,
    texts,
)
from oskit.training.recipe.yaml_document import LocatedDict, parse_yaml, read_yaml, write_yaml

_INCLUDED, _SUFFIX = files("oskit.training.recipe").joinpath("included"), ".yaml"
STAGE = re.compile(r"\{stage:(\d+)\}")
"""Stands for the folder of an earlier stage's encoder."""


def included_recipes() -> list[str]:
    """Names of the recipes that come with oskit, the quick one first."""
    names = {item.name.removesuffix(_SUFFIX) for item in _INCLUDED.iterdir() if item.name.endswith(_SUFFIX)}
    order = ("quick", "stage-1")
    return [*(name for name in order if name in names), *sorted(names.difference(order))]


def included_text(name: str) -> str:
    """The YAML of an included recipe.

    Raises:
        UsageError: There is none of this name.
    """
    names = included_recipes()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(names)}."
        raise UsageError(f"no recipe is called {name!r}", hint=hint)
    return _INCLUDED.joinpath(f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def described_recipes() -> dict[str, str]:
    """The included recipes and what each is good for."""
    return {
        name: str(parse_yaml(included_text(name), name).get("description", "")).strip()
        for name in included_recipes()
    }


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and validate it, its stages too.

    Relative paths in a file are meant from its folder, all others from the working folder.

    Args:
        source: A YAML file, the name of an included recipe, or the values themselves.
        overrides: ``KEY=VALUE`` as ``--set`` takes it, the value in YAML: ``schedule.steps=100``,
            ``data.train.0.path=pairs.jsonl`` or, for a single source, ``data.train=pairs.jsonl``.

    Raises:
        RecipeError: Something in it is wrong; ``problems`` has a line for each.
        DataError: It cannot be read, or is not YAML.
        UsageError: There is no such recipe, or an override is wrong.
    """
    values, folder = _values_of(source)
    for override in overrides:
        set_option(values, override)
    resolve_paths(values, folder)
    _refuse_placeholders(values)
    recipe = validated(values)
    for number in range(len(recipe.stages)):
        _validated_stage(values, number)
    return recipe


def stages_of(recipe: Recipe) -> tuple[Recipe, ...]:
    """The recipes of a recipe's stages, one after the other; of one without stages itself.

    ``{stage:1}`` still stands in them: which folder that is, the run knows.

    Raises:
        RecipeError: A stage is wrong.
    """
    if not recipe.stages:
        return (recipe,)
    values = located(recipe.model_dump(mode="json", exclude_unset=True))
    return tuple(_validated_stage(values, number) for number in range(len(recipe.stages)))


def resolved_yaml(recipe: Recipe) -> str:
    """A recipe with every value, defaults too; :func:`load_recipe` reads it to the same recipe."""
    return write_yaml(recipe.model_dump(mode="json"))


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, with a description of every key."""
    schema = Recipe.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part["description"] = _in_yaml(part["description"].partition("\n")[0])
        for name, key in part["properties"].items():
            if name == "kind":
                key.setdefault("description", part["description"])
            if "description" in key:
                key["description"] = _in_yaml(key["description"])
    return schema


def _in_yaml(text: str) -> str:
    """A docstring's words for a reader of YAML."""
    return re.sub(r"\bNone\b", "null", " ".join(text.replace("``", "`").split()))


def _values_of(source: str | Path | Mapping[str, Any]) -> tuple[LocatedDict, Path]:
    """What a recipe says, and the folder from which its paths are meant."""
    if isinstance(source, Mapping):
        return located(source), Path.cwd()
    path, folder = Path(source).expanduser(), Path.cwd()
    if path.is_file():
        values, name, folder = read_yaml(path), str(path), path.absolute().parent
    elif path.is_dir():
        raise UsageError(f"{path} is a folder, not a recipe", hint="Name the YAML file itself.")
    elif isinstance(source, Path) or path.suffix or path.name != str(source):
        raise DataError(f"no such recipe: {path}", hint="`oskit recipes list` shows the included ones.")
    else:
        name = f"{source}{_SUFFIX}"
        values = parse_yaml(included_text(source), name)
    if not isinstance(values, LocatedDict):
        what = "the recipe is empty" if values is None else "a recipe is a mapping of keys to values"
        raise DataError(f"{name}:1: {what}", hint="`oskit recipes show quick` shows a recipe.")
    return values, folder


def _refuse_placeholders(values: LocatedDict) -> None:
    problems = []
    for text, keys, place in texts(values):
        if is_placeholder(text):
            name = dotted(keys[:2] if keys[:2] == ("data", "train") else keys)
            what = "" if text == "???" else f" ({text[1:-1]})"
            problems.append(f"{place}: {dotted(keys)} is for you to say{what}: --set {name}=...")
    if problems:
        raise RecipeError(problems)


def _validated_stage(values: LocatedDict, number: int) -> Recipe:
    given = values["stages"][number]
    if "stages" in given:
        place = given.places.get("stages", "the recipe")
        raise RecipeError([f"{place}: a stage has no stages of its own"])
    stage = deepcopy(values)
    change(stage, stage.pop("stages")[number])
    for text, keys, place in texts(stage):
        match = STAGE.search(text)
        if match and not 1 <= int(match[1]) <= number:
            raise RecipeError(
                [f"{place}: {dotted(keys)}: {match[0]} is not before stage {number + 1}"],
                hint="A stage can only use what an earlier one made.",
            )
    return validated(stage)
