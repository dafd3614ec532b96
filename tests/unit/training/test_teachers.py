"""Teachers: their scores beside sentence-transformers' own, how they become labels, and what failures do."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import TrainingError
from oskit.training.recipe.recipe import Recipe
from oskit.training.teachers import models as teacher_models
from oskit.training.teachers.ensemble import EnsembleTeacher, TeacherWarning, normalize_scores
from tests import tiny
from tests.hub_server import HubServer
from tests.unit.training.teacher_models_tiny import build_cross_encoder, build_dense, build_sparse

ROWS = {
    "query": ["concrete bridge", "how old is the road"],
    "positive": ["a long bridge of concrete", "the road is old"],
    "negatives": [["water", "steel wall", "stone house"], ["new floor"]],
}


@dataclass
class Models:
    """Folders of the tiny teachers."""

    dense: Path
    sparse: Path
    cross: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("teachers")
    return Models(
        build_dense(folder / "dense"), build_sparse(folder / "sparse"), build_cross_encoder(folder / "cross")
    )


@pytest.fixture
def examples() -> Dataset:
    return Dataset.from_dict(ROWS)


def ensemble(tmp_path: Path, **teachers: Any) -> EnsembleTeacher:
    labels = {key: teachers.pop(key) for key in ("normalize", "scale") if key in teachers}
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "encoder": {"name": "x"},
            "data": {"train": ["x"]},
            "teachers": [{"kind": kind.replace("_", "-"), **part} for kind, part in teachers.items()],
            "labels": {"cache_folder": tmp_path / "cache", **labels},
        }
    )
    return EnsembleTeacher(recipe.teachers, recipe.labels)


def candidates(row: int) -> list[str]:
    return [ROWS["positive"][row], *ROWS["negatives"][row]]


def minmax(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / (scores.max() - scores.min())


def dense_reference(folder: Path, **kwargs: Any) -> list[np.ndarray]:
    """Cosines of each query and its candidates, by sentence-transformers alone."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return [
        model.similarity(
            model.encode([kwargs.get("query", "") + ROWS["query"][row]]),
            model.encode([kwargs.get("document", "") + text for text in candidates(row)]),
        )[0].numpy()
        for row in range(2)
    ]


def test_dense_labels_are_scaled_minmax_of_cosines(models: Models, tmp_path: Path, examples: Dataset) -> None:
    labelled = ensemble(tmp_path, dense={"name": models.dense}).scores(examples)
    assert labelled.column_names == ["query", "positive", "negatives", "label"]
    for label, cosines in zip(labelled["label"], dense_reference(models.dense), strict=True):
        np.testing.assert_allclose(label, 30 * minmax(cosines), atol=1e-3)


def test_prompts_are_put_before_the_texts(models: Models, tmp_path: Path, examples: Dataset) -> None:
    dense = {"name": models.dense, "query_prompt": "what: ", "document_prompt": "text: "}
    labelled = ensemble(tmp_path, dense=dense, normalize="none", scale=1).scores(examples)
    expected = dense_reference(models.dense, query="what: ", document="text: ")
    for label, cosines in zip(labelled["label"], expected, strict=True):
        np.testing.assert_allclose(label, cosines, atol=1e-5)


def test_sparse_scores_are_what_the_cluster_computes(
    models: Models, tmp_path: Path, examples: Dataset
) -> None:
    encoder = NeuralSparseEncoder.from_pretrained(models.sparse, device="cpu")
    labelled = ensemble(tmp_path, sparse={"name": models.sparse, "weight": 1}, normalize="none", scale=1)
    for row, label in enumerate(labelled.scores(examples)["label"]):
        expected = encoder.query_matrix([ROWS["query"][row]]) @ encoder.document_matrix(candidates(row)).T
        np.testing.assert_allclose(label, expected.toarray()[0], rtol=1e-5)


def test_cross_encoder_scores_are_raw(models: Models, tmp_path: Path, examples: Dataset) -> None:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(models.cross), device="cpu")
    teacher = ensemble(tmp_path, cross_encoder={"name": models.cross, "weight": 1}, normalize="none", scale=1)
    for row, label in enumerate(teacher.scores(examples)["label"]):
        pairs = [(ROWS["query"][row], text) for text in candidates(row)]
        expected = model.predict(pairs, activation_fn=torch.nn.Identity())
        np.testing.assert_allclose(label, expected, rtol=1e-4)


