"""``oskit evaluate``: collections in folders and of NanoBEIR's layout, rows, reports, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from oskit.cli import main
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.evaluation.offline.names import short_names
from tests import tiny
from tests.unit.training.teacher_models_tiny import build_dense

TEXTS = {"d1": "a long bridge of concrete", "d2": "the water road", "d3": "stone house", "d4": "steel beam"}
QUERIES = {"q1": "concrete bridge", "q2": "road", "q3": "house of stone"}
QRELS = {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d3": 1}}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Both read the variable when they are imported, which another test may have done.
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    documents = tuple(Document(id=name, text=text) for name, text in TEXTS.items())
    return Collection(QUERIES, QRELS, documents).write(tmp_path / "collection")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("bert", tmp_path_factory.mktemp("evaluate") / "bert")


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """A folder in the layout of NanoBEIR-en: two of the thirteen."""
    from datasets import Dataset

    folder = tmp_path / "nano"
    parts: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"_id": name, "text": text} for name, text in {**TEXTS, "empty": ""}.items()],
        "queries": [{"_id": name, "text": text} for name, text in {**QUERIES, "unjudged": "water"}.items()],
        "qrels": [{"query-id": query, "corpus-id": d} for query, judged in QRELS.items() for d in judged],
    }
    lines = ["---", "configs:"]
    for part, rows in parts.items():
        lines += [f"- config_name: {part}", "  data_files:"]
        for split in ("NanoSciFact", "NanoNQ"):
            Dataset.from_list(rows).to_parquet(folder / part / f"{split}.parquet")
            lines += [f"  - split: {split}", f"    path: {part}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["evaluate", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_everything_at_once(
    collection: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = build_dense(tmp_path / "dense")
    options = ("--bm25", "--baseline", "bm25", "--prune-levels", "0.1", "--dense", dense, "--resamples", 100)
    code, out, _ = run(capsys, collection, encoder, *options, "--json", "--report", tmp_path / "out")
    data = json.loads(out)
    assert code == 0
    assert [row["kind"] for row in data["encoders"]] == ["sparse", "bm25", "dense"]
    assert data["encoders"][1]["quality"]["nDCG@10"] == 1.0
    assert data["encoders"][0]["significance"][0]["baseline"] == "BM25"
    assert [point["rule"] for point in data["encoders"][0]["pruning"]] == ["none", "max_ratio:0.1"]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == data
    assert "max_ratio:0.1" in (tmp_path / "out" / "evaluation.html").read_text()


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["runs/quick/best", "runs/strong/best"], ["quick", "strong"]),
        (["runs/quick/best", "runs/quick/archives"], ["quick/best", "quick/archives"]),
        (["a/quick/best", "b/quick/best", "b/one"], ["a/quick/best", "b/quick/best", "one"]),
        (["out/onnx/faq-1.0.0.zip", "org/e5-small-v2.1"], ["faq-1.0.0", "e5-small-v2.1"]),
        (["org/e5", "other/e5"], ["org/e5", "other/e5"]),
    ],
)
def test_point_14_rows_have_short_names(sources: list[str], names: list[str]) -> None:
    assert short_names(sources) == names
    assert short_names([f"/{source}" for source in sources]) == names


def test_point_14_labels_and_the_baseline_by_either_name(
    collection: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = tmp_path / "runs" / "quick" / "best"
    shutil.copytree(encoder, run_folder)

    def rows(*options: object) -> tuple[list[str], str]:
        code, out, _ = run(capsys, collection, run_folder, encoder, "--bm25", "--json", *options)
        assert code == 0
        data = json.loads(out)
        assert [row.get("source") for row in data["encoders"][:2]] == [str(run_folder), str(encoder)]
        return [row["name"] for row in data["encoders"]], data["baseline"]

    assert rows("--baseline", run_folder) == (["quick", "bert", "BM25"], "quick")
    labels = ("--label", "fast", "--label", "good")
    assert rows(*labels, "--baseline", "good") == (["fast", "good", "BM25"], "good")
    code, out, _ = run(capsys, collection, run_folder, encoder, "--bm25", "-q", "--report", tmp_path / "out")
    assert code == 0
    assert str(tmp_path) not in out
    header = (tmp_path / "out" / "evaluation.html").read_text()
    assert "<td>quick</td>" in header
    for wrong in (("--label", "one"), ("--label", "same", "--label", "same"), (run_folder,)):
        assert run(capsys, collection, run_folder, encoder, *wrong)[0] == 2


@pytest.mark.parametrize("width", [80, 160])
def test_point_14_the_table_fits_the_terminal(
    width: int,
    collection: Path,
    encoder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("oskit.cli.output.WIDTH_OFF_TERMINAL", width)
    _, out, _ = run(capsys, collection, encoder, "--bm25", "-q", "--label", "a-name-of-20-letters")
    assert max(map(len, out.splitlines())) <= width
    for whole in ("nDCG@10", "R@1000", "postings", "FLOPS", "1.0000", "a-name-of-20-letters"):
        assert whole in out, f"{whole} is broken into two lines"


def test_bm25_alone_needs_no_model(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, collection, "--bm25", "--bm25-language", "english", "-q")
    assert (code, err) == (0, "")
    assert "BM25" in out and "1.0000" in out


def test_nano_beir(nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--nano-beir", "scifact,NanoNQ", "--nano-beir-source", nano, "--bm25")
    code, out, _ = run(capsys, *args, "--json", "--report", tmp_path / "out")
    data = json.loads(out)
    assert code == 0
    assert [item["collection"]["name"] for item in data["evaluations"]] == ["NanoSciFact", "NanoNQ"]
    first = data["evaluations"][0]["collection"]
    assert (first["documents"], first["queries"]) == (4, 3)
    assert data["means"]["BM25"]["nDCG@10"] == 1.0
    assert (tmp_path / "out" / "evaluation-NanoNQ.html").is_file()
    _, out, _ = run(capsys, *args)
    assert "mean" in out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "no COLLECTION"),
        (("COLLECTION",), 2, "nothing to evaluate"),
        (("COLLECTION", "--bm25", "--bm25-language", "elvish"), 2, "'elvish'"),
        (("COLLECTION", "--bm25", "--baseline", "other"), 2, "no row is called 'other'"),
        (("COLLECTION", "--bm25", "--prune-levels", "much"), 2, "needs an ENCODER"),
        (("COLLECTION", "--bm25", "--nano-beir", "scifact"), 2, "is a COLLECTION"),
        (("--bm25", "--nano-beir", "scifi"), 2, "no 'scifi'"),
        (("--bm25", "--nano-beir", "scifact"), 3, "cannot be loaded from sentence-transformers/NanoBEIR-en"),
        (("COLLECTION", "--dense", "no-such-model"), 5, "no file or folder no-such-model"),
    ],
)
def test_errors_are_one_line(
    collection: Path, args: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = run(capsys, *(collection if arg == "COLLECTION" else arg for arg in args), "-q")
    assert found == code
    assert message in err
    assert err.startswith("Error: ") and err.count("\n") == 1


def test_documents_that_are_too_long_are_counted(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [Document("d1", "bridge " * 600), Document("d2", "road"), Document("d3", "house " * 510)]
    folder = Collection(QUERIES, QRELS, tuple(documents)).write(tmp_path / "long")
    told = "1 of 3 documents is longer than 512 tokens: the rest is not encoded (8% of all tokens)"
    code, out, _ = run(capsys, folder, encoder, "--bm25", "--report", tmp_path / "out")
    assert code == 0 and out.count(told) == 1
    assert told in (tmp_path / "out" / "evaluation.html").read_text()
    ours, bm25 = json.loads((tmp_path / "out" / "evaluation.json").read_text())["encoders"]
    assert (ours["truncation"]["cut"], ours["truncation"]["lost"], bm25["truncation"]) == (1, 90, None)


def test_the_language_of_bm25_is_told_and_can_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "Bygglov krävs när ägaren vill ändra huset {}, och det ges av kommunen så snart det går"
    documents = tuple(Document(id=f"d{n}", text=text.format(n)) for n in range(20))
    folder = Collection({"q": "husens 7"}, {"q": {"d7": 1}}, documents).write(tmp_path / "swedish")
    found = {}
    for language in ("auto", "german", "none"):
        code, out, _ = run(capsys, folder, "--bm25", "--bm25-language", language, "--json")
        (row,) = json.loads(out)["encoders"]
        assert code == 0
        found[language] = (row["settings"]["language"], row["guess"] and row["guess"]["votes"])
    assert found == {"auto": ("swedish", {"swedish": 20}), "german": ("german", None), "none": (None, None)}
    assert "analyzed as swedish (guessed by 20 of 20" in run(capsys, folder, "--bm25")[1].replace("\n", " ")
    code, _, err = run(capsys, folder, "--bm25", "--bm25-language", "klingon")
    assert (code, "hungarian" in err) == (2, True)
    code, _, err = run(capsys, folder, "--dense", "x", "--bm25-b", "0.5")
    assert (code, "--bm25-b is for BM25" in err) == (2, True)


def test_chunks_beside_the_cut_encoder(
    collection: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, collection, encoder, "--chunk", "tokens:16", "--label", "mine", "--json")
    names = [row["name"] for row in json.loads(out)["encoders"]]
    assert (code, len(names)) == (0, 2)
    for wrong in (("--chunk", "tokens:9"), ("--chunk", "384"), ("--chunk", "tokens:100000")):
        code, _, err = run(capsys, collection, encoder, *wrong)
        assert code == 2, err
    code, _, err = run(capsys, collection, "--bm25", "--chunk", "tokens:16")
    assert (code, "--chunk needs an ENCODER" in err) == (2, True)
