"""Every recipe that comes along still runs, with tiny encoders and teachers instead of the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from oskit.training.loop.run import train
from oskit.training.recipe.file import included_recipes, load_recipe
from tests import tiny
from tests.unit.training.teacher_models_tiny import build_dense
from tests.unit.training.word_pairs import write_pairs

WORDS = ("concrete", "bridge", "water", "road", "stone", "house", "old", "world")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return {
        "base": tiny.build("bert", folder / "base"),
        "dense": build_dense(folder / "dense"),
        "pairs": write_pairs(folder / "pairs.jsonl", WORDS),
        "cache": folder / "cache",
    }


# bf16 for all, and float32 for those of each architecture that see own candidates; `quick` is below.
RUNS = [(name, "bf16") for name in sorted(included_recipes())]
RUNS += [("stage-1", "float32"), ("inference-free-v3", "float32")]


@pytest.mark.parametrize(("name", "precision"), RUNS)
def test_an_included_recipe_runs(name: str, precision: str, parts: dict[str, Path], tmp_path: Path) -> None:
    result = train(load_recipe(name, overrides(name, parts, precision)), tmp_path / "run")
    assert [stage.steps for stage in result.stages] == [2]
    encoder = result.load()
    assert encoder.architecture == ("inference-free" if name.startswith("inference-free") else "symmetric")
    assert encoder.document_matrix(["the old bridge"]).nnz > 0


def test_less_memory_and_smaller_evaluations(parts: dict[str, Path], tmp_path: Path) -> None:
    less = [
        "schedule.gradient_checkpointing=true",
        "schedule.micro_batch_size=2",
    ]
    same = ["encoder.dropout=0", "evaluation.queries=3", "evaluation.corpus=6"]
    same += ["schedule.evaluate_every=2"]  # one evaluation, so there is nothing to choose
    plain, spared = (
        train(load_recipe("quick", [*overrides("quick", parts, "float32"), *more]), tmp_path / name)
        for name, more in (("plain", same), ("spared", [*same, *less]))
    )
    # Both compute the same steps, and the same part of the collection is measured before and after.
    for result in (plain, spared):
        assert (result.before.queries, result.before.documents) == (3, 6)
        assert (result.after.queries, result.after.documents) == (3, 6)
    assert spared.after.ndcg == pytest.approx(plain.after.ndcg, abs=1e-3)
    assert spared.after.flops == pytest.approx(plain.after.flops, rel=1e-3)


def overrides(name: str, parts: dict[str, Path], precision: str) -> list[str]:
    return [
        f"encoder.name={parts['base']}",
        "encoder.max_length=16",
        f"data.train={parts['pairs']}",
        "data.hold_out=0.3",
        "data.negatives.depth=8",
        "data.negatives.per_query=2",
        f"teachers.dense.name={parts['dense']}",
        f"labels.cache_folder={parts['cache']}",
        "schedule.steps=2",
        "schedule.batch_size=4",
        f"schedule.precision={precision}",
    ]
