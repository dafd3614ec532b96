"""Every key of a recipe: its type, default and meaning, as JSON schema and as rows for people."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from oskit.training.recipe.recipe import Recipe

_ATTRIBUTE = re.compile(r"^(\w+): ")


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        name: With the keys around it: ``schedule.steps``; ``data.train[].path`` in a list.
        type: What it takes.
        default: As JSON; empty where it must be given.
        meaning: A sentence or more.
    """

    name: str
    type: str
    default: str
    meaning: str


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, with a description of every key."""
    schema = Recipe.model_json_schema()
    models = {model.__name__: model for model in _models(Recipe)}
    for name, part in [("Recipe", schema), *schema.get("$defs", {}).items()]:
        if name in models:
            _describe(part, models[name])
    return schema


def recipe_keys() -> list[Key]:
    """All keys, in the order in which they are documented."""
    return list(_keys(Recipe, "", {}))


def meanings(model: type[BaseModel]) -> dict[str, str]:
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


def _summary(model: type[BaseModel]) -> str:
    return _in_yaml(inspect.cleandoc(model.__doc__ or "").partition("\n")[0])


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    schema["description"] = _summary(model)
    for name, text in meanings(model).items():
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


def _keys(model: type[BaseModel], prefix: str, defaults: Any) -> Iterator[Key]:
    schema, told = model.model_json_schema(), meanings(model)
    for name, entry in model.model_fields.items():
        default = defaults.get(name, entry.get_default(call_default_factory=True))
        inner = list(_inner_models(entry.annotation))
        part = schema["properties"][name]
        if not inner:
            yield Key(f"{prefix}{name}", _type(part), _json(default), told.get(name, ""))
            continue
        optional = type(None) in get_args(entry.annotation)
        many = "array" in json.dumps(part.get("type", ""))
        start = f"{prefix}{name}{'[]' if many else ''}"
        given = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        given = given if isinstance(given, dict) else {}
        if many or optional:
            shown = "as below" if given else _json(default)
            meaning = told.get(name) or _summary(inner[0])
            yield Key(start, "list" if many else "part", shown, meaning)
        yield from _keys(inner[0], f"{start}.", given)


def _type(part: dict[str, Any]) -> str:
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    if "anyOf" in part:
        return " or ".join(_type(one) for one in part["anyOf"] if one.get("type") != "null")
    if part.get("type") == "array":
        return f"list of {_type(part.get('items', {}))}"
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    told = [f"{sign} {part[limit]:g}" for limit, sign in limits.items() if limit in part]
    return " ".join([names.get(part.get("type", ""), "mapping"), ", ".join(told)]).strip()


def _json(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    return json.dumps(value, default=str, ensure_ascii=False)
