"""``oskit export``: what it prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from oskit.archive.archive import open_archive
from oskit.cli.main import main


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("xlmr", tmp_path_factory.mktemp("encoder") / "my-encoder")


@pytest.fixture(autouse=True)
def one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.export.parity_texts", lambda: ["hello world"])


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["export", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_table_for_people(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, encoder, "-o", tmp_path / "out")
    assert code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"onnx", "torchscript"}
    for name in ("onnx", "torchscript"):
        assert f"{name}/my-encoder-1.0.0-{name}.zip" in out
    assert f"oskit deploy {tmp_path / 'out'}" in out
    assert "the first 512 tokens are encoded" in out
    # What is worth knowing goes to stderr, once.
    assert err.count("use token ids as keys") == 1


def test_json_for_scripts(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quantize", "int8", "--prune", "top_k:30", "--name", "n", "--version", "2", "--json"]
    code, out, _ = run(capsys, encoder, "-o", tmp_path, *options)
    assert code == 0
    (record,) = json.loads(out)
    archive = open_archive(tmp_path)
    assert record["path"] == str(tmp_path / "onnx" / "n-2-onnx.zip")
    assert (record["sha256"], record["size"]) == (archive.sha256, archive.size)
    assert record["parity"]["retrieval"]["overlap"] >= record["parity"]["retrieval"]["min_overlap"]
    assert record["max_length"] == 512
    assert archive.manifest is not None
    assert (archive.manifest.quantization, archive.manifest.prune) == ("int8", "top_k:30")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prune", "max_ratio"], 2, "cannot read 'max_ratio' as a pruning rule"),
        (["--prune", "alpha_mass:0.5"], 2, "cannot be baked"),
        (["--format", "torchscript", "--quantize", "int8"], 2, "TorchScript archives cannot be quantised"),
        (["--calibrate", "corpus.jsonl"], 2, "Add --quantize int8"),
        (["--quantize", "int8", "--calibrate", "missing.jsonl"], 3, "no such file: missing.jsonl"),
        (["--format", "keras"], 2, "'keras' is not one of"),
        (["--name", "a<b"], 2, "ML Commons does not take the name"),
    ],
)
def test_what_cannot_be_asked_for(
    encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    found, out, err = run(capsys, encoder, "-o", tmp_path / "out", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_failing_onnx_export_prints_no_graph(
    encoder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No ONNX operator computes it; torch prints the graph past Python, to the process's stdout.
    monkeypatch.setattr("exporters.graph.BakedEncoder._activate", lambda _, logits: torch.special.i1(logits))
    code, out, err = run(capfd, encoder, "-o", tmp_path / "out", "--format", "onnx", "--json")
    assert (code, out) == (6, "")
    (line,) = err.strip().splitlines()
    assert "special_i1" in line
    assert "--format torchscript" in line
    assert not (tmp_path / "out").exists()


def test_an_untrained_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.build("bert-headless", tmp_path / "headless")
    code, _, err = run(capsys, path, "-o", tmp_path / "out")
    assert code == 5
    assert "--allow-untrained" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    code, _, err = run(capsys, path, "-o", tmp_path / "out", "--allow-untrained", "--format", "onnx")
    assert code == 0
    assert "!! UNTRAINED ENCODER" in err


def test_the_loaders_options(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--activation", "log1p_relu", "--max-length", "64", "--format", "onnx"]
    code, _, _ = run(capsys, encoder, "-o", tmp_path, *options)
    manifest = open_archive(tmp_path).manifest
    assert code == 0
    assert manifest is not None
    assert (manifest.activation, manifest.max_length) == ("log1p_relu", 64)
    # The same folder by another path is the same encoder.
    monkeypatch.chdir(encoder.parent)
    assert run(capsys, encoder.name, "-o", tmp_path, "--format", "onnx")[0] == 0
