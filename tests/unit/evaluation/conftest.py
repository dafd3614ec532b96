"""A collection and an encoder that are small enough to check by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class SmallDocument:
    """A document whose passage is its text."""

    id: str
    passage: str


@dataclass
class SmallCollection:
    """A collection in memory."""

    texts: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)

    def documents(self) -> Iterable[SmallDocument]:
        """The documents, in order."""
        return (SmallDocument(name, text) for name, text in self.texts.items())


@dataclass
class WordVocabulary:
    """Words by id."""

    words: list[str]

    @property
    def size(self) -> int:
        """Number of words."""
        return len(self.words)


class WordEncoder:
    """``"cat:1.5 dog"`` is the vector with cat = 1.5 and dog = 1: texts spell out their weights."""

    architecture = "symmetric"

    def __init__(self, words: Sequence[str]) -> None:
        self.vocabulary = WordVocabulary(list(words))
        self.calls: list[int] = []

    def document_matrix(self, texts: Sequence[str], *, batch_size: int = 32) -> csr_matrix:
        """Weights of ``texts``, ``[n, words]``."""
        self.calls.append(len(texts))
        dense = np.zeros((len(texts), self.vocabulary.size), dtype=np.float32)
        for row, text in enumerate(texts):
            for part in text.split():
                word, _, weight = part.partition(":")
                dense[row, self.vocabulary.words.index(word)] = float(weight or 1)
        return csr_matrix(dense)

    query_matrix = document_matrix


@pytest.fixture
def encoder() -> WordEncoder:
    """Four words."""
    return WordEncoder(["cat", "dog", "cow", "eel"])


@pytest.fixture
def collection() -> SmallCollection:
    """Five documents, three queries."""
    return SmallCollection(
        texts={
            "d1": "cat:1.5 dog:0.5",
            "d2": "dog:2",
            "d3": "cow:1 cat:0.25",
            "d4": "cat:1.5 dog:0.5",
            "d5": "",
        },
        queries={"q1": "cat:2 dog:1", "q2": "eel", "q3": "cow:3"},
        qrels={"q1": {"d2": 1}, "q2": {"d5": 1}, "q3": {"d3": 2, "d1": 0}},
    )
