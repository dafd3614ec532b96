"""An encoder whose documents are pruned as the index's are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oskit.encoder.weights import Prune, TokenWeightsMixin, matrix_to_weights, prune, weights_to_matrix

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.encoder.types import Architecture, TextEncoder
    from oskit.encoder.vocabulary import Vocabulary


class PrunedDocuments(TokenWeightsMixin):
    """Leaves queries as they are and keeps of each document what the rule of the index keeps.

    Args:
        encoder: Makes the weights.
        rule: As recorded in the index, ``TYPE:RATIO``.
    """

    def __init__(self, encoder: TextEncoder, rule: str) -> None:
        self._encoder = encoder
        self._rule = Prune.parse(rule)

    @property
    def architecture(self) -> Architecture:
        """The encoder's."""
        return self._encoder.architecture

    @property
    def vocabulary(self) -> Vocabulary:
        """The encoder's."""
        return self._encoder.vocabulary

    def document_matrix(self, texts: Sequence[str], *, batch_size: int = 32) -> csr_matrix:
        """Pruned document vectors, shape ``[len(texts), vocabulary.size]``."""
        full = self._encoder.document_matrix(texts, batch_size=batch_size)
        rows = matrix_to_weights(full, self.vocabulary, key="id")
        return weights_to_matrix([prune(row, self._rule) for row in rows], self.vocabulary, key="id")

    def query_matrix(self, texts: Sequence[str], *, batch_size: int = 32) -> csr_matrix:
        """Query vectors, shape ``[len(texts), vocabulary.size]``."""
        return self._encoder.query_matrix(texts, batch_size=batch_size)
