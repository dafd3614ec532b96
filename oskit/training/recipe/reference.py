"""Every key of a recipe: its type, default and meaning, as JSON schema."""

from __future__ import annotations

import re
from typing import Any

from oskit.training.recipe.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, with a description of every key."""
    schema = Recipe.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part["description"] = _in_yaml(part["description"].partition("\n")[0])
        for key in part["properties"].values():
            if "description" in key:
                key["description"] = _in_yaml(key["description"])
    return schema


def _in_yaml(text: str) -> str:
    """A docstring's words for a reader of YAML."""
    return re.sub(r"\bNone\b", "null", " ".join(text.replace("``", "`").split()))
