"""Teachers: their scores beside sentence-transformers' own, how they become labels, and what failures do."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value

from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.pipeline import in_bulk
from oskit.errors import DataError, TrainingError
from oskit.training.data.training_data import TrainingData
from oskit.training.recipe.recipe import EncoderPart
from oskit.training.recipe.teachers import ItselfTeacherConfig, LabelsPart
from oskit.training.teachers import ensemble
from oskit.training.teachers import models as teacher_models
from oskit.training.teachers import teacher as teacher_module
from oskit.training.teachers.ensemble import EnsembleTeacher, TeacherWarning
from oskit.training.teachers.labels import normalize_scores
from tests import tiny
from tests.hub_server import HubServer
from tests.unit.training.teacher_models_tiny import build_cross_encoder, build_dense, build_sparse

QUERIES = ["concrete bridge", "how old is the road"]
CORPUS = [
    *("water", "a long bridge of concrete", "new floor", "steel wall", "the road is old", "stone house"),
    "nobody's candidate",
]
CANDIDATES = [[1, 0, 3, 5], [4, 2]]


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


def record(
    candidates: list[list[int]] = CANDIDATES, scores: list[list[float]] | None = None, **columns: Any
) -> TrainingData:
    """Training data as it lies on disk."""
    rows = len(candidates)
    features = Features(
        {
            "query": Value("string"),
            "candidates": List(Value("int32")),
            "positives": Value("int32"),
            "scores": List(Value("float32")),
            "itself": Value("int32"),
        }
    )
    examples = {
        "query": columns.get("query", QUERIES[:rows]),
        "candidates": candidates,
        "positives": [1] * rows,
        "scores": scores or [[]] * rows,
        "itself": [-1] * rows,
    }
    texts = columns.get("corpus", CORPUS)
    corpus = Dataset.from_dict({"id": [str(n) for n in range(len(texts))], "text": texts})
    return TrainingData(Dataset.from_dict(examples, features=features), corpus)


@pytest.fixture
def data() -> TrainingData:
    return record()


def teachers_of(tmp_path: Path, *teachers: dict[str, Any], **labels: Any) -> EnsembleTeacher:
    return EnsembleTeacher(teachers, {"cache_folder": tmp_path / "cache", **labels})


def labels_of(teacher: EnsembleTeacher, data: TrainingData) -> list[list[float]]:
    labelled = teacher.label(data)
    for column in ("query", "candidates", "positives", "scores"):
        np.testing.assert_equal(labelled.examples[column][:], data.examples[column][:])
    found: list[list[float]] = labelled.examples["labels"][:]
    return found


def candidates(row: int) -> list[str]:
    return [CORPUS[place] for place in CANDIDATES[row]]


def minmax(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / (scores.max() - scores.min())


def dense_reference(folder: Path, **kwargs: Any) -> list[np.ndarray]:
    """Cosines of each query and its candidates, by sentence-transformers alone."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return [
        model.similarity(
            model.encode([kwargs.get("query", "") + QUERIES[row]]),
            model.encode([kwargs.get("document", "") + text for text in candidates(row)]),
        )[0].numpy()
        for row in range(2)
    ]


def dense(models: Models, **more: Any) -> dict[str, Any]:
    return {"kind": "dense", "name": models.dense, **more}


def sparse(models: Models, **more: Any) -> dict[str, Any]:
    return {"kind": "sparse", "name": models.sparse, **more}


def cross(models: Models, **more: Any) -> dict[str, Any]:
    return {"kind": "cross-encoder", "name": models.cross, **more}


def test_dense_labels_are_scaled_minmax_of_cosines(
    models: Models, tmp_path: Path, data: TrainingData
) -> None:
    labels = labels_of(teachers_of(tmp_path, dense(models)), data)
    for label, cosines in zip(labels, dense_reference(models.dense), strict=True):
        np.testing.assert_allclose(label, 30 * minmax(cosines), atol=1e-3)


def test_prompts_are_put_before_the_texts(models: Models, tmp_path: Path, data: TrainingData) -> None:
    prompts = {"query_prompt": "what: ", "document_prompt": "text: "}
    labels = labels_of(teachers_of(tmp_path, dense(models, **prompts), normalize="none", scale=1), data)
    expected = dense_reference(models.dense, query="what: ", document="text: ")
    for label, cosines in zip(labels, expected, strict=True):
        np.testing.assert_allclose(label, cosines, atol=1e-5)


