"""What the parts of a recipe have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Ratio = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A part of a recipe: no unknown keys, not changed once read; each key is explained below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Kind(Part):
    """A part of which there are several kinds; each is told by its ``kind``, which its docstring explains."""

    kind: str

    def model_post_init(self, _context: Any) -> None:
        """A kind that is a default counts as given: without it nothing could be read again."""
        self.__pydantic_fields_set__.add("kind")
