"""BM25 as a teacher, and as whoever finds candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from oskit.evaluation.offline.bm25 import Bm25Index, Bm25Settings
from oskit.training.data.training_data import TrainingData
from oskit.training.teachers.teacher import AT_ONCE, Rows, Side, VectorTeacher

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.training.recipe.teachers import Bm25TeacherConfig


class Bm25Teacher(VectorTeacher):
    """BM25 over the training corpus. Its score is an inner product too, of the terms of a query and their
    weights in a document; it keeps no cache, for these depend on the whole corpus.

    Args:
        config: The language.

    Raises:
        UsageError: There is no such language.
    """

    config: Bm25TeacherConfig

    def __init__(self, config: Bm25TeacherConfig) -> None:
        super().__init__(config)
        self._settings = Bm25Settings(language=config.language)
        self._index: tuple[object, Bm25Index, csr_matrix] | None = None

    def vectors(self, data: TrainingData, side: Side, rows: Rows) -> csr_matrix:
        if self._index is None or self._index[0] is not data.corpus:
            index = Bm25Index(self._corpus(data), self._settings)
            self._index = data.corpus, index, index.document_matrix()
        _, index, documents = self._index
        return index.query_matrix(self.texts(data, "query", rows)) if side == "query" else documents[rows]

    def release(self) -> None:
        self._index = None

    def _corpus(self, data: TrainingData) -> Iterator[str]:
        for start in range(0, len(data.corpus), AT_ONCE):
            yield from self.texts(data, "document", np.arange(start, min(start + AT_ONCE, len(data.corpus))))
