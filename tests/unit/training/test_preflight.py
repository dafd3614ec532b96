"""Point 13: what would end a run is found before it begins, by the dry run too; none burns its folder."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from oskit.cli import main
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.errors import DataError, UsageError
from oskit.training.loop import run
from oskit.training.loop.events import Listener
from oskit.training.loop.preflight import preflight
from oskit.training.loop.run import train
from oskit.training.recipe.file import load_recipe
from oskit.training.recipe.tree import merge
from tests import tiny
from tests.hub_server import HubServer
from tests.unit.training.word_pairs import write_pairs

WORDS = ("concrete", "bridge", "water", "road", "stone", "house", "old", "world", "steel", "wall")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("bert", tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def values(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe that takes a second or two."""
    monkeypatch.setenv("OSKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return {
        "name": "tiny",
        "encoder": {"name": str(base), "base": str(base), "max_length": 16},
        "data": {"train": [{"path": str(write_pairs(tmp_path / "pairs.jsonl", WORDS))}], "hold_out": 0.3},
        "loss": [{"kind": "info_nce"}],
        "schedule": {"steps": 1, "batch_size": 4},
    }


def collection(folder: Path) -> str:
    documents = tuple(Document(f"d{number}", word) for number, word in enumerate(WORDS))
    return str(Collection({"q": "a bridge"}, {"q": {"d1": 1}}, documents, split="dev").write(folder))


DISTILLED = {"loss": [{"kind": "kl", "candidates": "batch"}]}
SCARCE = SimpleNamespace(free=1000)

FAULTS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "data that is not there": (3, "no such file", {"data": {"train": "nosuch.jsonl"}}),
    "a column that is not there": (
        3,
        "no column for the text",
        {"data": {"train": {"path": "columns.csv"}}},
    ),
    "a first record that is broken": (3, "broken.jsonl:1", {"data": {"train": "broken.jsonl"}}),
    "data that is not on the Hub": (3, "no dataset no/such", {"data": {"train": {"hub": "no/such"}}}),
    "data of a later stage": (3, "no such file", {"stages": [{}, {"data": {"train": "nosuch.jsonl"}}]}),
    "no negatives for a teacher": (
        *(11, "no negatives"),
        {
            "data": {"train": {"path": "documents.jsonl", "kind": "documents"}},
            "loss": [{"kind": "kl", "candidates": "own"}],
            "teachers": [{"kind": "dense", "name": "base"}],
        },
    ),
    "no queries to evaluate on": (11, "nothing to evaluate on", {"data": {"hold_out": 0.0}}),
    "a collection without the split": (3, "It has: dev", {"evaluation": {"collection": "faq"}}),
    "no encoder and no base": (
        *(5, "there is no folder no/such, and the Hub has no model"),
        {"encoder": {"name": "no/such", "base": "no/such-base"}},
    ),
    "an encoder's folder that holds none": (5, "config.json", {"encoder": {"name": "empty"}}),
    "query weights that are not there": (5, "idf.json cannot be read", {"encoder": {"idf": "idf.json"}}),
    "the only teacher": (
        *(11, "no teacher is left: dense"),
        {**DISTILLED, "teachers": [{"kind": "dense", "name": "no/such"}]},
    ),
    "a teacher that is required": (
        *(5, "the Hub has no model no/such"),
        {
            **DISTILLED,
            "teachers": [
                {"kind": "dense", "name": "base"},
                {"kind": "sparse", "name": "no/such", "required": True},
            ],
        },
    ),
    "a teacher's device": (
        *(11, "teachers.0.device is cuda:7, and this machine has none"),
        {**DISTILLED, "teachers": [{"kind": "dense", "name": "base", "device": "cuda:7"}]},
    ),
    "fp16 without a GPU": (11, "fp16, which needs a GPU", {"schedule": {"precision": "fp16"}}),
}


