"""What one record of a source gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oskit.training.data.lookups import KnownTexts


@dataclass(frozen=True)
class Example:
    """A query with candidates.

    Attributes:
        query: Its text.
        documents: The candidates, each once, known positives first: texts, or numbers of known ones.
        positives: How many of the first answer the query.
        scores: Of each candidate, NaN where there is none; empty if there are none at all.
        known: What numbers stand for.
        itself: The document that the query is, if it is one.
        apart: Whether scores are differences to the positive, so that those of another positive are others.
    """

    query: str
    documents: Sequence[str] | Sequence[int]
    positives: int
    scores: Sequence[float] = ()
    known: KnownTexts | None = None
    itself: str = ""
    apart: bool = False


@dataclass(frozen=True)
class Parsed:
    """What one record gave.

    Attributes:
        examples: Training examples; none of a document that is only there to be found.
        passages: Further texts of the corpus.
        dropped: Negatives that are a positive, or that the corpus lacks.
    """

    examples: tuple[Example, ...] = ()
    passages: tuple[str, ...] = ()
    dropped: int = 0
