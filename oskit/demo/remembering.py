"""An encoder that remembers: the demo proves several indexes by the same exact vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oskit.archive.token_weights import DelegatingEncoder

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.archive import Archive
    from oskit.archive.encoder import ArchiveEncoder

Memory = dict[tuple[str, str, tuple[str, ...]], "csr_matrix"]
"""Matrices by archive, side and texts. It never forgets: for small collections only."""


class RememberingEncoder(DelegatingEncoder["ArchiveEncoder"]):
    """Computes each list of texts once for each archive; the memory may be shared by several encoders."""

    def __init__(self, encoder: ArchiveEncoder, memory: Memory) -> None:
        super().__init__(encoder)
        self._memory = memory

    @property
    def archive(self) -> Archive:
        """The encoder's."""
        return self._encoder.archive

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Document vectors, shape ``[len(texts), vocabulary.size]``."""
        key = self.archive.sha256, "document", tuple(texts)
        if key not in self._memory:
            self._memory[key] = super().document_matrix(texts)
        return self._memory[key]

    def query_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Query vectors, shape ``[len(texts), vocabulary.size]``."""
        key = (self._encoder.query or self.archive).sha256, "query", tuple(texts)
        if key not in self._memory:
            self._memory[key] = super().query_matrix(texts)
        return self._memory[key]