def command(tmp_path: Path, values: dict[str, Any], *more: str) -> list[str]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    return ["train", str(recipe), "-o", str(tmp_path / "run"), *more]


def answered_alike(
    tmp_path: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and error of the run, which are those of its dry run; neither wrote anything."""
    found = []
    for more in ((), ("--dry-run",), ("--resume",)):
        code = main(command(tmp_path, values, *more))
        found.append((code, capsys.readouterr().err))
        assert not (tmp_path / "run").exists()
    assert found[0] == found[1] == found[2]
    assert found[0][1].splitlines()[-1].startswith("Error: ")
    return found[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_13_what_is_wrong_is_known_before_a_run_begins_and_by_its_dry_run(
    fault: str,
    values: dict[str, Any],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, message, change = FAULTS[fault]
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.jsonl").write_text('{"query": "a", "positive": ""}\n')
    (tmp_path / "documents.jsonl").write_text(json.dumps({"text": "A bridge of stone. " * 9}) + "\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "base").symlink_to(base)
    collection(tmp_path / "faq")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with HubServer() as hub:  # an empty one
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        found, told = answered_alike(tmp_path, merge(values, change), capsys)
    assert (found, message in told.splitlines()[-1]) == (code, True), told


def test_13_every_problem_is_told_and_no_other_work_done(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = {
        "data": {"train": ["one.jsonl"]},
        "evaluation": {"collection": "two"},
        "encoder": {"idf": "three"},
    }
    _, told = answered_alike(tmp_path, merge(values, change), capsys)
    assert [line.partition(":")[0] for line in told.splitlines()] == ["Warning", "Warning", "Error"]
    assert all(name in told for name in ("one.jsonl", "two", "three"))


def test_13_packages_room_and_folder_are_looked_for_first(
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SCARCE)
        assert "GB are free" in answered_alike(tmp_path, values, capsys)[1]
    real = metadata.version

    def without(name: str) -> str:
        if name in ("matplotlib", "bm25s"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", without)
    code, told = answered_alike(tmp_path, values, capsys)
    assert (code, "'matplotlib'" in told, "oskit[train]" in told) == (4, True, True)
    mined = merge(values, {"data": {"negatives": {"ranker": "bm25"}}})
    assert "not installed: bm25s, matplotlib." in answered_alike(tmp_path, mined, capsys)[1]
    monkeypatch.undo()

    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file"):
        train(values, tmp_path / "file" / "run")


def test_13_models_of_the_hub_are_asked_for_and_not_downloaded(
    values: dict[str, Any],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    dropped = {
        **DISTILLED,
        "encoder": {"name": "org/encoder"},
        "teachers": [{"kind": "dense", "name": "org/encoder"}, {"kind": "sparse", "name": "no/such"}],
    }
    with HubServer() as hub:
        hub.add("org/encoder", base)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert main(command(tmp_path, merge(values, dropped), "--dry-run")) == 0
        assert "the sparse teacher no/such would be DROPPED" in capsys.readouterr().err
        fallen = {"encoder": {"name": "no/such"}, "stages": [{}, {}]}
        assert main(command(tmp_path, merge(values, fallen), "--dry-run")) == 0
        told = capsys.readouterr().err
        assert told.count(f"the base {base} with a random projection is trained instead") == 1
        assert hub.requests and not hub.downloads("org/encoder")


# --- the folder of a run that failed


def fail(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run that ends while it reads its data, and what corrects its recipe."""
    path = Path(values["data"]["train"][0]["path"])
    path.write_text(path.read_text() + '{"query": "no answer"}\n')
    with pytest.raises(DataError, match="positive"):
        train(values, folder)
    return merge(values, {"data": {"train": [{"path": str(path), "broken": "skip"}]}})


def test_13_a_run_without_a_checkpoint_gives_its_folder_to_the_corrected_command(
    values: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    corrected = fail(values, folder)
    assert (folder / "recipe.yaml").exists()
    (folder / "notes.txt").write_text("mine")
    (folder / "data" / "mine.arrow").write_text("mine")
    stale = folder / "data" / "held-out" / "qrels" / "pooled.tsv"  # had it failed later
    stale.parent.mkdir(parents=True)
    stale.write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")

    corrected = merge(corrected, {"evaluation": {"judgements": "own"}})
    result = train(corrected, folder)
    assert result.stages[0].data.sources[0]["refused"] == 1
    assert result.after.pooled is None, "it is measured by what it says, not by what another run found"
    assert (folder / "notes.txt").read_text() == (folder / "data" / "mine.arrow").read_text() == "mine"
    with pytest.raises(UsageError, match="not empty"):
        train(corrected, folder)


def test_13_what_is_left_of_another_run_is_not_taken_for_this_ones(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    staged = fail({**values, "stages": [{}, {}]}, folder)
    (folder / "stage-1" / "checkpoints" / "checkpoint-1").mkdir(parents=True)  # not whole
    del staged["stages"]
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UsageError, match="Several processes need a new folder"):
            train(staged, folder)
    train(staged, folder, resume=True)
    assert not (folder / "stage-1").exists()
    told = list[str]()
    preflight(load_recipe(staged), tmp_path / "runn", resume=True, warn=told.append)
    assert any(f"no run in {tmp_path / 'runn'} to go on with" in line for line in told)


def test_13_a_run_that_goes_on_keeps_others_out_of_its_folder(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    told: list[str] = []

    class Second(Listener):
        """Comes while the first has no checkpoint, when its folder looks like a failed run's."""

        def doing(self, what: str) -> None:
            for resume in ((), ("--resume",), ("--dry-run",)):
                assert main(["train", str(recipe), "-o", str(folder), *resume]) == 2
                told.append(capsys.readouterr().err)

    result = train(values, folder, listener=Second())
    assert told and all("another run goes on" in said for said in told)
    assert result.encoder.is_dir()


def test_13_what_others_call_like_a_stage_or_a_checkpoint_stays(
    values: dict[str, Any], tmp_path: Path
) -> None:
    folder, outside = tmp_path / "run", tmp_path / "outside.yaml"
    corrected = fail(values, folder)
    mine = [folder / "stage-notes" / "log.jsonl", folder / "checkpoints" / "checkpoint-old" / "mine", outside]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (folder / "recipe.yaml").unlink()
    (folder / "recipe.yaml").symlink_to(outside)
    train(corrected, folder)
    assert [path.read_text() for path in mine] == ["mine"] * 3


def test_13_a_run_that_began_and_ended_meanwhile_is_not_written_over(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, begin = tmp_path / "run", run.open_folder

    def late(*args: Any) -> Any:
        monkeypatch.setattr(run, "open_folder", begin)
        train(values, folder)
        return begin(*args)

    monkeypatch.setattr(run, "open_folder", late)
    with pytest.raises(UsageError, match="meanwhile"):
        train(merge(values, {"seed": 5}), folder)
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["seed"] == 0


def test_13_files_of_others_are_never_replaced(values: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UsageError):
            train(values, folder, resume=resume)
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


def test_13_a_run_goes_on_with_keys_that_do_no_harm_and_names_those_that_do(
    values: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    before = train(values, folder)
    harmless = {
        "description": "new",
        "guards": {"patience": 3},
        "schedule": {"micro_batch_size": 2, "keep_checkpoints": 1},
        "teachers": {"dense": {"device": "cpu"}},
    }
    assert train(merge(values, harmless), folder, resume=True).after == before.after
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["guards"]["patience"] == 3
    with pytest.raises(UsageError, match=r"schedule\.steps is 3 and was 1.*another output folder") as caught:
        train(merge(values, {"seed": 5, "schedule": {"steps": 3}}), folder, resume=True)
    assert "seed is 5 and was 0" in str(caught.value)
