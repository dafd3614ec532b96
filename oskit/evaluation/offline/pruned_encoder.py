"""An encoder whose documents are pruned as the index's are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oskit.archive.token_weights import DelegatingEncoder, Prune, prune_matrix

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.text_encoder import TextEncoder


class PrunedDocuments(DelegatingEncoder["TextEncoder"]):
    """Leaves queries as they are and keeps of each document what the rule of the index keeps.

    Args:
        encoder: Makes the weights.
        rule: As recorded in the index, ``TYPE:RATIO``.
    """

    def __init__(self, encoder: TextEncoder, rule: str) -> None:
        super().__init__(encoder)
        self._rule = Prune.parse(rule)

    def document_matrix(self, texts: Sequence[str], *, batch_size: int = 32) -> csr_matrix:
        """Pruned document vectors, shape ``[len(texts), vocabulary.size]``."""
        return prune_matrix(super().document_matrix(texts, batch_size=batch_size), self._rule)
