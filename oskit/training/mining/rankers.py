"""Who finds candidates: a dense model by exact search over the whole corpus, or BM25."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oskit.evaluation.offline.bm25 import Bm25Index
from oskit.training.data.arrow import column_of
from oskit.training.teachers.teacher import Progress, Rows, VectorTeacher

if TYPE_CHECKING:
    from oskit.training.data.training_data import TrainingData

Positions = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

_BLOCK_DOCUMENTS = 16_384
_BLOCK_QUERIES = 1024


def search_dense(
    teacher: VectorTeacher, data: TrainingData, queries: Rows, depth: int, progress: Progress
) -> tuple[Positions, Scores]:
    """The best documents of each query and their scores, ``[queries, depth]``, best first."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vectors = torch.from_numpy(teacher.vectors(data, "query", queries)).to(device)
    best = torch.full((len(queries), depth), -torch.inf, device=device)
    where = torch.full((len(queries), depth), -1, dtype=torch.int64, device=device)
    for start in range(0, len(data.corpus), _BLOCK_DOCUMENTS):
        rows = np.arange(start, min(start + _BLOCK_DOCUMENTS, len(data.corpus)))
        documents = torch.from_numpy(teacher.vectors(data, "document", rows)).to(device)
        for first in range(0, len(queries), _BLOCK_QUERIES):
            part = slice(first, first + _BLOCK_QUERIES)
            top = (vectors[part] @ documents.T).topk(min(depth, len(rows)), dim=1)
            scores = torch.cat([best[part], top.values], dim=1)
            positions = torch.cat([where[part], top.indices + start], dim=1)
            best[part], order = scores.topk(depth, dim=1)
            where[part] = positions.gather(1, order)
        progress("ranking documents", len(rows))
    return where.cpu().numpy(), best.cpu().numpy()


def search_bm25(data: TrainingData, queries: Rows, depth: int, progress: Progress) -> Positions:
    """The best documents of each query by BM25, ``[queries, depth]``, best first; -1 where there are fewer.

    Raises:
        MissingDependencyError: bm25s is not installed.
    """
    index = Bm25Index(data.passages())
    where = np.full((len(queries), depth), -1, dtype=np.int64)
    found = index.search(column_of(data.examples, "query", queries), depth)
    for number, (positions, _) in enumerate(found):
        where[number, : len(positions)] = positions
        progress("ranking with BM25", 1)
    return where
