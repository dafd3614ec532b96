"""Who finds candidates: a dense model by exact search over the whole corpus, or BM25."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oskit.evaluation.offline.bm25 import Bm25Index
from oskit.evaluation.offline.dense import DenseEncoder
from oskit.training.data.arrow import column_of
from oskit.training.teachers.models import DenseTeacher
from oskit.training.teachers.teacher import Progress, Rows, Side

if TYPE_CHECKING:
    from oskit.training.data.training_data import TrainingData

Positions = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

_BLOCK_DOCUMENTS = 16_384
_BLOCK_QUERIES = 1024


class Dense:
    """A dense model over the queries and documents of training data.

    Args:
        model: A teacher, which keeps its vectors, or anything that embeds texts.
        data: Examples and corpus.
        progress: Told how far it is.
    """

    def __init__(self, model: DenseTeacher | DenseEncoder, data: TrainingData, progress: Progress) -> None:
        self.model = model
        self._data = data
        self._progress = progress

    def vectors(self, side: Side, rows: Rows) -> Scores:
        """Vectors of queries or documents, ``[len(rows), width]``."""
        model, data = self.model, self._data
        if isinstance(model, DenseTeacher):
            return np.asarray(model.vectors(data, side, rows))
        table, name = (data.examples, "query") if side == "query" else (data.corpus, "text")
        texts = list(column_of(table, name, rows))
        return model.embed_queries(texts) if side == "query" else model.embed_documents(texts)

    def search(self, queries: Rows, depth: int) -> tuple[Positions, Scores]:
        """The best documents of each query and their scores, ``[queries, depth]``, best first."""
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        vectors = torch.from_numpy(self.vectors("query", queries)).to(device)
        best = torch.full((len(queries), depth), -torch.inf, device=device)
        where = torch.full((len(queries), depth), -1, dtype=torch.int64, device=device)
        for start in range(0, len(self._data.corpus), _BLOCK_DOCUMENTS):
            rows = np.arange(start, min(start + _BLOCK_DOCUMENTS, len(self._data.corpus)))
            documents = torch.from_numpy(self.vectors("document", rows)).to(device)
            for first in range(0, len(queries), _BLOCK_QUERIES):
                part = slice(first, first + _BLOCK_QUERIES)
                top = (vectors[part] @ documents.T).topk(min(depth, len(rows)), dim=1)
                scores = torch.cat([best[part], top.values], dim=1)
                positions = torch.cat([where[part], top.indices + start], dim=1)
                best[part], order = scores.topk(depth, dim=1)
                where[part] = positions.gather(1, order)
            self._progress("ranking documents", len(rows))
        return where.cpu().numpy(), best.cpu().numpy()

    def scores(self, queries: Rows, documents: Rows) -> Scores:
        """The score of each query with the document at its place, ``[n]``."""
        found = np.empty(len(queries), dtype=np.float32)
        for start in range(0, len(queries), _BLOCK_DOCUMENTS):
            part = slice(start, start + _BLOCK_DOCUMENTS)
            asked, by_query = np.unique(queries[part], return_inverse=True)
            rows, by_document = np.unique(documents[part], return_inverse=True)
            vectors = self.vectors("query", asked)[by_query], self.vectors("document", rows)[by_document]
            found[part] = np.einsum("nd,nd->n", *vectors)
            self._progress("scoring candidates", len(by_query))
        return found


def search_bm25(data: TrainingData, queries: Rows, depth: int, progress: Progress) -> Positions:
    """The best documents of each query by BM25, ``[queries, depth]``, best first; -1 where there are fewer.

    Raises:
        MissingDependencyError: bm25s is not installed.
    """
    index = Bm25Index(column_of(data.corpus, "text"))
    where = np.full((len(queries), depth), -1, dtype=np.int64)
    asked: Iterator[str] = column_of(data.examples, "query", queries)
    for number, (positions, _) in enumerate(index.search(asked, depth)):
        where[number, : len(positions)] = positions
        progress("ranking with BM25", 1)
    return where
