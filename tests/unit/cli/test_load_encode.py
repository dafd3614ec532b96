"""``oskit load`` and ``oskit encode``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from oskit.cli import main
from tests import tiny


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("bert", tmp_path_factory.mktemp("cli") / "bert")


@pytest.fixture(scope="module")
def inference_free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_inference_free(tmp_path_factory.mktemp("cli") / "free")


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_load_prints_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "load", folder)
    assert (code, err) == (0, "")
    for part in ("local folder", "pretrained", "symmetric", "log1p(relu(x))", "161 tokens", "2 layers of 32"):
        assert part in out


def test_load_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "load", folder, "--json", "--activation", "log1p_relu", "--max-length", 32)
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["tier"], report["activation"], report["max_length"]) == ("local", "log1p_relu", 32)


def test_load_warns_of_a_random_projection_and_saves_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    code, out, err = run(capsys, "load", tmp_path / "no", "--base", folder, "--save", start)
    assert code == 0
    assert "random: train it before retrieval" in out
    assert err.count("UNTRAINED ENCODER") == 1
    code, _, err = run(capsys, "load", start, "--no-fallback")
    assert code == 5
    assert err.startswith("Error: ") and err.count("\n") == 1


def test_load_of_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "load", "team/missing", "--base", "team/nothing")
    assert (code, out) == (5, "")
    assert err.count("\n") == 1 and "team/missing" in err and "HF_HUB_OFFLINE" in err


def test_encode_as_json_is_what_the_encoder_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from oskit.encoder.model import NeuralSparseEncoder

    texts = ["a concrete bridge", ""]
    code, out, _ = run(capsys, "encode", folder, *texts, "--json")
    expected = NeuralSparseEncoder.from_pretrained(folder).document_weights(texts)
    data = json.loads(out)
    assert code == 0
    assert [entry["text"] for entry in data] == texts
    assert [entry["weights"] for entry in data] == expected
    assert data[0]["kind"] == "document"


def test_encode_reads_lines_and_keeps_the_largest(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a bridge\r\na road\n"))
    _, out, _ = run(capsys, "encode", folder, "-", "water", "--top", 2, "--key", "id", "--json")
    data = json.loads(out)
    assert [entry["text"] for entry in data] == ["a bridge", "a road", "water"]
    assert all(len(entry["weights"]) == 2 and all(map(str.isdecimal, entry["weights"])) for entry in data)


def test_encode_draws_bars(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = run(capsys, "encode", folder, "a [bold]bridge[/]", "--top", 5)
    header, *bars = out.splitlines()
    assert err == ""
    assert "a [bold]bridge[/]" in header and "more" in header
    assert len(bars) == 5
    assert [bar.count("█") for bar in bars] == sorted((bar.count("█") for bar in bars), reverse=True)


def test_encode_queries_of_an_inference_free_encoder(
    inference_free: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "encode", inference_free, "a bridge", "--query", "--json")
    assert set(json.loads(out)[0]["weights"]) == {"a", "bridge"}


def test_encode_by_an_archive_gives_the_same(
    inference_free: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "export", inference_free, "--format", "onnx", "-o", tmp_path / "out", "-q")
    assert code == 0, err
    for side in ("--document", "--query"):
        texts = ("a concrete bridge over the water", "road")
        _, ours, _ = run(capsys, "encode", inference_free, *texts, side, "--json")
        _, theirs, _ = run(capsys, "encode", tmp_path / "out", *texts, side, "--json")
        for one, other in zip(json.loads(ours), json.loads(theirs), strict=True):
            assert one["weights"] == pytest.approx(other["weights"], abs=1e-4)
    for options, reason in (
        (("--max-length", "9"), "--max-length has no effect on an archive"),
        (("--backend", "torch"), "does not run on torch"),
    ):
        code, _, err = run(capsys, "encode", tmp_path / "out", "road", *options)
        assert code == 2 and reason in err


def test_encode_without_a_line_on_stdin(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, out, err = run(capsys, "encode", folder, "-")
    assert (code, out) == (2, "")
    assert "no text on standard input" in err


def test_encode_says_what_is_too_long(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--json"], ["--query"]):
        _, _, err = run(capsys, "encode", folder, "bridge " * 31, "road", "--max-length", 32, *options)
        told = "Warning: 1 of 2 texts is longer than 32 tokens: the rest is not encoded (3% of all tokens)\n"
        assert err == told
