"""From a recipe's sources to what the trainer reads: nothing is dropped in silence, nothing is left lying."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import DataError, TrainingError
from oskit.training.loop.events import Listener
from oskit.training.loop.preflight import preflight
from oskit.training.loop.prepare import Prepared, open_prepared, prepare
from oskit.training.loop.run import train
from oskit.training.recipe.recipe import Recipe
from oskit.training.teachers.ensemble import TeacherWarning
from tests import tiny

WORDS = tiny.WORDS


class Told(Listener):
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.without_dropout(tiny.build("bert", tmp_path_factory.mktemp("prepare") / "bert"))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scored(count: int = 60, documents: int = 6) -> list[dict[str, Any]]:
    """As OpenSearch's tuning sample has it: no known positives, a score for each document."""
    return [
        {
            "query": f"{WORDS[n % 15]} {WORDS[(n * 7 + 3) % 15]} {n}",
            "docs": [f"{WORDS[(n + i) % 15]} of {n} and {i}" for i in range(documents)],
            "scores": [float(documents - i) for i in range(documents)],
            "first_rank": n,
        }
        for n in range(count)
    ]


def recipe(base: Path, path: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "tiny",
        "encoder": {"name": str(base), "max_length": 16},
        "data": {"train": [str(path)], "hold_out": 0.2, "sampling": {"negatives": 3, "top": 1}},
        "teachers": [{"kind": "stored"}],
        "loss": [{"kind": "kl"}],
        "schedule": {"steps": 4, "batch_size": 8, "evaluate_every": 2},
    }
    return {**values, **changes}


def prepared(values: dict[str, Any], folder: Path, told: Told) -> Prepared:
    checked = Recipe.model_validate(values)
    vocabulary = NeuralSparseEncoder.from_pretrained(values["encoder"]["name"], device="cpu").vocabulary
    prepare(checked, folder, vocabulary, told)
    return open_prepared(checked, folder)


def test_scores_that_came_with_the_data_are_labels(base: Path, tmp_path: Path) -> None:
    told = Told()
    path = jsonl(tmp_path / "a.jsonl", scored())
    found = prepared(recipe(base, path), tmp_path / "data", told)
    assert len(found.examples) + len(found.yardstick.collection.queries) == 60
    assert (found.facts.examples, found.facts.visits) == (len(found.examples), len(found.examples))
    assert found.facts.negatives == 3
    for row in found.examples:
        assert (row["positives"], len(row["candidates"])) == (0, 6)
        expected = [30 * (score - 1) / 5 for score in (6, 5, 4, 3, 2, 1)]
        assert row["labels"] == pytest.approx(expected), "minmax, times the scale"
    assert found.facts.notes == [
        f"{path}: not understood and not used: first_rank",
        "no answers are known: of a query held out its best scored candidate counts as relevant",
    ]
    assert told.warnings == found.facts.notes
    left = {path.name for path in (tmp_path / "data").iterdir()}
    assert left == {"corpus.arrow", "ready.arrow", "held-out", "prepared.json"}
    again = Told()
    prepared(recipe(base, path), tmp_path / "data", again)
    assert not again.warnings, "it is there already"


def test_a_recipe_with_stored_scores_trains(base: Path, tmp_path: Path) -> None:
    result = train(recipe(base, jsonl(tmp_path / "a.jsonl", scored())), tmp_path / "run", listener=Told())
    assert result.stages[0].steps == 4
    assert math.isfinite(result.after.ndcg)


def test_a_join_that_is_not_there_is_noticed_before_the_run(base: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"query": "q", "document_ids": [1, 2], "scores": [2.0, 1.0]}])
    values = recipe(base, path)
    values["data"]["train"] = [{"path": str(path), "join": {"corpus": str(tmp_path / "none.jsonl")}}]
    checked = Recipe.model_validate(values)
    with pytest.raises(DataError, match=r"no such file or folder: .*none\.jsonl"):
        preflight(checked, tmp_path / "run", resume=False, warn=print)
    jsonl(tmp_path / "none.jsonl", [{"nothing": "to be read yet"}])
    preflight(checked, tmp_path / "run", resume=False, warn=print)


def test_scores_that_nobody_reads_are_told(base: Path, tmp_path: Path) -> None:
    told = Told()
    path = jsonl(tmp_path / "a.jsonl", scored())
    prepared(recipe(base, path, teachers=[], loss=[{"kind": "info_nce"}]), tmp_path / "data", told)
    assert "the data has scores that nobody reads; a teacher {kind: stored} learns them" in told.warnings


