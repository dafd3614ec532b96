"""``oskit train`` and ``oskit recipes``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from oskit.cli import main, output
from oskit.cli.commands.train_display import Display
from oskit.training.recipe.file import included_recipes, included_text
from tests import tiny

WORDS = [word for word in tiny.WORDS if len(word) > 3]


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of two words, answered by texts that have them."""
    rows = [
        {
            "query": f"{first} {second}",
            "positive": f"the {first} of a {second} is {WORDS[(i + j) % len(WORDS)]}",
        }
        for i, first in enumerate(WORDS[:12])
        for j, second in enumerate(WORDS[12:16])
    ]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny encoder and a tiny dense teacher."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = tmp_path_factory.mktemp("models")
    base = tiny.build("bert-headless", folder / "base")
    transformer = Transformer(str(base))
    teacher = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")]
    )
    teacher.save_pretrained(str(folder / "dense"))
    return {"encoder": tiny.build("bert", folder / "encoder"), "dense": folder / "dense"}


# --- what needs no training


def test_print_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "train", "--print-schema")
    assert code == 0
    assert json.loads(out)["properties"]["name"]["description"].startswith("What the run is called")


def test_a_dry_run_tells_what_would_be_done(
    pairs: Path,
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *quick(pairs, models, "--dry-run"))
    assert code == 0, err
    resolved, _, told = out.partition("Stage 1: ")
    assert yaml.safe_load(resolved)["schedule"]["batch_size"] == 8
    assert "48 records, 48 queries with 48 positives" in told and "queries held out" in told
    assert f"labels of the dense teacher {models['dense']}" in told
    assert "The run would be in runs/quick" in told
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_as_json(
    pairs: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = {
        "data.train": f"[{pairs}, {{hub: some/thing}}]",
        "encoder.name": models["encoder"],
        "teachers.dense.name": models["dense"],
        "schedule.steps": 9,
    }
    options = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    file = tmp_path / "shop.yaml"
    file.write_text(included_text("stage-1") + 'stages:\n  - {}\n  - {encoder: {name: "{stage:1}"}}\n')
    code, out, _ = run(capsys, "train", file, *options, "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert [stage["steps"] for stage in plan["stages"]] == [9, 9]
    assert plan["stages"][0]["examples"] is None and plan["stages"][0]["not_read"] == ["some/thing[train]"]
    assert plan["recipe"]["name"] == "stage-1"


def test_each_mistake_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: x\nencoder: {name: e, basse: f}\ndata: {train: p}\nschedule:\n  steps: -1\n")
    code, _, err = run(capsys, "train", file)
    lines = err.splitlines()
    assert code == 3
    assert lines[0] == f"{file}:2: unknown key encoder.basse; did you mean base?"
    assert lines[1] == f"{file}:5: schedule.steps: should be greater than 0, not -1"
    assert lines[2].startswith("Error: 2 mistakes in the recipe, see above.")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "no RECIPE is given"),
        (["nosuch"], 2, "no recipe is called 'nosuch'. There are: quick, "),
        (["no/such.yaml"], 3, "no such recipe: no/such.yaml"),
        (
            ["quick"],
            3,
            "quick.yaml:14: data.train is for you to say (your pairs or documents): --set data.train=",
        ),
        (["quick", "--set", "data.train=x", "--set", "seed=-1"], 2, "--set seed=-1: seed: should be"),
    ],
)
def test_mistakes_end_with_a_line_and_a_code(
    args: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = run(capsys, "train", *args)
    assert (found, err.count("\n")) == (code, 1)
    assert message in err


def test_neither_help_nor_dry_run_nor_a_run_that_cannot_begin_loads_torch(
    pairs: Path, models: dict[str, Path]
) -> None:
    script = (
        "import sys\nfrom oskit.cli import main\n"
        f"assert not main({quick(pairs, models, '--dry-run', '-q')})\n"
        f"assert main({quick(pairs, models, '--set', 'data.train=nosuch.jsonl')}) == 3\n"
        "main(['recipes', 'list'])\nmain(['train', '--help'])\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "False"


# --- oskit recipes


def test_recipes_are_listed_shown_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "recipes", "list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == included_recipes()
    code, out, _ = run(capsys, "recipes", "show", "quick")
    assert code == 0 and out == included_text("quick")
    target = tmp_path / "mine.yaml"
    code, _, err = run(capsys, "recipes", "copy", "stage-1", target)
    assert code == 0 and target.read_text() == included_text("stage-1") and f"oskit train {target}" in err
    code, _, err = run(capsys, "recipes", "copy", "quick", target)
    assert code == 2 and "is there already" in err and target.read_text() == included_text("stage-1")
    assert run(capsys, "recipes", "copy", "quick", target, "--force")[0] == 0
    assert target.read_text() == included_text("quick")
    assert run(capsys, "recipes", "copy", "quick", tmp_path)[0] == 0
    assert (tmp_path / "quick.yaml").exists()
    code, _, err = run(capsys, "recipes", "copy", "quick", tmp_path / "no" / "folder" / "x.yaml")
    assert code == 2 and err.count("\n") == 1
    assert run(capsys, "recipes", "show", "quack")[0] == 2


# --- training


def test_what_the_recipe_shortens_and_cuts_is_said_before_and_after(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the dry run and while it starts, in the closing table, in the model card and in both reports."""
    rows = [
        {"query": f"{word} {i}", "positive": f"{word} " * (1 + 8 * (i % 4))}
        for i, word in enumerate(WORDS[:24])
    ]
    pairs = tmp_path / "long.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shortened = "encoder.max_length shortens the encoder from 512 to 16 tokens"
    # A quarter each of 1, 9, 17 and 25 words, where 14 are read beside two special tokens.
    cut = "12 of 24 training texts are longer than 16 tokens: the rest is not trained on (27% of all tokens)"
    code, out, err = run(capsys, *quick(pairs, models, "--dry-run"))
    assert code == 0 and shortened in err
    assert "the encoder reads 16 tokens of a text, SHORTENED from 512 by encoder.max_length" in out
    assert cut in out
    _, out, _ = run(capsys, *quick(pairs, models, "--dry-run", "--json"))
    (stage,) = json.loads(out)["stages"]
    assert stage["lengths"]["truncation"]["lost"] == 6 * (3 + 11)

    # Each of the 22 to 24 examples once, without negatives: what was read is what is counted.
    options = ("--set", "data.negatives=null", "--set", "schedule.steps=null", "--set", "schedule.epochs=2")
    folder = tmp_path / "run"
    code, out, err = run(capsys, *quick(pairs, models, *options, "-o", str(folder)))
    assert code == 0 and shortened in err
    (stage,) = json.loads((folder / "report.json").read_text())["stages"]
    found = stage["lengths"]
    trained = [row for row in rows if row["query"] in _trained(folder)]
    words = [len(row["positive"].split()) for row in trained]
    assert (found["max_length"], found["shortened_from"]) == (16, 512)
    assert found["truncation"]["cut"] == sum(count > 14 for count in words)
    assert found["truncation"]["lost"] == sum(max(0, count - 14) for count in words)
    assert found["truncation"]["texts"] == 2 * len(trained)
    told = f"{found['truncation']['cut']} of {2 * len(trained)} training texts are longer than 16 tokens"
    for text in (out, (folder / "README.md").read_text(), (folder / "best" / "README.md").read_text()):
        assert "SHORTENED from 512 by encoder.max_length" in text and told in text


def _trained(folder: Path) -> set[str]:
    from datasets import Dataset

    return set(Dataset.from_file(str(folder / "data" / "ready.arrow"))["query"])


def quick(pairs: Path, models: dict[str, Path], *more: str) -> list[str]:
    overrides = {
        "data.train": pairs,
        "encoder.name": models["encoder"],
        "teachers.dense.name": models["dense"],
        "labels.cache_folder": models["dense"].parent / "cache",
        "schedule.steps": 4,
        "schedule.evaluate_every": 2,
        "schedule.batch_size": 8,
        "encoder.max_length": 16,
    }
    options = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    return ["train", "quick", *options, *more]


def test_quick_from_pairs_to_an_encoder(
    pairs: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    mined = ("--set", "data.negatives.per_query=1")
    code, out, err = run(capsys, *quick(pairs, models, "-o", str(folder), *mined))
    assert code == 0, err
    for told in (
        "before",
        "after quick",
        "nDCG@10",
        "negatives: 1 an example",
        "dense teacher",
        "oskit export",
    ):
        assert told in out
    assert "quick: training, 4 steps" in err and "quick: step 4:" in err

    from oskit import NeuralSparseEncoder

    encoder = NeuralSparseEncoder.from_pretrained(str(folder / "best"), fallback=False)
    assert encoder.document_weights(["the bridge of concrete"])[0]

    code, _, err = run(capsys, *quick(pairs, models, "-o", str(folder)))
    assert code == 2 and "--resume" in err
    code, out, _ = run(capsys, "train", folder, "--resume", "--json")
    assert code == 0
    assert json.loads(out)["encoder"] == str(folder / "best"), "a finished run tells its report again"


def test_part_3_training_off_a_terminal_tells_the_time_left_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with Display(output.Output()) as display:
        display.stage_started("quick", 1, 1)
        display.training_started(1000, 400)
        for step in range(401, 500):
            clock.now += 1.0
            display.step(step, 1000, {"loss": 1.5} if step % 10 == 0 else {})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "quick: training, 1,000 steps, 400 of them done",
        "quick: loss 1.500: 430 of 1,000 steps, 1.0 steps/s, 9 min 30 s left",
        "quick: loss 1.500: 460 of 1,000 steps, 1.0 steps/s, 9 min 0 s left",
        "quick: loss 1.500: 490 of 1,000 steps, 1.0 steps/s, 8 min 30 s left",
    ]