def test_ensemble_averages_normalised_scores_by_weight(
    models: Models, tmp_path: Path, examples: Dataset
) -> None:
    parts = {
        "dense": {"name": models.dense, "weight": 3},
        "sparse": {"name": models.sparse, "weight": 1},
    }
    alone = [
        ensemble(tmp_path, **{kind: {**part, "weight": 1}}, scale=1).scores(examples)["label"]
        for kind, part in parts.items()
    ]
    both = ensemble(tmp_path, **parts, scale=10)
    for row, label in enumerate(both.scores(examples)["label"]):
        expected = 10 * (0.75 * np.array(alone[0][row]) + 0.25 * np.array(alone[1][row]))
        np.testing.assert_allclose(label, expected, atol=1e-4)
    assert [teacher.effective_weight for teacher in both.report.teachers] == [0.75, 0.25]


def test_normalize_by_hand() -> None:
    scores = np.array([1, 3, 2, 5, 5, 7], dtype=np.float32)
    found = normalize_scores(scores, np.array([0, 3, 5, 6]))
    assert found.tolist() == [0, 1, 0.5, 0, 0, 0]
    assert normalize_scores(scores, np.array([0, 3, 5, 6]), "none").tolist() == scores.tolist()


def test_score_matrix_normalises_over_the_batch(models: Models, tmp_path: Path) -> None:
    teacher = ensemble(
        tmp_path, dense={"name": models.dense}, cross_encoder={"name": models.cross, "weight": 1}
    )
    queries, texts = ["water", "old road", "beam"], ["steel", "a new road", "water is weight"]
    found = teacher.score_matrix(queries, texts)
    dense = np.array(
        [minmax(row) for row in teacher.dense.embed_queries(queries) @ teacher.dense.embed_documents(texts).T]
    )
    cross = ensemble(tmp_path, cross_encoder={"name": models.cross, "weight": 1}, normalize="none", scale=1)
    expected = 15 * dense + 15 * np.array([minmax(row) for row in cross.score_matrix(queries, texts)])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_example_without_negatives_and_former_labels(models: Models, tmp_path: Path) -> None:
    rows = {"query": ["water"], "positive": ["steel"], "negatives": [[]], "label": [[4.0]]}
    labelled = ensemble(tmp_path, dense={"name": models.dense}).scores(Dataset.from_dict(rows))
    assert labelled["label"][0] == [0.0]