def test_teachers_that_score_alike_and_settings_of_other_kinds_are_told(base: Path, tmp_path: Path) -> None:
    told, rows = Told(), scored()
    for row in rows[::2]:
        row["scores"] = [3] * len(row["docs"])
    values = recipe(base, jsonl(tmp_path / "a.jsonl", rows))
    values["data"]["train"] = [{"path": values["data"]["train"][0], "queries": {"spans": 3}}]
    labels = prepared(values, tmp_path / "data", told).examples["labels"]
    alike = sum(len(set(own)) == 1 for own in labels)
    assert 0 < alike < len(labels)
    assert any(f"{alike} of {len(labels)} queries have candidates" in line for line in told.warnings)
    assert any("data.train.0.queries changes nothing" in line for line in told.warnings)


def test_what_changes_nothing_is_told_and_a_dropped_teacher_once(base: Path, tmp_path: Path) -> None:
    """Also where held-out queries are judged by the teachers that are left."""
    told = Told()
    pairs = [{"query": f"{row['query']} why", "positive": row["docs"][0]} for row in scored()]
    values = recipe(base, jsonl(tmp_path / "a.jsonl", pairs), loss=[{"kind": "kl", "candidates": "batch"}])
    values["teachers"] = [{"kind": "bm25"}, {"kind": "dense", "name": str(tmp_path / "nowhere")}]
    with pytest.warns(TeacherWarning) as dropped:
        prepared(values, tmp_path / "data", told)
    assert len(dropped) == 1 and not any("DROPPED" in line for line in told.warnings)
    assert "data.sampling changes nothing: no query has candidates beside a positive" in told.warnings


def test_a_teacher_of_scores_that_are_not_there_ends_the_run_before_mining(
    base: Path, tmp_path: Path
) -> None:
    rows = [{"query": f"query {n}", "positive": f"answer {n}"} for n in range(50)]
    values = recipe(base, jsonl(tmp_path / "a.jsonl", rows))
    values["data"]["negatives"] = {"ranker": "bm25", "per_query": 3}
    with pytest.raises(DataError, match="the data has no scores, and the recipe has no other teacher"):
        prepared(values, tmp_path / "data", Told())
    assert not (tmp_path / "data" / "mined.arrow").exists()


def test_queries_with_few_candidates_are_told_and_stay(base: Path, tmp_path: Path) -> None:
    rows = [
        {
            "query": f"query {n}",
            "positive": f"answer {n}",
            "negatives": [f"wrong {n} {i}" for i in range(n % 5)],
        }
        for n in range(50)
    ]
    values = recipe(base, jsonl(tmp_path / "a.jsonl", rows), teachers=[], loss=[{"kind": "info_nce"}])
    found = prepared(values, tmp_path / "data", Told())
    assert len(found.examples) + len(found.yardstick.collection.queries) == 50
    assert found.facts.negatives == 2, "what most have"
    short = sum(len(row["candidates"]) < 3 for row in found.examples)
    assert found.facts.notes == [
        f"{short} queries have fewer than 2 candidates beside a positive; others' fill up"
    ]


def test_a_query_with_nothing_to_rank_is_left_out(base: Path, tmp_path: Path) -> None:
    rows = [*scored(30), {"query": "alone", "docs": ["only this"], "scores": [1.0]}]
    found = prepared(recipe(base, jsonl(tmp_path / "a.jsonl", rows)), tmp_path / "data", Told())
    assert "alone" not in found.examples["query"]
    assert any("have one candidate alone, and are left out" in note for note in found.facts.notes)


def test_without_negatives_there_is_nothing_to_distill(base: Path, tmp_path: Path) -> None:
    rows = [{"query": f"query {n}", "positive": f"answer {n}", "score": 1.5} for n in range(50)]
    values = recipe(base, jsonl(tmp_path / "a.jsonl", rows))
    with pytest.raises(TrainingError, match="the examples have no negatives"):
        prepared(values, tmp_path / "data", Told())


def test_a_broken_source_leaves_nothing_that_is_taken_for_prepared(base: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*scored(), {"query": "q", "docs": ["a", "b"], "scores": [1.0]}])
    with pytest.raises(DataError, match=r"a\.jsonl:61: 1 scores in 'scores' for 2 documents"):
        prepared(recipe(base, path), tmp_path / "data", Told())
    assert not list((tmp_path / "data").glob("*.arrow*"))
