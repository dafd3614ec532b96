"""How queries are made of documents that have none."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

QueryKind = Literal["title", "heading", "span"]


class QuerySettings(BaseModel):
    """How queries are made of documents.

    Attributes:
        kinds: What they are made from: the title, headings (Markdown's ``#``, or a short first line of a
            document without a title), spans (a sentence, or some words of a text that is one sentence).
        spans: Spans of one document at most.
        headings: Headings of one document at most.
        remove: How often a query is taken out of the passage that it is to find.
        min_length: Shortest query, in characters.
        max_length: Longest query, in characters.
        min_passage: Shortest passage, in characters; what would leave less is not taken out.
        reach: Characters from the beginning in which headings and spans are looked for; an encoder reads a
            few hundred tokens of a text.
        max_documents: A query that more documents than this would have (such as "Introduction") is dropped.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: tuple[QueryKind, ...] = ("title", "heading", "span")
    spans: PositiveInt = 1
    headings: PositiveInt = 2
    remove: float = Field(default=0.9, ge=0, le=1)
    min_length: PositiveInt = 8
    max_length: PositiveInt = 240
    min_passage: PositiveInt = 40
    reach: PositiveInt = 2000
    max_documents: PositiveInt = 3

    @model_validator(mode="after")
    def _in_order(self) -> QuerySettings:
        if self.min_length > self.max_length:
            raise ValueError("min_length is larger than max_length")
        if not self.kinds:
            raise ValueError("kinds is empty: name title, heading or span")
        return self
