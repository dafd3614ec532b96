"""Labels over whole batches: the teachers' own scores, though no teacher is asked while training."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value

from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import DataError, TrainingError
from oskit.evaluation.offline.bm25 import Bm25Index, Bm25Settings
from oskit.training.data.training_data import TrainingData
from oskit.training.recipe.teachers import (
    AnyTeacher,
    Bm25TeacherConfig,
    CrossEncoderConfig,
    DenseTeacherConfig,
    LabelsPart,
    SparseTeacherConfig,
)
from oskit.training.teachers import models as teacher_models
from oskit.training.teachers import teacher
from oskit.training.teachers.batch import BatchTeachers
from oskit.training.teachers.ensemble import EnsembleTeacher, TeacherWarning
from tests.unit.training.teacher_models_tiny import build_cross_encoder, build_dense, build_sparse

QUERIES = ["concrete bridge", "how old is the road", "stone", "floor of the house"]
CORPUS = ["water", "a long bridge of concrete", "a new floor", "wall of stone", "the road is old", "house"]
CANDIDATES = [[1, 0, 3], [4, 2, 3], [3, 1, 4], [2, 3, 0]]
"""Nobody's candidate is the last document."""

ROWS, DOCUMENTS = np.array([2, 0, 3]), np.array([[3, 4], [1, 0], [2, 3]])
"""A batch of three queries, two documents each."""

COLUMNS = [3, 1, 2, 4, 0, 3]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    built = {"dense": build_dense, "sparse": build_sparse, "cross": build_cross_encoder}
    return {name: str(build(folder / name)) for name, build in built.items()}


@pytest.fixture
def data() -> TrainingData:
    number, numbers = Value("int32"), List(Value("int32"))
    features = Features(
        {
            "query": Value("string"),
            "candidates": numbers,
            "positives": number,
            "scores": List(Value("float32")),
            "itself": number,
        }
    )
    columns = {
        "query": QUERIES,
        "candidates": CANDIDATES,
        "positives": [1] * 4,
        "scores": [[]] * 4,
        "itself": [-1] * 4,
    }
    corpus = Dataset.from_dict({"id": CORPUS, "text": CORPUS})
    return TrainingData(Dataset.from_dict(columns, features=features), corpus)


def written(
    tmp_path: Path, data: TrainingData, *teachers: AnyTeacher, **labels: Any
) -> tuple[EnsembleTeacher, BatchTeachers]:
    ensemble = EnsembleTeacher(teachers, LabelsPart(cache_folder=tmp_path / "cache", **labels))
    return ensemble, BatchTeachers.write(ensemble, data, tmp_path / "batch")


def scores_by(models: dict[str, str]) -> dict[str, np.ndarray]:
    """Of the batch's queries and documents, ``[3, 6]``, by other code."""
    from sentence_transformers import SentenceTransformer

    queries, texts = [QUERIES[row] for row in ROWS], [CORPUS[row] for row in COLUMNS]
    dense = SentenceTransformer(models["dense"], device="cpu")
    sparse = NeuralSparseEncoder.from_pretrained(models["sparse"], device="cpu")
    bm25 = np.zeros((3, len(CORPUS)), dtype=np.float32)
    found = Bm25Index(CORPUS, Bm25Settings(language="english")).search(queries, len(CORPUS))
    for row, (positions, values) in enumerate(found):
        bm25[row, positions] = values
    return {
        "dense": dense.similarity(dense.encode(queries), dense.encode(texts)).numpy(),
        "sparse": (sparse.query_matrix(queries) @ sparse.document_matrix(texts).T).toarray(),
        "bm25": bm25[:, COLUMNS],
    }


def minmax(scores: np.ndarray) -> np.ndarray:
    lowest, highest = scores.min(1, keepdims=True), scores.max(1, keepdims=True)
    found: np.ndarray = (scores - lowest) / (highest - lowest)
    return found