def test_second_run_loads_no_model(
    models: Models, tmp_path: Path, examples: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = {
        "dense": {"name": models.dense},
        "sparse": {"name": models.sparse, "weight": 1},
        "cross_encoder": {"name": models.cross, "weight": 1},
    }
    first = ensemble(tmp_path, **teachers)
    before = first.scores(examples)["label"][:]
    # 2 queries and 6 texts, or 6 pairs.
    assert [(t.hits, t.misses) for t in first.report.teachers] == [(0, 8), (0, 8), (0, 6)]

    def refuse(_self: object) -> None:
        raise AssertionError("a model was loaded")

    for kind in ("DenseTeacher", "SparseTeacher", "CrossEncoderTeacher"):
        monkeypatch.setattr(getattr(teacher_models, kind), "_loaded", refuse)
    again = ensemble(tmp_path, **teachers)
    assert again.scores(examples)["label"][:] == before
    assert [(t.hits, t.misses) for t in again.report.teachers] == [(8, 0), (8, 0), (6, 0)]


def test_other_weights_or_prompts_are_another_teacher(
    models: Models, tmp_path: Path, examples: Dataset
) -> None:
    ensemble(tmp_path, dense={"name": models.dense}).scores(examples)
    copy = shutil.copytree(models.dense, tmp_path / "copy")
    moved = ensemble(tmp_path, dense={"name": copy})
    moved.scores(examples)
    assert moved.report.teachers[0].misses == 0, "where the folder is does not matter"
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = np.float32(0.125).tobytes()
    weights.write_bytes(content)
    for dense in ({"name": copy}, {"name": models.dense, "query_prompt": "query: "}):
        other = ensemble(tmp_path, dense=dense)
        other.scores(examples)
        assert other.report.teachers[0].hits == 0


def test_missing_teacher_is_dropped_loudly(
    models: Models, tmp_path: Path, examples: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    missing = str(tmp_path / "nowhere")
    with (
        caplog.at_level(logging.WARNING),
        pytest.warns(TeacherWarning, match="sparse teacher .*nowhere is DROPPED"),
    ):
        teacher = ensemble(tmp_path, dense={"name": models.dense}, sparse={"name": missing, "weight": 1})
    assert "nowhere" in caplog.text
    (dropped,) = teacher.report.dropped
    assert (dropped.kind, dropped.weight, dropped.effective_weight) == ("sparse", 1, 0)
    assert "no file or folder" in str(dropped.reason)
    assert "DROPPED" in str(teacher.report)
    assert teacher.report.teachers[0].effective_weight == 1
    labels = teacher.scores(examples)["label"]
    assert labels[:] == ensemble(tmp_path, dense={"name": models.dense}).scores(examples)["label"][:]


def test_teacher_that_fails_while_scoring_is_dropped_whole(
    models: Models, tmp_path: Path, examples: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_args: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(teacher_models.CrossEncoderTeacher, "_compute", explode)
    teachers = {"dense": {"name": models.dense}, "cross_encoder": {"name": models.cross, "weight": 3}}
    teacher = ensemble(tmp_path, **teachers)
    with pytest.warns(TeacherWarning, match="device lost"):
        labels = teacher.scores(examples)["label"][:]
    assert [max(label) for label in labels] == [30, 30]
    assert [t.reason for t in teacher.report.dropped] == ["device lost"]


def test_scores_that_are_not_finite_drop_the_teacher(
    models: Models, tmp_path: Path, examples: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: object, texts: list[str], _side: str) -> list[bytes]:
        return [np.full(4, np.nan, dtype=np.float32).tobytes() for _ in texts]

    monkeypatch.setattr(teacher_models.DenseTeacher, "_compute", broken)
    teacher = ensemble(tmp_path, dense={"name": models.dense})
    with (
        pytest.warns(TeacherWarning, match="not finite"),
        pytest.raises(TrainingError, match="no teacher is left"),
    ):
        teacher.scores(examples)


def test_required_teacher_is_an_error(models: Models, tmp_path: Path) -> None:
    missing = {"name": str(tmp_path / "nowhere"), "weight": 1, "required": True}
    with pytest.raises(TrainingError, match="nowhere failed"):
        ensemble(tmp_path, dense={"name": models.dense}, sparse=missing)


def test_none_left_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.warns(TeacherWarning),
        pytest.raises(TrainingError, match="no teacher is left: dense") as caught,
    ):
        ensemble(tmp_path, dense={"name": str(tmp_path / "nowhere")})
    assert caught.value.exit_code == 11


@pytest.mark.parametrize("saved", [False, True])
def test_random_projection_is_refused(models: Models, tmp_path: Path, examples: Dataset, saved: bool) -> None:
    headless = tiny.build("bert-headless", tmp_path / "headless")
    if saved:
        with pytest.warns(UserWarning):
            encoder = NeuralSparseEncoder.from_pretrained(headless, base=headless, device="cpu")
        encoder.save_pretrained(str(tmp_path / "random"))
    sparse = {"name": tmp_path / "random" if saved else headless, "weight": 1}
    teacher = ensemble(tmp_path, dense={"name": models.dense}, sparse=sparse)
    with pytest.warns(TeacherWarning, match="sparse teacher"):
        teacher.scores(examples)
    assert [t.kind for t in teacher.report.dropped] == ["sparse"]
    required = ensemble(tmp_path, dense={"name": models.dense}, sparse={**sparse, "required": True})
    with pytest.raises(TrainingError, match="sparse teacher"):
        required.scores(examples)


def test_teacher_of_the_hub_by_name(
    models: Models, tmp_path: Path, examples: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    local = ensemble(tmp_path, dense={"name": models.dense}).scores(examples)["label"][:]
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        server.add("team/dense", models.dense)
        teacher = ensemble(tmp_path, dense={"name": "team/dense"})
        assert teacher.scores(examples)["label"][:] == local
        assert teacher.report.teachers[0].misses == 0, "the same weights, so the folder's scores are its own"
        missing = {"name": "team/nothing", "weight": 1}
        with pytest.warns(TeacherWarning, match="team/nothing is DROPPED.*404"):
            ensemble(tmp_path, dense={"name": "team/dense"}, sparse=missing)


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "cpu"],
)
def test_out_of_memory_halves_the_batch(
    models: Models,
    tmp_path: Path,
    examples: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    failure: RuntimeError,
) -> None:
    tried: list[int] = []

    class Hungry:
        def __init__(self, *_: object, **_options: object) -> None:
            pass

        def embed_queries(self, texts: list[str], *, batch_size: int) -> np.ndarray:
            tried.append(batch_size)
            if batch_size > 4:
                raise failure
            return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

        embed_documents = embed_queries

    monkeypatch.setattr(teacher_models, "DenseModel", Hungry)
    labels = ensemble(tmp_path, dense={"name": models.dense, "batch_size": 16}).scores(examples)["label"]
    assert tried == [16, 8, 4] * 2
    assert labels[1] == [30.0, 0.0]


def test_weight_zero_is_not_even_looked_for(models: Models, tmp_path: Path) -> None:
    sparse = {"name": str(tmp_path / "nowhere"), "weight": 0}
    teacher = ensemble(tmp_path, dense={"name": models.dense}, sparse=sparse)
    assert [t.status for t in teacher.report.teachers] == ["used", "unused"]