def test_sparse_scores_are_what_the_cluster_computes(
    models: Models, tmp_path: Path, data: TrainingData
) -> None:
    encoder = NeuralSparseEncoder.from_pretrained(models.sparse, device="cpu")
    itself = EnsembleTeacher(
        [ItselfTeacherConfig()],
        LabelsPart(cache_folder=tmp_path / "cache", normalize="none", scale=1),
        encoder=EncoderPart(name=str(models.sparse)),
    )
    for teacher in (teachers_of(tmp_path, sparse(models), normalize="none", scale=1), itself):
        for row, label in enumerate(labels_of(teacher, data)):
            expected = encoder.query_matrix([QUERIES[row]]) @ encoder.document_matrix(candidates(row)).T
            np.testing.assert_allclose(label, expected.toarray()[0], rtol=1e-5)
    assert (itself.report.teachers[0].kind, itself.report.teachers[0].misses) == ("itself", 0)


def test_cross_encoder_scores_are_raw(models: Models, tmp_path: Path, data: TrainingData) -> None:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(models.cross), device="cpu")
    labels = labels_of(teachers_of(tmp_path, cross(models), normalize="none", scale=1), data)
    for row, label in enumerate(labels):
        pairs = [(QUERIES[row], text) for text in candidates(row)]
        expected = model.predict(pairs, activation_fn=torch.nn.Identity())
        np.testing.assert_allclose(label, expected, rtol=1e-4)


@pytest.mark.parametrize("words", [None, 2])
def test_bm25_labels_are_bm25_over_the_corpus(tmp_path: Path, data: TrainingData, words: int | None) -> None:
    from oskit.evaluation.offline.bm25 import Bm25Index, Bm25Settings

    index = Bm25Index(CORPUS, Bm25Settings(language="english", max_words=words))
    part = {"kind": "bm25", "language": "english", "max_length": words}
    teacher = teachers_of(tmp_path, part, normalize="none", scale=1)
    found = list(index.search(QUERIES, len(CORPUS)))
    for label, row, (positions, scores) in zip(labels_of(teacher, data), CANDIDATES, found, strict=True):
        known = dict(zip(positions.tolist(), scores.tolist(), strict=True))
        np.testing.assert_allclose(label, [known.get(place, 0.0) for place in row], rtol=1e-5)


def test_stored_scores_beside_a_model(models: Models, tmp_path: Path) -> None:
    """A candidate without a stored score, such as a mined one, has the others' label, or none."""
    scored = record(scores=[[2.0, np.nan, 1.0, 0.5], []])
    cosines = [minmax(scores) for scores in dense_reference(models.dense)]
    both = teachers_of(tmp_path, dense(models, weight=3), {"kind": "stored"}, scale=8)
    labels = labels_of(both, scored)
    stored = np.array([1, np.nan, 1 / 3, 0])
    expected = np.where(np.isnan(stored), 8 * cosines[0], 6 * cosines[0] + 2 * stored)
    np.testing.assert_allclose(labels[0], expected, atol=1e-4)
    np.testing.assert_allclose(labels[1], 8 * cosines[1], atol=1e-4)

    raw = {"kind": "stored", "normalize": "none"}
    alone = teachers_of(tmp_path, raw, scale=2)
    np.testing.assert_allclose(labels_of(alone, scored)[0], [4, np.nan, 2, 1])
    assert (alone.report.candidates, alone.report.unknown) == (6, 3)
    with (
        pytest.warns(TeacherWarning, match="the data has no scores"),
        pytest.raises(TrainingError, match="no teacher is left"),
    ):
        teachers_of(tmp_path, raw).label(record())


