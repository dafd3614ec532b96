"""Every key of a recipe: its type, default and meaning, as JSON schema."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from oskit.training.recipe.recipe import Recipe

_ATTRIBUTE = re.compile(r"^(\w+): ")


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, with a description of every key."""
    schema = Recipe.model_json_schema()
    models = {model.__name__: model for model in _models(Recipe)}
    for name, part in [("Recipe", schema), *schema.get("$defs", {}).items()]:
        if name in models:
            _describe(part, models[name])
    return schema


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """What each field means, from the ``Attributes`` of the docstrings of the model and its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            found |= _attributes(inspect.cleandoc(base.__doc__ or ""))
    return found


def _attributes(docstring: str) -> dict[str, str]:
    _, _, section = docstring.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith("    "):
            break
        match = _ATTRIBUTE.match(line[4:])
        if match:
            name, line = match[1], line[4 + match.end() :]
        if name:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return {key: _in_yaml(text) for key, text in found.items()}


def _in_yaml(text: str) -> str:
    """A docstring's words for a reader of YAML."""
    return re.sub(r"\bNone\b", "null", text.replace("``", "`"))


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    schema["description"] = _in_yaml(inspect.cleandoc(model.__doc__ or "").partition("\n")[0])
    for name, text in _meanings(model).items():
        if name in schema.get("properties", {}):
            schema["properties"][name]["description"] = text


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for entry in model.model_fields.values():
        for inner in _inner_models(entry.annotation):
            yield from _models(inner)


def _inner_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _inner_models(part)
