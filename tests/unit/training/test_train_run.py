"""A whole run, from pairs of texts to an encoder that retrieves better, and what happens on the way."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import DataError, TrainingError, TrainingInterrupted
from oskit.training.loop import stages
from oskit.training.loop.events import Listener
from oskit.training.loop.run import train
from oskit.training.recipe.file import load_recipe
from oskit.training.report.result import StageResult
from oskit.training.teachers.ensemble import EnsembleTeacher
from tests import tiny
from tests.unit.training.teacher_models_tiny import build_dense
from tests.unit.training.word_pairs import write_pairs

WORDS = (
    *("concrete", "bridge", "water", "road", "stone", "house", "old"),
    *("world", "steel", "wall", "floor", "roof", "beam", "load"),
)


class Recorder(Listener):
    """What was told; presses Ctrl-C at a step."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.steps: list[int] = []
        self.warnings: list[str] = []
        self.finished: list[str] = []
        self.measured: list[int] = []
        self._interrupt_at = interrupt_at

    def step(self, step: int, steps: int, logs: Mapping[str, float]) -> None:
        self.steps.append(step)
        if step == self._interrupt_at:
            signal.raise_signal(signal.SIGINT)

    def evaluated(self, step: int, figures: Any) -> None:
        self.measured.append(step)

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def stage_finished(self, result: StageResult) -> None:
        self.finished.append(result.name)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT at random, without dropout: 32 numbers are too few to lose some."""
    return tiny.without_dropout(tiny.build("bert", tmp_path_factory.mktemp("run") / "base"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A document for every two words, and the two words as its query."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", WORDS)


def recipe(base: Path, pairs: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "tiny",
        "encoder": {"name": str(base), "max_length": 16},
        "data": {"train": [str(pairs)], "hold_out": 0.3},
        "loss": [{"kind": "info_nce"}],
        "sparsity": {"documents": {"weight": 1e-3}, "queries": {"weight": 1e-3}},
        "schedule": {"steps": 60, "batch_size": 32, "learning_rate": 5e-3, "evaluate_every": 30},
    }
    return {**values, **changes}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_training_makes_retrieval_better_on_queries_it_never_saw(
    base: Path, pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = Recorder()
    result = train(recipe(base, pairs), tmp_path / "run", listener=told)

    assert "widget" not in capfd.readouterr().err, "nothing is encoded for sentence-transformers' own card"
    assert result.after.ndcg > result.before.ndcg + 0.3
    assert result.stages[0].gain.is_significant
    assert told.steps[-1] == 60
    assert told.measured == [30, 60]
    assert told.finished == ["tiny"]

    held_out = Collection.open(tmp_path / "run" / "data" / "held-out")
    trained = Dataset.from_file(str(tmp_path / "run" / "data" / "ready.arrow"))["query"]
    assert len(trained) + len(held_out.queries) == len(pairs.read_text().splitlines())
    assert not set(held_out.queries.values()) & set(trained)
    encoder = NeuralSparseEncoder.from_pretrained(result.encoder, fallback=False)
    assert encoder.max_length == 16
    assert result.load().document_matrix(["a bridge"]).nnz == encoder.document_matrix(["a bridge"]).nnz
    _check_folder(tmp_path / "run", result.after.ndcg)


def _check_folder(folder: Path, ndcg: float) -> None:
    report = json.loads((folder / "report.json").read_text())
    stage = report["stages"][0]
    assert stage["before"]["nDCG@10 pooled"] < stage["after"]["nDCG@10 pooled"], "one yardstick for both"
    assert stage["verdict"].startswith("on held-out queries the encoder is better than before")
    assert "cannot tell" in stage["limits"][-1]
    judged = Collection.open(folder / "data" / "held-out", "pooled")
    assert judged.queries == Collection.open(folder / "data" / "held-out").queries
    assert report["stages"][0]["after"]["nDCG@10"] == ndcg
    with (folder / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["step"] == "0"
    assert {"loss", "info_nce", "document_penalty", "nDCG@10", "FLOPS"} <= set(rows[0])
    assert (folder / "curves.png").stat().st_size > 5000
    assert f"{ndcg:.4f}" in (folder / "README.md").read_text()
    gain = stage["after"]["nDCG@10 pooled"] - stage["before"]["nDCG@10 pooled"]
    assert f"In training pooled nDCG@10 changed by {gain:+.3f}" in (folder / "README.md").read_text()
    told = ModelCard.load(folder / "README.md").data  # as the Hub reads it
    figures = {found.metric_type: found.metric_value for found in told.eval_results}
    assert figures["dot_ndcg@10"] == pytest.approx(ndcg, abs=1e-4)
    assert (told.library_name, told.base_model) == ("sentence-transformers", None)
    assert "torch" in json.loads((folder / "environment.json").read_text())["packages"]
    assert [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_training_reads_less_of_a_text_than_the_encoder_it_makes(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    """Cutting texts short makes training cheap; the encoder goes on reading as much of them as it did."""
    long = tmp_path / "long.jsonl"
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    long.write_text(
        "".join(json.dumps({**row, "positive": f"{row['positive']} " * 20}) + "\n" for row in rows)
    )
    short = {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "evaluate_every": 6}
    encoder = {"name": str(base)}
    made = train(
        recipe(base, long, encoder=encoder, schedule={**short, "max_length": 8}), tmp_path / "training"
    )
    cut = train(
        recipe(base, long, encoder={**encoder, "max_length": 8}, schedule=short), tmp_path / "for-good"
    )
    for name, weight in weights(cut.encoder).items():
        assert torch.equal(weights(made.encoder)[name], weight), "it learned from the same tokens"
    assert (made.load().max_length, cut.load().max_length) == (512, 8)
    assert made.before.document_active > cut.before.document_active, "it is measured as it is used"
    lengths = made.stages[0].lengths
    assert (lengths.max_length, lengths.shortened_from, lengths.trained) == (512, None, 8)
    assert lengths.truncation is not None and lengths.truncation.cut and lengths.longest == 8
    assert any("training texts are longer than 8 tokens" in line for line in lengths.lines)


def test_what_is_kept_is_averaged_measured_and_saved(base: Path, pairs: Path, tmp_path: Path) -> None:
    """encoder.keep: on a straight line between the encoder as it was and as training left it."""
    short = {"steps": 8, "batch_size": 8, "learning_rate": 5e-3, "evaluate_every": 8}
    whole = train(recipe(base, pairs, schedule=short), tmp_path / "whole")
    kept = {"name": str(base), "max_length": 16, "keep": 0.4}
    half = train(recipe(base, pairs, schedule=short, encoder=kept), tmp_path / "half")
    encoders = (NeuralSparseEncoder.from_pretrained(base), whole.load(), half.load())
    before, after, found = (
        {name: value.detach() for name, value in encoder.named_parameters()} for encoder in encoders
    )
    assert max(float((after[name] - value).abs().max()) for name, value in before.items()) > 1e-3
    for name, value in before.items():
        torch.testing.assert_close(found[name], 0.4 * value + 0.6 * after[name])
    log = [json.loads(line) for line in (tmp_path / "half" / "log.jsonl").read_text().splitlines()]
    measured = next(entry["eval_ndcg@10"] for entry in log if "eval_ndcg@10" in entry)
    assert measured == pytest.approx(half.after.ndcg), "figures while it trains are of what would be saved"


def test_a_run_that_was_interrupted_ends_with_the_same_encoder(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teachers label whole batches of it, and are gone when it goes on: no label depends on them any more."""
    dense = build_dense(tmp_path / "dense")
    values = recipe(
        base,
        pairs,
        teachers=[{"kind": "dense", "name": str(dense)}, {"kind": "bm25"}],
        labels={"cache_folder": str(tmp_path / "cache")},
        loss=[{"kind": "kl", "candidates": "batch"}, {"kind": "info_nce"}],
        schedule={"steps": 12, "batch_size": 8, "learning_rate": 1e-3, "evaluate_every": 4},
    )
    whole = train(values, tmp_path / "whole")

    # Step 6 is told once it is done and logged; the signal then lets the one after it end.
    with pytest.raises(TrainingInterrupted, match="step 7 of 12") as caught:
        train(values, tmp_path / "parts", listener=Recorder(interrupt_at=6))
    assert caught.value.exit_code == 130
    assert (tmp_path / "parts" / "checkpoints" / "checkpoint-7").is_dir()

    shutil.rmtree(dense)

    def gone(*_args: object) -> None:
        raise RuntimeError("the teacher is gone")

    monkeypatch.setattr(EnsembleTeacher, "_open", gone)
    told = Recorder()
    resumed = train(values, tmp_path / "parts", resume=True, listener=told)

    assert told.steps[0] == 8
    assert resumed.after == whole.after
    ours, theirs = weights(resumed.encoder), weights(whole.encoder)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    # A run that is done is read, not done again.
    again = Recorder()
    assert train(values, tmp_path / "parts", resume=True, listener=again).after == whole.after
    assert not again.steps