def test_teacher_reads_other_texts(
    models: Models, tmp_path: Path, data: TrainingData, caplog: pytest.LogCaptureFixture
) -> None:
    """The labels of Swedish texts are those of their English ones; what has none is read as it is."""
    swedish = {text: f"på svenska {number}" for number, text in enumerate([*QUERIES, *CORPUS])}
    translated = record(query=[swedish[q] for q in QUERIES], corpus=[swedish[t] for t in CORPUS])
    file = tmp_path / "english.jsonl"
    lines = [json.dumps({"text": f"{other} ", "read": text}) for text, other in swedish.items()]
    file.write_text("\n".join(lines), encoding="utf-8")
    for one in (dense(models), cross(models), {"kind": "bm25"}):
        teacher = teachers_of(tmp_path, {**one, "texts": file})
        assert labels_of(teacher, translated) == labels_of(teachers_of(tmp_path, one), data)
        assert teacher.report.teachers[0].unread == 0

    file.write_text("\n".join(lines[1:]), encoding="utf-8")
    teacher = teachers_of(tmp_path, dense(models, texts=file))
    labels_of(teacher, translated)
    assert teacher.report.teachers[0].unread == 1
    assert "1 texts read as they are" in str(teacher.report.teachers[0])

    file.write_text('{"text": "of something else", "read": "x"}', encoding="utf-8")
    with pytest.warns(TeacherWarning, match="none of the texts of the data"), pytest.raises(TrainingError):
        teachers_of(tmp_path, dense(models, texts=file)).label(translated)
    file.write_text('{"text": "no read"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"english.jsonl:1: no field 'read'"):
        teachers_of(tmp_path, dense(models, texts=file))


def test_ensemble_averages_normalised_scores_by_weight(
    models: Models, tmp_path: Path, data: TrainingData
) -> None:
    parts = [dense(models, weight=3), sparse(models, weight=1), dense(models, weight=0, query_prompt="x")]
    alone = [labels_of(teachers_of(tmp_path, {**part, "weight": 1}, scale=1), data) for part in parts]
    both = teachers_of(tmp_path, *parts, scale=10)
    for row, label in enumerate(labels_of(both, data)):
        expected = 10 * (0.75 * np.array(alone[0][row]) + 0.25 * np.array(alone[1][row]))
        np.testing.assert_allclose(label, expected, atol=1e-4)
    assert [teacher.effective_weight for teacher in both.report.teachers] == [0.75, 0.25, 0]
    assert [teacher.status for teacher in both.report.teachers] == ["used", "used", "unused"]


def test_blocks_do_not_matter(
    models: Models, tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [dense(models), sparse(models), cross(models), {"kind": "bm25"}]
    whole = labels_of(teachers_of(tmp_path, *parts), data)
    monkeypatch.setattr(ensemble, "_EXAMPLES", 1)
    monkeypatch.setattr(teacher_module, "AT_ONCE", 2)
    again = record(candidates=[CANDIDATES[1], CANDIDATES[0], CANDIDATES[0]], query=[QUERIES[1], *QUERIES])
    chosen = again.with_examples(again.examples.select([1, 0]))
    other = labels_of(teachers_of(tmp_path / "other", *parts), chosen)
    for found, expected in zip(other, whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_normalize_by_hand() -> None:
    scores = np.array([1, 3, 2, 5, 5, 7, np.nan, 4, 8], dtype=np.float32)
    counts = np.array([3, 2, 0, 1, 3])
    found = normalize_scores(scores, counts)
    np.testing.assert_equal(found, [0, 1, 0.5, 0, 0, 0, np.nan, 0, 1])
    np.testing.assert_equal(normalize_scores(scores, counts, "none"), scores)


def test_example_with_one_candidate_and_former_labels(models: Models, tmp_path: Path) -> None:
    teacher = teachers_of(tmp_path, dense(models))
    once = teacher.label(record([[1]]))
    assert teacher.label(once).examples["labels"][:] == [[0.0]]


def test_second_run_loads_no_model(
    models: Models, tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [dense(models), sparse(models), cross(models)]
    first = teachers_of(tmp_path, *parts)
    before = labels_of(first, data)
    # 2 queries and 6 texts, or 6 pairs; the document that is nobody's candidate is not read.
    assert [(t.hits, t.misses) for t in first.report.teachers] == [(0, 8), (0, 8), (0, 6)]

    def refuse(_self: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(teacher_models.ModelTeacher, "_loaded", refuse)
    again = teachers_of(tmp_path, *parts)
    assert labels_of(again, data) == before
    assert [(t.hits, t.misses) for t in again.report.teachers] == [(8, 0), (8, 0), (6, 0)]


def test_several_devices_compute_what_one_does(
    models: Models, tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a launcher started several processes, the first computes on the devices of all."""
    parts = [dense(models), sparse(models), cross(models)]
    alone = labels_of(teachers_of(tmp_path, *parts), data)
    monkeypatch.setattr(teacher_models, "devices_of", lambda _: ["cpu", "cpu", "cpu"])
    teacher = teachers_of(tmp_path / "other", *parts)
    for found, expected in zip(labels_of(teacher, data), alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert [t.misses for t in teacher.report.teachers] == [8, 8, 6]

    monkeypatch.undo()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(teacher_models.util, "get_device_name", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert teacher_models.devices_of(None) == ["cuda:0", "cuda:1", "cuda:2"]
    assert teacher_models.devices_of("cuda:1") == ["cuda:1"]
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert teacher_models.devices_of(None) == ["cuda"], "nobody asked for the others"


def test_other_weights_or_prompts_are_another_teacher(
    models: Models, tmp_path: Path, data: TrainingData
) -> None:
    teachers_of(tmp_path, dense(models)).label(data)
    copy = shutil.copytree(models.dense, tmp_path / "copy")
    moved = teachers_of(tmp_path, {"kind": "dense", "name": copy})
    moved.label(data)
    assert moved.report.teachers[0].misses == 0, "where the folder is does not matter"
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = np.float32(0.125).tobytes()
    weights.write_bytes(content)
    for one in ({"kind": "dense", "name": copy}, dense(models, query_prompt="query: ")):
        other = teachers_of(tmp_path, one)
        other.label(data)
        assert other.report.teachers[0].hits == 0


def test_missing_teacher_is_dropped_loudly(models: Models, tmp_path: Path, data: TrainingData) -> None:
    missing = {"kind": "sparse", "name": str(tmp_path / "nowhere")}
    with pytest.warns(TeacherWarning, match="sparse teacher .*nowhere is DROPPED"):
        teacher = teachers_of(tmp_path, missing, dense(models))
    dropped = teacher.report.teachers[0]
    assert (dropped.kind, dropped.weight, dropped.effective_weight) == ("sparse", 1, 0)
    assert "no file or folder" in str(dropped.reason)
    assert dropped.status == "dropped" and "DROPPED" in str(dropped)
    assert teacher.report.teachers[1].effective_weight == 1
    assert labels_of(teacher, data) == labels_of(teachers_of(tmp_path, dense(models)), data)


@pytest.mark.parametrize("after", [0, 1])
def test_teacher_that_fails_in_the_middle_is_in_no_label(
    models: Models, tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    done: list[int] = []
    compute = teacher_models.CrossEncoderTeacher._compute

    def explode(self: Any, model: Any, pairs: Any) -> Any:
        if len(done) == after:
            raise RuntimeError("device lost")
        done.append(len(pairs))
        return compute(self, model, pairs)

    monkeypatch.setattr(teacher_models, "_EXAMPLES", 1)
    monkeypatch.setattr(teacher_models.CrossEncoderTeacher, "_compute", explode)
    teacher = teachers_of(tmp_path, cross(models, weight=3), dense(models))
    with pytest.warns(TeacherWarning, match="device lost"):
        labels = labels_of(teacher, data)
    assert labels == labels_of(teachers_of(tmp_path, dense(models)), data)
    assert [(t.status, t.reason) for t in teacher.report.teachers] == [
        ("dropped", "device lost"),
        ("used", None),
    ]
    monkeypatch.undo()
    assert labels_of(teacher, data) == labels, "it stays out though it could be asked again"


def test_teacher_that_fails_when_it_has_labelled_is_an_error(
    models: Models, tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teachers_of(tmp_path, sparse(models), dense(models))
    teacher.label(record([[1, 0]]))

    def explode(*_args: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(teacher_models.SparseTeacher, "_compute", explode)
    with pytest.raises(TrainingError, match="labels of it are written already: device lost"):
        teacher.label(data)


def test_vectors_that_are_not_finite_drop_the_teacher(
    models: Models, tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: object, _model: object, texts: list[str], _side: str) -> list[bytes]:
        return [np.full(4, np.nan, dtype=np.float32).tobytes() for _ in texts]

    monkeypatch.setattr(teacher_models.DenseTeacher, "_compute", broken)
    teacher = teachers_of(tmp_path, dense(models))
    with (
        pytest.warns(TeacherWarning, match="not finite"),
        pytest.raises(TrainingError, match="no teacher is left"),
    ):
        teacher.label(data)


def test_required_teacher_is_an_error(models: Models, tmp_path: Path) -> None:
    missing = {"kind": "sparse", "name": str(tmp_path / "nowhere"), "required": True}
    with pytest.raises(TrainingError, match="nowhere failed"):
        teachers_of(tmp_path, dense(models), missing)


def test_none_left_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.warns(TeacherWarning),
        pytest.raises(TrainingError, match="no teacher is left: the dense") as caught,
    ):
        teachers_of(tmp_path, {"kind": "dense", "name": str(tmp_path / "nowhere")})
    assert caught.value.exit_code == 11


@pytest.mark.parametrize("saved", [False, True])
def test_random_projection_is_refused(
    models: Models, tmp_path: Path, data: TrainingData, saved: bool
) -> None:
    headless = tiny.build("bert-headless", tmp_path / "headless")
    if saved:
        with pytest.warns(UserWarning):
            encoder = NeuralSparseEncoder.from_pretrained(headless, base=headless, device="cpu")
        encoder.save_pretrained(str(tmp_path / "random"))
    random = {"kind": "sparse", "name": tmp_path / "random" if saved else headless}
    teacher = teachers_of(tmp_path, dense(models), random)
    with pytest.warns(TeacherWarning, match="sparse teacher"):
        teacher.label(data)
    assert [(t.kind, t.status) for t in teacher.report.teachers] == [("dense", "used"), ("sparse", "dropped")]
    required = teachers_of(tmp_path, dense(models), {**random, "required": True})
    with pytest.raises(TrainingError, match="sparse teacher"):
        required.label(data)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_cross_encoder_whose_head_would_be_random_is_dropped(
    models: Models, tmp_path: Path, data: TrainingData, kind: str
) -> None:
    """Any encoder opens as one: transformers makes up the head that it lacks."""
    folder = models.sparse if kind == "sparse" else tiny.build("bert-headless", tmp_path / "headless")
    teacher = teachers_of(tmp_path, dense(models), {"kind": "cross-encoder", "name": str(folder)})
    with pytest.warns(TeacherWarning, match="the head that scores pairs would be a random one"):
        teacher.label(data)
    assert [one.status for one in teacher.report.teachers] == ["used", "dropped"]


def test_teacher_of_the_hub_by_name(
    models: Models, tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    local = labels_of(teachers_of(tmp_path, dense(models)), data)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        server.add("team/dense", models.dense)
        there = {"kind": "dense", "name": "team/dense"}
        teacher = teachers_of(tmp_path, there)
        assert labels_of(teacher, data) == local
        assert teacher.report.teachers[0].misses == 0, "the same weights, so the folder's scores are its own"
        with pytest.warns(TeacherWarning, match="team/nothing is DROPPED.*404"):
            teachers_of(tmp_path, there, {"kind": "sparse", "name": "team/nothing"})


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "cpu"],
)
def test_out_of_memory_halves_the_batch(failure: RuntimeError) -> None:
    """Only what did not fit is computed again; rows come back in the order of the texts."""
    texts = [f"{'word ' * (number % 3)}{number:02}" for number in range(40)]
    tried: list[int] = []

    def run(batch: list[str]) -> np.ndarray:
        tried.append(len(batch))
        if len(batch) > 12:
            raise failure
        return np.array([[int(text[-2:]), len(text)] for text in batch], dtype=np.float32)

    found = in_bulk(texts, run, texts=str, max_length=512, hidden_size=32, device=torch.device("cpu"))
    np.testing.assert_array_equal(found, [[number, len(text)] for number, text in enumerate(texts)])
    assert tried == [40, 20, 10, 10, 10, 10]
    with pytest.raises(type(failure)):
        in_bulk(
            texts[:1],
            lambda _: (_ for _ in ()).throw(failure),
            texts=str,
            max_length=512,
            hidden_size=32,
            device=torch.device("cpu"),
        )
