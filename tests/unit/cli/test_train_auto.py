"""`oskit train auto`: a recipe is chosen, told, written beside its run, trained, and can be trained again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from oskit.cli import main
from tests import tiny
from tests.unit.training.teacher_models_tiny import build_dense
from tests.unit.training.word_pairs import write_pairs


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Data and models, and no more steps than a test has time for."""
    folder = tmp_path_factory.mktemp("auto")
    given = {
        "data.train": write_pairs(folder / "pairs.jsonl", tiny.WORDS[:20]),
        "encoder.name": tiny.build("bert", folder / "bert"),
        "teachers": f"[{{kind: dense, name: {build_dense(folder / 'dense')}}}]",
        "labels.cache_folder": folder / "cache",
        "schedule.steps": 3,
    }
    return [part for key, value in given.items() for part in ("--set", f"{key}={value}")]


def test_it_chooses_tells_why_writes_and_trains(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    auto = ("train", "auto", *options, "--minutes", "2")  # in which it would choose more steps than three
    code, out, err = run(capsys, *auto, "--dry-run")
    assert code == 0, err
    assert "top_k:32 where you ingest" in err, "an encoder that cannot search yet"
    assert yaml.safe_load(out.partition("Stage 1: ")[0])["schedule"]["steps"] == 3
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"

    code, out, err = run(capsys, *auto, "--json")
    assert code == 0, err
    assert json.loads(out)["stages"][0]["steps"] == 3
    file = tmp_path / "runs" / "auto.yaml"
    assert "# 3 passes" not in file.read_text() and "schedule.steps: as --set says" in err
    assert (tmp_path / "runs" / "auto" / "best" / "config.json").is_file()

    code, _, err = run(capsys, *auto)
    assert code == 2 and "auto.yaml is there already" in err and err.count("\n") == 1
    code, out, err = run(capsys, "train", file, "-o", tmp_path / "again", "--json")
    assert code == 0, err
    assert json.loads(out)["stages"][0]["steps"] == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["quick", "--minutes", "3"], "--minutes is of `oskit train auto`"),
        (["auto", "--resume"], "oskit train runs/auto --resume"),
        (["auto", "--minutes", "0"], "--minutes"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "train", *args)
    assert code == 2 and message in err
