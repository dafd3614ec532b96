"""`oskit train auto` from the data to a recipe that can be edited: models are tried, reasons told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.errors import DataError, OskitError
from oskit.training.auto import look
from oskit.training.auto.choose import _drawn, choose
from oskit.training.auto.look import Named
from oskit.training.auto.plan import FITTED
from oskit.training.loop.events import Listener
from oskit.training.recipe.file import load_recipe
from oskit.training.recipe.sources import DataSource
from tests import tiny
from tests.unit.training.teacher_models_tiny import build_dense
from tests.unit.training.word_pairs import write_pairs


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Named:
    folder = tmp_path_factory.mktemp("auto")
    return Named(
        (str(tiny.build("bert", folder / "bert")), str(tiny.build("bert-headless", folder / "headless"))),
        (str(build_dense(folder / "dense")),),
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", tiny.WORDS[:24])


look_student = look._student


class Told(Listener):
    def __init__(self) -> None:
        self.done: list[str] = []
        self.warnings: list[str] = []

    def doing(self, what: str) -> None:
        self.done.append(what)

    def warning(self, message: str) -> None:
        self.warnings.append(message)


def test_what_is_chosen_is_a_recipe_that_reads_back_with_its_reasons(
    models: Named, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = Told()
    missing = Named((*models.students, str(tmp_path / "gone")), models.teachers)
    found = choose([f"data.train={pairs}", "seed=3"], minutes=1, beside=missing, listener=told)
    file = tmp_path / "auto.yaml"
    file.write_text(found.yaml)
    assert load_recipe(file) == found.recipe
    assert found.recipe.encoder.name in models.students
    assert found.recipe.seed == 3
    assert [(source.path, source.kind) for source in found.recipe.data.train] == [
        (str(pairs), "auto"),
        (str(pairs), "documents"),  # the answers once more, whose sentences are queries too
    ]
    assert any("gone is left out" in warning for warning in told.warnings)
    lines = found.yaml.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("  steps:"))
    assert lines[place - 1].strip().startswith("# ") and "passes over the data" in lines[place - 1]
    for name in (*models.students, *models.teachers):
        assert any(name in line for line in told.done), "each model was tried"


def test_models_are_tried_on_what_people_asked_not_on_sentences(
    models: Named, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = tmp_path / "documents.jsonl"
    texts = [f"{word} is told of here. It says more of the {word} too, later." for word in tiny.WORDS[:30]]
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tried: list[Collection] = []
    monkeypatch.setattr(
        look,
        "_student",
        lambda name, trial, **options: tried.append(trial) or look_student(name, trial, **options),
    )
    train = f"[{documents}, {pairs}]"
    found = choose([f"data.train={train}"], minutes=1, beside=models, listener=Listener())
    asked = {json.loads(line)["query"] for line in pairs.read_text().splitlines()}
    assert tried and set(tried[0].queries.values()) < asked
    assert [source.path for source in found.recipe.data.train] == [str(documents), str(pairs)]


def test_what_set_says_is_not_chosen(models: Named, pairs: Path) -> None:
    told = Told()
    overrides = [
        f"data.train={pairs}",
        f"encoder.name={models.students[1]}",
        "teachers=[{kind: bm25}]",
        "schedule.steps=5",
    ]
    found = choose(overrides, minutes=1, beside=models, listener=told)
    assert found.recipe.encoder.name == models.students[1]
    assert [one.kind for one in found.recipe.teachers] == ["bm25"]
    assert found.recipe.schedule.steps == 5
    assert found.reasons["schedule.steps"] == "as --set says"
    assert not any(models.students[0] in line or models.teachers[0] in line for line in told.done)


def test_what_is_given_is_not_overruled_by_what_stands_beside_it(
    models: Named, pairs: Path, tmp_path: Path
) -> None:
    """Epochs beside steps, a weight beside a target, a hold-out beside a collection, own candidates."""
    aside = Collection({"q": "bridge"}, {"q": {"d": 1}}, (Document("d", "the bridge"),)).write(
        tmp_path / "aside"
    )
    scored = tmp_path / "scored.jsonl"
    rows = [
        {"query": f"{word} one", "docs": [f"the {word}", f"a {word}"], "scores": [1.0, 2.0]}
        for word in tiny.WORDS[:16]
    ]
    scored.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        f"data.train={scored}",
        f"encoder.name={models.students[0]}",
        f"evaluation.collection={aside}",
        "schedule.epochs=2",
        "sparsity.documents.weight=0.5",
        "teachers=[{kind: stored}]",
    ]
    found = choose(overrides, minutes=1, beside=models, listener=Listener(), name="own")
    recipe = found.recipe
    assert recipe.name == "own"
    assert (recipe.schedule.steps, recipe.schedule.epochs) == (None, 2)
    assert (recipe.sparsity.documents.weight, recipe.sparsity.documents.target) == (0.5, None)
    assert recipe.labelled == {"own"}
    assert not {"schedule.steps", "data.hold_out", "teachers"} & found.reasons.keys()


def test_without_data_or_without_a_model_that_works_one_line_says_so(
    models: Named, tmp_path: Path, pairs: Path
) -> None:
    with pytest.raises(OskitError, match=r"data\.train"):
        choose([], minutes=1, beside=models, listener=Listener())
    gone = f"encoder.name={tmp_path / 'gone'}"
    with pytest.raises(OskitError, match="no encoder"):
        choose([f"data.train={pairs}", gone], minutes=1, beside=models, listener=Listener())
    (tmp_path / "one.jsonl").write_text(pairs.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match="all of the data is one query"):
        choose([f"data.train={tmp_path / 'one.jsonl'}"], minutes=1, beside=models, listener=Listener())


def test_a_head_that_is_asked_for_is_what_is_planned_for(
    models: Named, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(
        look,
        "_student",
        lambda name, trial, directions: (
            seen.append(directions) or look_student(name, trial, directions=directions)
        ),
    )
    headless = [f"data.train={pairs}", f"encoder.name={models.students[1]}"]
    found = choose([*headless, "encoder.head=lexical"], minutes=1, beside=models, listener=Told())
    assert found.recipe.encoder.head == "lexical" and found.recipe.loss[0].temperature == FITTED
    choose(headless, minutes=1, beside=models, listener=Told())
    assert seen == [False, True]


def test_of_millions_of_queries_some_are_drawn() -> None:
    source = {"path": "pairs.jsonl", "share": 0.5}
    assert DataSource.model_validate(_drawn(source, 2e-5)).share == 1e-5
    assert _drawn(source, 1.0) == source
