"""Several processes on one machine, started as people start them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from oskit.cli.main import main
from tests import tiny
from tests.unit.training.word_pairs import write_pairs

WORDS = ("concrete", "bridge", "water", "road", "stone", "house", "old", "world", "steel", "wall", "floor")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    base = tiny.without_dropout(tiny.build("bert", tmp_path / "base"))
    pairs = write_pairs(tmp_path / "pairs.jsonl", WORDS)
    values = {
        "name": "two",
        "encoder": {"name": str(base), "max_length": 16},
        "data": {"train": [str(pairs)], "hold_out": 0.4},
        "loss": [{"kind": "info_nce"}],
        "sparsity": {"documents": {"weight": 1e-3}, "queries": {"weight": 1e-3}},
        "schedule": {"steps": 16, "batch_size": 16, "learning_rate": 5e-3, "evaluate_every": 8},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``torchrun -m oskit train …`` with two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "-m", "oskit", "train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_two_processes_train_one_encoder(recipe: Path, tmp_path: Path) -> None:
    found = torchrun(str(recipe), "-o", str(tmp_path / "run"))
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("negatives: none mined") == 1, "one process tells"
    assert len(re.findall(r"step 16: loss", found.stderr)) == 1

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (stage,) = report["stages"]
    assert stage["after"]["nDCG@10"] > stage["before"]["nDCG@10"] + 0.2
    steps = [line["step"] for line in logged(tmp_path / "run")]
    assert steps == sorted(set(steps)), "each step is logged once"

    # Each computes its half of the batches that one process alone has. Rounding grows with the steps.
    assert main(["train", str(recipe), "-o", str(tmp_path / "alone")]) == 0
    for shared, alone in zip(logged(tmp_path / "run"), logged(tmp_path / "alone"), strict=True):
        assert shared["epoch"] == alone["epoch"]
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5 if alone["step"] <= 4 else 0.02)


def logged(run: Path) -> list[dict[str, float]]:
    """What the steps were like."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # the first of two, as far as it gets
    assert main(["train", str(recipe), "--set", "schedule.batch_size=15", "-o", str(tmp_path / "run")]) == 11
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert "2 processes cannot share evenly" in error and "Make it a multiple of 2" in error
