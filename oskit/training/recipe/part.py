"""What the parts of a recipe have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part of a recipe: no unknown keys, not changed once read; each key is explained below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
