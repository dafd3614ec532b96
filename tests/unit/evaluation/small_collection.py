"""A collection and an encoder that are small enough to check by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy.sparse import csr_matrix
from tokenizers import Tokenizer
from tokenizers.models import BPE

from oskit.evaluation.offline.exact_scores import rank_exactly
from oskit.evaluation.offline.metrics import Run


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
    unknown_id: int = -1

    @property
    def size(self) -> int:
        """Number of words."""
        return len(self.words)

    def tokenizer(self) -> Tokenizer:
        """Knows no piece: the texts are weights, not language."""
        return Tokenizer(BPE())


class WordEncoder:
    """``"cat:1.5 dog"`` is the vector with cat = 1.5 and dog = 1: texts spell out their weights."""

    architecture = "symmetric"

    def __init__(self, words: Sequence[str]) -> None:
        self.vocabulary = WordVocabulary(list(words))
        self.calls: list[int] = []

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Weights of ``texts``, ``[n, words]``."""
        self.calls.append(len(texts))
        dense = np.zeros((len(texts), self.vocabulary.size), dtype=np.float32)
        for row, text in enumerate(texts):
            for part in text.split():
                word, _, weight = part.partition(":")
                dense[row, self.vocabulary.words.index(word)] = float(weight or 1)
        return csr_matrix(dense)

    query_matrix = document_matrix


def exact_run(*args: Any, block_documents: int = 512, **options: Any) -> Run:
    """The rankings of ``rank_exactly`` alone."""
    with blocks_of(block_documents):
        return rank_exactly(*args, **options).run


def blocks_of(documents: int) -> Any:
    """So many documents are encoded and scored together until the block ends."""
    return patch("oskit.evaluation.offline.exact_scores.BLOCK_DOCUMENTS", documents)
