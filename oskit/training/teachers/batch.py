"""Labels over whole batches: every document of a batch for each of its queries, computed on the device.

The teachers' vectors are on disk since the data was prepared, so no model is asked while training, on no
process, and no label can change. The vectors of a batch travel with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow
import torch
from numpy.typing import NDArray
from torch import Tensor

from oskit.data.atomic import write_whole
from oskit.errors import DataError, TrainingError
from oskit.training.data.arrow import RowWriter, list_column, numbers_of, of_lists, open_rows
from oskit.training.data.training_data import TrainingData
from oskit.training.teachers.ensemble import EnsembleTeacher
from oskit.training.teachers.teacher import Progress, Rows, Side, Teacher, VectorTeacher, tell_nobody

_FILE = "teachers.json"


class BatchTeachers:
    """What :meth:`write` left on disk; the data loader's workers and all processes open it for themselves.

    A batch has ``B`` queries, and ``C`` documents of each. A teacher's vectors are dense
    (``teacher_0_query`` float32 ``[B, D]``, ``teacher_0_document`` ``[B, C, D]``) or sparse: ids and weights
    (``teacher_0_query_ids`` int32 and ``…_weights`` float32 ``[B, Q]``, of documents ``[B, C, L]``), as many
    as the longest vector of the data has, padded with the id -1. So all tensors have their sizes from the
    data, and can be gathered over processes.

    Raises:
        DataError: It is not there, or an older oskit wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            found = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            # Each teacher's share, how it is normalised, and by side its file and the longest sparse vector.
            self._teachers: list[dict[str, Any]] = found["teachers"]
            self._scale: float = found["scale"]
            if any("vectors" not in teacher for teacher in self._teachers):
                raise ValueError("an older oskit wrote them")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"the teachers' vectors in {folder} cannot be read: {error}",
                hint="Remove the folder of the run's data to prepare it anew.",
            ) from error
        self._tables: dict[str, _Table] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}  # a worker maps the files itself

    @classmethod
    def write(
        cls, teachers: EnsembleTeacher, data: TrainingData, folder: Path, *, progress: Progress = tell_nobody
    ) -> Self:
        """Have the teachers with a weight embed all queries and candidates, before the first step.

        One that fails is dropped here, and labels no batch. The folder is for this data alone.

        Raises:
            TrainingError: A required teacher failed, or none is left.
            DataError: The folder cannot be written.
        """
        names = (folder / f"batch-{number}" for number in count())
        asked = teachers.ask(lambda teacher: _write_vectors(teacher, data, next(names), progress))
        total = sum(member.config.weight for member, _ in asked)
        facts = [
            {
                "weight": member.config.weight / total,
                "normalize": teachers.normalization(member),
                "vectors": vectors,
            }
            for member, vectors in asked
        ]
        # Last of all: its presence says that the rest is whole.
        write_whole(folder / _FILE, json.dumps({"teachers": facts, "scale": teachers.labels.scale}))
        return cls(folder)

    def collate(self, queries: Rows, documents: Rows) -> dict[str, Tensor]:
        """The vectors of a batch: rows of the examples ``[B]``, and of the corpus ``[B, C]``."""
        found: dict[str, Tensor] = {}
        for number, facts in enumerate(self._teachers):
            for side, (name, longest) in facts["vectors"].items():
                rows = queries if side == "query" else documents
                if name not in self._tables:
                    self._tables[name] = _Table(self._folder / name, longest)
                for part, values in self._tables[name].take(rows.ravel()).items():
                    tensor = torch.from_numpy(values.reshape(*rows.shape, -1))
                    found[f"teacher_{number}_{side}{part}"] = tensor
        return found

    @torch.no_grad()
    def labels(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Labels of each query and all documents, normalised over them, ``[B, B * C]`` float32: all first
        documents, then all second ones, and so on.

        ``targets`` are of :meth:`collate`, perhaps gathered over processes, on any device.
        """
        found = []
        for number, facts in enumerate(self._teachers):
            # In float32 even where the student computes in less.
            with torch.autocast(next(iter(targets.values())).device.type, enabled=False):
                scores = _scores(targets, f"teacher_{number}")
            if facts["normalize"] == "minmax":
                lowest, highest = scores.aminmax(dim=1, keepdim=True)
                # Equal scores are 0 after the subtraction, whatever they are divided by.
                spread = highest - lowest
                scores = (scores - lowest) / torch.where(spread > 0, spread, torch.ones_like(spread))
            found.append(scores * (self._scale * facts["weight"]))
        if not found:
            raise TrainingError("no teacher labels whole batches")
        return torch.stack(found).sum(0)


def _write_vectors(
    teacher: Teacher, data: TrainingData, path: Path, progress: Progress
) -> dict[Side, tuple[str, int]]:
    """Write the vectors of both sides; returns their files and the active dimensions of the longest ones.

    Of a sparse document only the terms that some query has are written: no other counts in a score.
    """
    if not isinstance(teacher, VectorTeacher):
        raise TrainingError(f"a {teacher.kind} teacher labels a query's own candidates alone")
    used: NDArray[np.bool_] | None = None
    found: dict[Side, tuple[str, int]] = {}
    with ExitStack() as stack:
        for side, rows, vectors in teacher.blocks(data, progress):
            longest = 1
            if isinstance(vectors, np.ndarray):
                columns = {"vector": list_column(vectors.ravel(), np.full(len(rows), vectors.shape[1]))}
            else:
                used = np.zeros(vectors.shape[1], dtype=bool) if used is None else used
                if side == "query":
                    used[vectors.indices] = True
                else:
                    vectors.data[~used[vectors.indices]] = 0
                    vectors.eliminate_zeros()
                counts = np.diff(vectors.indptr)
                longest = int(counts.max(initial=1))
                columns = {
                    "ids": list_column(vectors.indices, counts),
                    "weights": list_column(vectors.data, counts),
                }
            table = pyarrow.table({"row": rows, **columns})
            name, before = found.get(side, (f"{path.name}-{side}.arrow", 1))
            if side not in found:
                writer = stack.enter_context(RowWriter(path.with_name(name), table.schema))
            found[side] = name, max(before, longest)
            writer.add_table(table)
    teacher.release()
    return found


class _Table:
    """Vectors by row, mapped into memory."""

    def __init__(self, path: Path, longest: int) -> None:
        self._vectors = open_rows(path).with_format("arrow")
        self._rows = numbers_of(self._vectors, "row")
        self._longest = longest

    def take(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Dense vectors, or ids and weights as ``[len(rows), longest]``, padded with -1 and 0."""
        table = self._vectors[np.searchsorted(self._rows, rows)]
        if "vector" in table.column_names:
            return {"": np.array(of_lists(table.column("vector"))[1])}
        counts, ids = of_lists(table.column("ids"))
        there = np.arange(self._longest) < counts[:, None]
        padded = np.full(there.shape, -1, dtype=np.int32)
        weights = np.zeros(there.shape, dtype=np.float32)
        padded[there], weights[there] = ids, of_lists(table.column("weights"))[1]
        return {"_ids": padded, "_weights": weights}


def _scores(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Inner products of all queries and documents of a batch, ``[B, B * C]``."""
    if f"{name}_query" in tensors:
        return tensors[f"{name}_query"] @ _column_major(tensors[f"{name}_document"]).T
    query_ids, query_weights = tensors[f"{name}_query_ids"], tensors[f"{name}_query_weights"]
    document_ids, document_weights = (
        _column_major(tensors[f"{name}_document_{part}"]) for part in ("ids", "weights")
    )
    # Of the vocabulary only what some query of the batch has is looked at; -1 comes first.
    terms = torch.unique(torch.cat([query_ids.new_full((1,), -1), query_ids.flatten()]))
    return _dense(query_ids, query_weights, terms) @ _dense(document_ids, document_weights, terms).T


def _column_major(vectors: Tensor) -> Tensor:
    """``[B, C, n]`` to ``[C * B, n]``: all first documents, then all second ones."""
    return vectors.transpose(0, 1).flatten(0, 1)


def _dense(ids: Tensor, weights: Tensor, terms: Tensor) -> Tensor:
    """The weights of ``terms`` in sparse vectors ``[n, longest]``, ``[n, len(terms)]``; -1 weighs nothing."""
    places = torch.searchsorted(terms, ids).clamp(max=len(terms) - 1)
    weights = torch.where((terms[places] == ids) & (ids >= 0), weights, torch.zeros_like(weights))
    found = weights.new_zeros(len(ids), len(terms))
    return found.scatter_add_(1, places, weights)