def test_labels_are_the_teachers_scores_of_all_documents(
    models: dict[str, str], tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "AT_ONCE", 2)
    _, teachers = written(
        tmp_path,
        data,
        DenseTeacherConfig(name=models["dense"], weight=2),
        SparseTeacherConfig(name=models["sparse"]),
        Bm25TeacherConfig(language="english", normalize="none"),
        scale=8,
    )
    scores = scores_by(models)
    expected = 4 * minmax(scores["dense"]) + 2 * minmax(scores["sparse"]) + 2 * scores["bm25"]
    # As a worker of the data loader gets it, and with autocast as in training.
    tensors = pickle.loads(pickle.dumps(teachers)).collate(ROWS, DOCUMENTS)
    tensors["query_ids"] = torch.arange(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels = teachers.labels(tensors)
    assert labels.dtype == torch.float32
    np.testing.assert_allclose(labels, expected, atol=1e-3)


def test_gathered_batches_are_one_batch(models: dict[str, str], tmp_path: Path, data: TrainingData) -> None:
    """Two processes have tensors of the same sizes, and together the labels of the whole batch."""
    _, teachers = written(
        tmp_path, data, DenseTeacherConfig(name=models["dense"]), Bm25TeacherConfig(language="english")
    )
    whole = teachers.collate(ROWS, DOCUMENTS)
    parts = [teachers.collate(ROWS[part], DOCUMENTS[part]) for part in (slice(0, 1), slice(1, 3))]
    gathered = {name: torch.cat([part[name] for part in parts]) for name in whole}
    for name, tensor in whole.items():
        assert torch.equal(gathered[name], tensor)
    assert torch.equal(teachers.labels(gathered), teachers.labels(whole))


def test_no_label_changes_once_training_began(
    models: dict[str, str], tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that fails is dropped before; later nobody asks a model, whoever opens the folder."""
    compute = teacher_models.SparseTeacher._compute

    def explode(self: Any, model: Any, texts: list[str], side: str) -> list[bytes]:
        if side == "document":
            raise RuntimeError("device lost")
        return compute(self, model, texts, side)  # type: ignore[arg-type]

    monkeypatch.setattr(teacher_models.SparseTeacher, "_compute", explode)
    both = DenseTeacherConfig(name=models["dense"]), SparseTeacherConfig(name=models["sparse"], weight=9)
    with pytest.warns(TeacherWarning, match="device lost"):
        _, teachers = written(tmp_path, data, *both)
    labels = teachers.labels(teachers.collate(ROWS, DOCUMENTS))
    np.testing.assert_allclose(labels, 30 * minmax(scores_by(models)["dense"]), atol=1e-3)

    def refuse(_self: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.undo()
    monkeypatch.setattr(teacher_models.ModelTeacher, "_loaded", refuse)
    again = BatchTeachers(tmp_path / "batch")
    assert torch.equal(again.labels(again.collate(ROWS, DOCUMENTS)), labels)


def test_documents_that_score_alike_are_no_answer(tmp_path: Path, data: TrainingData) -> None:
    _, teachers = written(tmp_path, data, Bm25TeacherConfig(language="english"))
    labels = teachers.labels(teachers.collate(np.array([0]), np.array([[0, 4]])))
    assert labels.tolist() == [[0.0, 0.0]]


def test_what_cannot_label_a_batch(models: dict[str, str], tmp_path: Path, data: TrainingData) -> None:
    with (
        pytest.warns(TeacherWarning, match="a query's own candidates alone"),
        pytest.raises(TrainingError, match="no teacher is left"),
    ):
        written(tmp_path, data, CrossEncoderConfig(name=models["cross"]))
    with pytest.raises(DataError, match=r"vectors in .*nowhere cannot be read"):
        BatchTeachers(tmp_path / "nowhere")
    older = tmp_path / "teachers.json"
    older.write_text('{"scale": 1, "teachers": [{"weight": 1, "longest": {}}]}')
    with pytest.raises(DataError, match="an older oskit wrote them"):
        BatchTeachers(tmp_path)
