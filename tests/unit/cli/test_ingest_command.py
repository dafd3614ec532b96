"""``oskit ingest``, as far as it goes without a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from archives import encoder_archive

from oskit.cli.commands.ingest import _dead_letter
from oskit.cli.main import main
from oskit.data import files


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four documents, two of them longer than the 128 tokens of the archive."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": "quick fox " * n}) + "\n" for n in (1, 63, 64, 100)))
    return path


def test_a_dry_run_says_what_is_too_long(corpus: Path, capsys: pytest.CaptureFixture[str]):
    archive = str(encoder_archive(corpus.with_name("encoder.zip")))
    assert main(["ingest", "i", str(corpus), "--dry-run", "--archive", archive]) == 0
    said = capsys.readouterr().out
    assert "4 of 4 records can be loaded into i" in said
    told = "2 of 4 documents are longer than 128 tokens: the rest is not encoded (17% of all tokens)"
    assert told in said and "split them into passages" in said
    assert main(["ingest", "i", str(corpus), "--dry-run", "--archive", archive, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["truncation"] == {
        "max_length": 128, "texts": 4, "cut": 2, "tokens": 456, "lost": 76, "lost_share": 0.1667,
    }  # fmt: skip


def test_what_cannot_be_counted_is_said_too(corpus: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["ingest", "i", str(corpus), "--dry-run"]) == 0
    assert "were not counted: --archive DIR does\n" in capsys.readouterr().out
    assert main(["ingest", "i", str(corpus), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["truncation"] is None


@pytest.mark.parametrize(("quiet", "counted"), [(["--quiet"], 0), ([], 1)])
def test_nothing_is_counted_for_a_bar_that_nobody_sees(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, quiet: list[str], counted: int
):
    calls: list[object] = []
    monkeypatch.setattr(files, "count_records", lambda sources, **_: calls.append(sources))
    archive = str(encoder_archive(corpus.with_name("encoder.zip")))
    command = ["ingest", "i", str(corpus), "--archive", archive, "--url", "http://127.0.0.1:9", *quiet]
    assert main([*command, "--retry-for", "0"]) == 7
    assert len(calls) == counted


def test_the_longest_index_name_has_a_dead_letter_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not _dead_letter("a" * 255, ("-",), None).exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "m", "--backend", "openvino"], "have no effect without --archive"),
        (["--archive", "ARCHIVE", "--encode", "cluster", "--precision", "bf16"], "where the cluster encodes"),
        (["--archive", "ARCHIVE", "--device", "cuda"], "does not run on cuda"),
        (["--archive", "ARCHIVE", "--precision", "int8"], "is not quantised to int8"),
        (
            ["--archive", "ARCHIVE", "--pipeline-batch-size", "4"],
            "no effect where documents are encoded here",
        ),
    ],
)
def test_what_an_encoder_runs_on_has_to_fit(
    corpus: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    archive = str(encoder_archive(corpus.with_name("encoder.zip")))
    given = [archive if option == "ARCHIVE" else option for option in options]
    assert main(["ingest", "i", str(corpus), "--url", "http://127.0.0.1:9", "--retry-for", "0", *given]) == 2
    assert reason in capsys.readouterr().err
