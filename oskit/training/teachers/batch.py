"""Labels over whole batches: every document of a batch for each of its queries, computed on the device.

The teachers' vectors are on disk since the data was prepared, so no model is asked while training, on no
process, and no label can change. The vectors of a batch travel with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict

import numpy as np
import torch
from torch import Tensor

from oskit.data.atomic import write_whole
from oskit.errors import DataError, TrainingError
from oskit.training.data.arrow import candidate_rows
from oskit.training.data.training_data import TrainingData
from oskit.training.recipe.teachers import Normalization
from oskit.training.teachers.ensemble import EnsembleTeacher
from oskit.training.teachers.teacher import Progress, VectorTeacher
from oskit.training.teachers.vectors import FILLED_AT_ONCE, Rows, Table, VectorTable, open_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oskit.training.teachers.vectors import Vectors

_FILE = "teachers.json"


class _Facts(TypedDict):
    """Of one teacher: its share, and what its vectors on disk are like."""

    weight: float
    normalize: Normalization
    query: dict[str, Any]
    document: dict[str, Any]


class BatchTeachers:
    """What :meth:`write` left on disk; the data loader's workers and all processes open it for themselves.

    A batch has ``B`` queries, and ``C`` documents of each. A teacher's vectors are dense
    (``teacher_0_query`` float32 ``[B, D]``, ``teacher_0_document`` ``[B, C, D]``) or sparse: ids and weights
    (``teacher_0_query_ids`` int32 and ``…_weights`` float32 ``[B, Q]``, of documents ``[B, C, L]``), as many
    as the longest vector of the data has, padded with the id -1. So all tensors have their sizes from the
    data, and can be gathered over processes.

    Args:
        folder: Where it lies.

    Raises:
        DataError: It is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            found = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"the teachers' vectors in {folder} cannot be read: {error}",
                hint="Remove the folder of the run's data to prepare it anew.",
            ) from error
        self._teachers: list[_Facts] = found["teachers"]
        self._scale: float = found["scale"]
        self._tables: list[tuple[Table, Table]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": None}  # a worker maps the files itself

    @classmethod
    def write(
        cls, teachers: EnsembleTeacher, data: TrainingData, folder: Path, *, progress: Progress | None = None
    ) -> Self:
        """Embed all queries and candidates, before the first step.

        Args:
            teachers: Those that have a weight; one that fails is dropped here, and labels no batch.
            data: The examples as they are trained on, and their corpus.
            folder: Where vectors stay, one for this data alone.
            progress: Told how far it is.

        Raises:
            TrainingError: A required teacher failed, or none is left.
            DataError: The folder cannot be written.
        """
        members = teachers.embed(data, progress)
        total = sum(member.config.weight for member in members)
        rows = np.arange(len(data.examples)), candidate_rows(data.examples, data.corpus)
        facts: list[_Facts] = []
        for number, member in enumerate(members):
            assert isinstance(member.teacher, VectorTeacher)
            tables = member.teacher.tables(data, teachers.folder, progress or (lambda *_: None))
            used = _terms_of_queries(tables[0], rows[0])
            queries, documents = (
                _copied(table, _path(folder, number, side), wanted, used)
                for table, side, wanted in zip(tables, ("query", "document"), rows, strict=True)
            )
            facts.append(
                {
                    "weight": member.config.weight / total,
                    "normalize": teachers.normalization(member),
                    "query": queries,
                    "document": documents,
                }
            )
        # Last of all: its presence says that the rest is whole.
        write_whole(folder / _FILE, json.dumps({"teachers": facts, "scale": teachers.scale}))
        return cls(folder)

    def collate(self, queries: Rows, documents: Rows) -> dict[str, Tensor]:
        """The vectors of a batch.

        Args:
            queries: Rows of the examples, ``[B]``.
            documents: Rows of the corpus, ``[B, C]``.
        """
        found: dict[str, Tensor] = {}
        for number, (asked, there) in enumerate(self._opened()):
            for side, table, rows in (("query", asked, queries), ("document", there, documents)):
                vectors = table.take(rows.ravel())
                if isinstance(vectors, np.ndarray):
                    found[f"teacher_{number}_{side}"] = torch.from_numpy(vectors.reshape(*rows.shape, -1))
                    continue
                longest = max(1, self._teachers[number][side]["longest"])  # type: ignore[literal-required]
                ids, weights = _padded(vectors, longest)
                found[f"teacher_{number}_{side}_ids"] = torch.from_numpy(ids.reshape(*rows.shape, -1))
                found[f"teacher_{number}_{side}_weights"] = torch.from_numpy(weights.reshape(*rows.shape, -1))
        return found

    @torch.no_grad()
    def labels(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Labels of each query and all documents, normalised over them, ``[B, B * C]`` float32.

        Args:
            targets: Of :meth:`collate`, perhaps gathered over processes, on any device; others are ignored.

        Returns:
            On the same device; all first documents, then all second ones, and so on.
        """
        total: Tensor | None = None
        for number, facts in enumerate(self._teachers):
            # In float32 even where the student computes in less.
            with torch.autocast(next(iter(targets.values())).device.type, enabled=False):
                scores = _scores(targets, f"teacher_{number}")
            if facts["normalize"] == "minmax":
                lowest, highest = scores.aminmax(dim=1, keepdim=True)
                # Equal scores are 0 after the subtraction, whatever they are divided by.
                spread = highest - lowest
                scores = (scores - lowest) / torch.where(spread > 0, spread, torch.ones_like(spread))
            scores = scores * (self._scale * facts["weight"])
            total = scores if total is None else total + scores
        if total is None:
            raise TrainingError("no teacher labels whole batches")
        return total

    def _opened(self) -> list[tuple[Table, Table]]:
        if self._tables is None:
            self._tables = [
                (
                    open_table(_path(self._folder, number, "query"), facts["query"]),
                    open_table(_path(self._folder, number, "document"), facts["document"]),
                )
                for number, facts in enumerate(self._teachers)
            ]
        return self._tables


def _path(folder: Path, number: int, side: str) -> Path:
    return folder / f"batch-{number}-{side}"


def _scores(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Inner products of all queries and documents of a batch, ``[B, B * C]``."""
    if f"{name}_query" in tensors:
        return tensors[f"{name}_query"] @ _column_major(tensors[f"{name}_document"]).T
    query_ids, query_weights = tensors[f"{name}_query_ids"], tensors[f"{name}_query_weights"]
    # Of the vocabulary only what some query of the batch has is looked at; -1 comes first.
    terms = torch.unique(torch.cat([query_ids.new_full((1,), -1), query_ids.flatten()]))
    queries = _dense(query_ids, query_weights, terms)
    documents = _dense(
        _column_major(tensors[f"{name}_document_ids"]),
        _column_major(tensors[f"{name}_document_weights"]),
        terms,
    )
    return queries @ documents.T


def _column_major(vectors: Tensor) -> Tensor:
    """``[B, C, n]`` to ``[C * B, n]``: all first documents, then all second ones."""
    return vectors.transpose(0, 1).flatten(0, 1)


def _dense(ids: Tensor, weights: Tensor, terms: Tensor) -> Tensor:
    """The weights of ``terms`` in sparse vectors ``[n, longest]``, ``[n, len(terms)]``; -1 weighs nothing."""
    places = torch.searchsorted(terms, ids).clamp(max=len(terms) - 1)
    weights = torch.where((terms[places] == ids) & (ids >= 0), weights, torch.zeros_like(weights))
    found = weights.new_zeros(len(ids), len(terms))
    return found.scatter_add_(1, places, weights)


def _terms_of_queries(table: VectorTable, rows: Rows) -> NDArray[np.bool_] | None:
    """Which terms any query has, where vectors are sparse: no other counts in a document's score."""
    used: NDArray[np.bool_] | None = None
    for part in np.array_split(rows, -(-len(rows) // FILLED_AT_ONCE)):
        vectors = table.take(part)
        if isinstance(vectors, np.ndarray):
            return None
        used = np.zeros(vectors.shape[1], dtype=bool) if used is None else used
        used[vectors.indices] = True
    return used


def _copied(table: VectorTable, path: Path, rows: Rows, used: NDArray[np.bool_] | None) -> dict[str, Any]:
    """The rows of a table in files of their own; returns what :func:`open_table` needs."""

    def compute(wanted: Rows) -> Vectors:
        vectors = table.take(wanted)
        if not isinstance(vectors, np.ndarray):
            assert used is not None
            vectors.data[~used[vectors.indices]] = 0
            vectors.eliminate_zeros()
        return vectors

    copy = VectorTable(path, len(table.known))
    copy.fill(rows, compute)
    return copy.finish()


def _padded(vectors: Any, longest: int) -> tuple[Any, Any]:
    """Ids and weights of sparse rows, ``[n, longest]``, padded with -1 and 0."""
    counts = np.diff(vectors.indptr)
    there = np.arange(longest) < counts[:, None]
    ids = np.full(there.shape, -1, dtype=np.int32)
    weights = np.zeros(there.shape, dtype=np.float32)
    ids[there], weights[there] = vectors.indices, vectors.data
    return ids, weights
