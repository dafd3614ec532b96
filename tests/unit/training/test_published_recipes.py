"""Every training of docs/published-recipes.md is read, and runs with tiny models on scored data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from oskit.training.loop.run import train
from oskit.training.recipe.file import load_recipe
from oskit.training.recipe.known_problems import risks
from tests import tiny
from tests.unit.training.teacher_models_tiny import build_dense, build_sparse

PAGE = Path(__file__).parents[3] / "docs" / "published-recipes.md"
RECIPES = {
    recipe["name"]: recipe
    for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    if (recipe := yaml.safe_load(block))
}
WORDS = ("concrete", "bridge", "water", "road", "stone", "house", "old", "world")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models, and queries with four scored candidates each, the second of them the best."""
    folder = tmp_path_factory.mktemp("parts")
    texts = [f"the {one} of the {two}" for one in WORDS for two in WORDS if one != two]
    rows = [
        {"query": text.split()[1] + " " + text.split()[-1], "pos": [text], "neg": texts[n + 1 : n + 4]}
        | {"scores": [3.0, 5.0, 1.0, 0.5]}
        for n, text in enumerate(texts[:40])
    ]
    (folder / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base": tiny.build("bert", folder / "base"),
        "sparse": build_sparse(folder / "sparse"),
        "dense": build_dense(folder / "dense"),
        "data": folder / "scored.jsonl",
        "cache": folder / "cache",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_training_is_a_recipe_that_runs(
    name: str, parts: dict[str, Path], tmp_path: Path
) -> None:
    values: dict[str, Any] = RECIPES[name]
    published = load_recipe(values)
    assert risks(published) == []
    small = [
        f"encoder.name={parts['base']}",
        "encoder.max_length=16",
        f"data.train={parts['data']}",
        "data.hold_out=0.2",
        f"labels.cache_folder={parts['cache']}",
        "schedule.steps=2",
        "schedule.batch_size=4",
        "schedule.precision=float32",
        *(f"teachers.{kind}.name={parts[kind]}" for kind in ("dense", "sparse") if kind in str(values)),
    ]
    result = train(load_recipe(values, small), tmp_path / "run")
    assert result.stages[0].steps == 2
    assert result.load().document_matrix(["the old bridge"]).nnz > 0