def interrupted(values: dict[str, Any], folder: Path) -> Path:
    """A run that ended before its time; its last checkpoint."""
    with pytest.raises(TrainingInterrupted):
        train(values, folder, listener=Recorder(interrupt_at=4))
    return folder / "checkpoints" / "checkpoint-5"


SHORT = {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "evaluate_every": 3}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(
    name: str, base: Path, pairs: Path, tmp_path: Path
) -> None:
    values = recipe(base, pairs, schedule=SHORT)
    last = interrupted(values, tmp_path / "run")
    (last / name).write_bytes((last / name).read_bytes()[:50])
    with pytest.raises(TrainingError, match=r"checkpoint-5 cannot be read: .* Remove it to go on"):
        train(values, tmp_path / "run", resume=True)
    shutil.rmtree(last)
    told = Recorder()
    train(values, tmp_path / "run", resume=True, listener=told)
    assert told.steps[0] == 4


def test_what_was_removed_or_damaged_beside_the_checkpoints_is_made_again(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    values = recipe(base, pairs, schedule=SHORT)
    interrupted(values, tmp_path / "run")
    (tmp_path / "run" / "before.json").write_text('{"ndcg": 0.')
    first = train(values, tmp_path / "run", resume=True)
    shutil.rmtree(first.encoder)
    (tmp_path / "run").rename(tmp_path / "moved")
    told = Recorder()
    again = train(values, tmp_path / "moved", resume=True, listener=told)
    assert (again.before, again.after) == (first.before, first.after)
    assert not told.steps, "it is trained already"
    assert again.load().document_matrix(["a bridge"]).nnz


def test_before_and_after_are_of_one_collection_though_it_changed_meanwhile(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    documents = tuple(Document(f"d{number}", row["positive"]) for number, row in enumerate(rows))

    def judge(count: int) -> None:
        queries = {f"q{number}": rows[number]["query"] for number in range(count)}
        qrels = {key: {f"d{number}": 1} for number, key in enumerate(queries)}
        Collection(queries, qrels, documents).write(tmp_path / "judged")

    judge(5)
    values = recipe(base, pairs, schedule=SHORT, evaluation={"collection": str(tmp_path / "judged")})
    interrupted(values, tmp_path / "run")
    judge(9)
    told = Recorder()
    result = train(values, tmp_path / "run", resume=True, listener=told)
    assert (result.before.queries, result.after.queries) == (9, 9)
    assert any("is another than when the run began" in warning for warning in told.warnings)
    assert train(values, tmp_path / "run", resume=True).before == result.before


def test_what_the_trainer_fails_with_is_one_line(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, arguments in enumerate(({"adam_beta1": 5}, {"dataloader_num_workers": -1})):
        schedule = {**SHORT, "arguments": arguments}
        with pytest.raises(TrainingError, match=rf"refuses schedule.arguments \({next(iter(arguments))}\): "):
            train(recipe(base, pairs, schedule=schedule), tmp_path / f"refused-{number}")

    def full(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 51520 vs 51412")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DataError, match=r"a checkpoint cannot be written into .*checkpoints: .*disk full"):
        train(recipe(base, pairs, schedule=SHORT), tmp_path / "full")


def test_a_run_that_has_nothing_to_learn_says_so(base: Path, pairs: Path, tmp_path: Path) -> None:
    """A batch of one query and its answer, and a symmetric encoder whose query weights cannot be trained."""
    encoder = {"name": str(base), "max_length": 16, "train_query_weights": True}
    told = Recorder()
    schedule = {**SHORT, "batch_size": 1}
    train(recipe(base, pairs, schedule=schedule, encoder=encoder), tmp_path / "run", listener=told)
    assert sum("nothing to learn so far, the losses of 6 steps" in line for line in told.warnings) == 1
    assert any("encoder.train_query_weights changes nothing" in line for line in told.warnings)


def test_a_step_that_memory_does_not_hold_is_told_with_what_it_holds(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "available_memory", lambda: 200_000)
    schedule = {"steps": 1, "batch_size": 8}
    warned = []
    for number, more in enumerate(({}, {"micro_batch_size": 3})):
        told = Recorder()
        train(recipe(base, pairs, schedule={**schedule, **more}), tmp_path / str(number), listener=told)
        warned.append([line for line in told.warnings if "of memory" in line])
    # 7 tokens in 2 layers of 32 dimensions: 30 kB a text, of which three are half of what there is.
    assert [len(lines) for lines in warned] == [1, 0]
    assert "(8 texts of up to 7 tokens)" in warned[0][0] and "schedule.micro_batch_size: 3," in warned[0][0]


def test_all_processes_attend_alike(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first one tokenizes the texts to learn how long they are."""
    values = recipe(base, pairs, encoder={"name": str(base)}, schedule={"steps": 1, "batch_size": 8})
    shutil.rmtree(train(values, tmp_path / "run").encoder)
    lengths: list[int] = []

    def attend(_encoder: object, length: int) -> None:
        lengths.append(length)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "plain_attention", attend)
    for first in (True, False):
        monkeypatch.setattr(stages, "is_first", lambda first=first: first)
        with pytest.raises(KeyboardInterrupt):
            stages.train_stage(load_recipe(values), tmp_path / "run", name="tiny", listener=Listener())
    assert lengths == [7, 7]


def test_two_stages_with_teachers_and_an_inference_free_end(base: Path, pairs: Path, tmp_path: Path) -> None:
    dense = build_dense(tmp_path / "dense")
    values = recipe(
        base,
        pairs,
        data={
            "train": [str(pairs)],
            "hold_out": 0.2,
            "negatives": {"ranker": "bm25", "per_query": 2, "depth": 20},
        },
        teachers=[{"kind": "dense", "name": str(dense)}],
        labels={"cache_folder": str(tmp_path / "cache")},
        loss=[{"kind": "kl"}],
        sparsity={"documents": {"weight": 1e-3, "kind": "idf_flops"}},
        schedule={"steps": 3, "batch_size": 8, "evaluate_every": 3},
        stages=[
            {},
            {
                "encoder": {"architecture": "inference-free", "layers": 1, "train_query_weights": True},
                "teachers": {"sparse": {"name": "{stage:1}", "weight": 0.5}, "dense": {"weight": 0.5}},
            },
        ],
    )
    result = train(values, tmp_path / "run")

    assert [stage.name for stage in result.stages] == ["stage-1", "stage-2"]
    teachers = {teacher["kind"]: teacher for teacher in result.stages[1].data.teachers["teachers"]}  # type: ignore[index]
    assert teachers["sparse"]["status"] == "used"
    assert teachers["sparse"]["name"] == str((tmp_path / "run" / "stage-1" / "best").resolve())
    assert teachers["sparse"]["effective_weight"] == 0.5
    assert result.gain is not None
    assert result.gain.baseline == "stage-1"
    assert not any("trained on in" in warning for stage in result.stages for warning in stage.warnings)

    encoder = NeuralSparseEncoder.from_pretrained(tmp_path / "run" / "best", fallback=False)
    assert encoder.architecture == "inference-free"
    assert encoder.load_report.layers == 1
    idf = encoder.query_idf()
    assert idf is not None
    assert (idf >= 0).all()
    started = np.load(tmp_path / "run" / "stage-2" / "data" / "idf.npy")
    assert not np.allclose(idf[: len(started)], started[: len(idf)])


def test_queries_held_out_of_a_stage_that_an_earlier_one_trained_on_are_told(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    more = {"data": {"hold_out": 0.6}}
    stages = [{}, {"encoder": {"name": "{stage:1}"}}, {"encoder": {"name": "{stage:2}"}, **more}, more]
    values = recipe(base, pairs, schedule={"steps": 1, "batch_size": 8}, stages=stages)
    told = [
        [warning for warning in stage.warnings if "evaluation queries were trained on" in warning]
        for stage in train(values, tmp_path / "run").stages
    ]
    assert [len(warnings) for warnings in told] == [0, 0, 2, 0], "the last one starts anew"
    assert "in stage-1: the figures are too good" in told[2][0]


def test_distillation_without_negatives_says_what_to_do(base: Path, pairs: Path, tmp_path: Path) -> None:
    values = recipe(
        base,
        pairs,
        loss=[{"kind": "kl"}],
        teachers=[{"kind": "dense", "name": str(base)}],
    )
    with pytest.raises(TrainingError, match=r"data\.negatives"):
        train(values, tmp_path / "run")


def test_leaking_queries_are_dropped_or_an_error(base: Path, pairs: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    queries = {f"q{number}": row["query"] for number, row in enumerate(rows[:5])}
    documents = tuple(Document(f"d{number}", row["positive"]) for number, row in enumerate(rows))
    qrels = {key: {f"d{number}": 1} for number, key in enumerate(queries)}
    Collection(queries, qrels, documents).write(tmp_path / "collection")
    evaluation = {"collection": str(tmp_path / "collection")}
    schedule = {"steps": 1, "batch_size": 4}

    told = Recorder()
    result = train(
        recipe(base, pairs, evaluation=evaluation, schedule=schedule), tmp_path / "run", listener=told
    )
    assert result.stages[0].data.dropped_leaks >= 5
    assert any("dropped from training" in warning for warning in told.warnings)
    assert "they were dropped" in (tmp_path / "run" / "README.md").read_text()

    strict = {"train": [str(pairs)], "leakage": "error"}
    with pytest.raises(TrainingError, match="evaluation queries"):
        train(recipe(base, pairs, evaluation=evaluation, schedule=schedule, data=strict), tmp_path / "strict")
