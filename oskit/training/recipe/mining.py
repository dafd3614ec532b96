"""How hard negatives are mined; no torch here, so that recipes can be read without it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt


class MiningConfig(BaseModel):
    """The ``mining`` part of a recipe.

    Attributes:
        ranker: Who finds candidates: the dense teacher by exact search, or BM25.
        per_query: Negatives that each example gets. Those that the data has come first and count.
        depth: How many of the best documents are looked at.
        skip_top: How many of these are left out, as likely answers that nobody marked.
        margin: Drop candidates that the dense teacher scores above the positive minus this.
        positive_share: Drop candidates that it scores above this share of the positive's score; 0.95 is
            ``TopK-PercPos`` of NV-Retriever (arXiv 2407.15831, section 3.2). None for no such limit. A
            negative score of the positive is lowered by as much instead.
        sampling: ``top``: the hardest that remain. ``random``: any of those that remain.
        seed: Of what is drawn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ranker: Literal["teacher", "bm25"] = "teacher"
    per_query: PositiveInt = 4
    depth: PositiveInt = 100
    skip_top: NonNegativeInt = 0
    margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    positive_share: float | None = Field(default=0.95, gt=0, le=1)
    sampling: Literal["top", "random"] = "top"
    seed: int = 0
