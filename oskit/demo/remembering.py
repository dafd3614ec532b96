"""An encoder that remembers: the demo proves several indexes by the same exact vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from oskit.archive.token_weights import DelegatingEncoder

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.archive import Archive
    from oskit.archive.encoder import ArchiveEncoder

Side = Literal["document", "query"]


class Memory:
    """Matrices by archive, side and texts. It never forgets: for small collections only."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Side, tuple[str, ...]], csr_matrix] = {}

    def recall(
        self, sha256: str, side: Side, texts: Sequence[str], compute: Callable[[], csr_matrix]
    ) -> csr_matrix:
        """The matrix of these texts; computed the first time that it is asked for."""
        key = (sha256, side, tuple(texts))
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


class RememberingEncoder(DelegatingEncoder["ArchiveEncoder"]):
    """Computes each list of texts once for each archive.

    Args:
        encoder: Computes.
        memory: Remembers; may be shared by encoders, also of several archives.
    """

    def __init__(self, encoder: ArchiveEncoder, memory: Memory) -> None:
        super().__init__(encoder)
        self._memory = memory

    @property
    def archive(self) -> Archive:
        """The encoder's."""
        return self._encoder.archive

    def document_matrix(self, texts: Sequence[str], *, batch_size: int = 32) -> csr_matrix:
        """Document vectors, shape ``[len(texts), vocabulary.size]``."""
        return self._memory.recall(
            self.archive.sha256,
            "document",
            texts,
            lambda: self._encoder.document_matrix(texts, batch_size=batch_size),
        )

    def query_matrix(self, texts: Sequence[str], *, batch_size: int = 32) -> csr_matrix:
        """Query vectors, shape ``[len(texts), vocabulary.size]``."""
        query = self._encoder.query or self.archive
        return self._memory.recall(
            query.sha256, "query", texts, lambda: self._encoder.query_matrix(texts, batch_size=batch_size)
        )
