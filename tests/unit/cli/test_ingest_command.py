"""``oskit ingest``, as far as it goes without a cluster."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from archives import encoder_archive

from oskit import extras
from oskit.cli.commands.ingest import _dead_letter
from oskit.cli.main import main
from oskit.data import files
from oskit.data.documents import Document
from tests.fake_ingest import FakeIngest


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
    assert told in said and "--chunk tokens:128,overlap:16 cuts them" in said
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
    for name in ("a" * 255, "é" * 127):
        assert not _dead_letter(name, ("-",), None).exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "m", "--backend", "openvino"], "have no effect without --archive"),
        (["--archive", "ARCHIVE", "--encode", "cluster", "--precision", "bf16"], "where the cluster encodes"),
        (["--archive", "ARCHIVE", "--device", "cuda"], "does not run on cuda"),
        (["--archive", "ARCHIVE", "--part", "1/2", "--delete-missing"], "in the other parts"),
        (["--archive", "ARCHIVE", "--yes"], "without --delete-missing"),
        (["--archive", "ARCHIVE", "--chunk", "tokens:129"], "reads 128 tokens of a text"),
        (["--archive", "ARCHIVE", "--chunk", "words:20"], "chunks cannot be read from 'words:20'"),
        (["--model", "m", "--chunk", "tokens:99"], "needs the encoder's tokenizer"),
        (["--encode", "none", "--chunk", "tokens:99"], "come with their vectors are not cut"),
        (["--archive", "ARCHIVE", "--precision", "int8"], "is not quantised to int8"),
        (
            ["--archive", "ARCHIVE", "--pipeline-batch-size", "4"],
            "no effect where the cluster does not encode",
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


def test_a_mistyped_archive_is_no_model_with_a_random_projection(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(corpus.with_name("nowhere") / "archive")
    options = ["--archive", missing, "--url", "http://127.0.0.1:9", "--retry-for", "0"]
    assert main(["ingest", "i", str(corpus), *options]) == 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no encoder" in said and "random" not in said


def test_files_of_vectors_from_encode_to_ingest(corpus: Path, capsys: pytest.CaptureFixture[str]):
    """What `oskit encode -o` writes in parts is what `--encode none` reads, all of it and nothing twice."""
    archive, folder = str(encoder_archive(corpus.with_name("encoder.zip"))), corpus.parent
    with corpus.open("a") as file:
        file.writelines(json.dumps({"text": f"fox {n}", "n": n, "m": n}) + "\n" for n in range(50))
        file.write("no JSON\n")
    parts, read = [], 0
    for number in (1, 2, 3):
        parts.append(str(folder / f"part-{number}.parquet"))
        command = ["encode", archive, str(corpus), "-o", parts[-1], "--part", f"{number}/3", "--fields", "n"]
        code = main([*command, "--prune", "max_ratio:0.5", "--json"])
        report = json.loads(capsys.readouterr().out)
        assert report["part"] == f"{number}/3" and 0 <= report["encoder_busy"] <= 1
        assert report["read"] + report["in_other_parts"] == 55
        assert code == (10 if report["refused"] else 0)
        read += report["read"]
    assert read == 55 and sum(Path(f"{part}.refused.jsonl").exists() for part in parts) == 1
    command = ["ingest", "i", *parts, "--encode", "none", "--dry-run", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["indexed"], report["refused"], report["duplicates"]) == (54, 0, 0)
    documents = list(files.read_documents(parts, vector_field="embedding"))
    assert sorted(document.fields["n"] for document in documents if document.fields) == list(range(50))
    assert main([*command, "--archive", archive]) == 0
    capsys.readouterr()
    assert main([*command[:-1], "--index-kind", "sparse_vector"]) == 10
    assert "is no token id" in capsys.readouterr().out
    with FakeIngest() as cluster:
        assert main([*command, "--url", cluster.url]) == 0
    made = json.loads(capsys.readouterr().out)["calls"][0]["body"]["mappings"]["_meta"]["oskit"]
    assert made["prune"] == "max_ratio:0.5", "or verify would expect all weights"
    assert main([*command, "--prune", "max_ratio:0.5"]) == 2
    assert main(["encode", archive, str(corpus), "-o", parts[0]]) == 10
    assert main(command) == 2
    assert "pruned otherwise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fields", "n"], "--fields has no effect without -o"),
        (["--format", "csv"], "--format has no effect without -o"),
        (["-o", "v.txt"], "does not tell its format"),
        (["-o", "corpus.jsonl"], "would be written to"),
        (["-o", "v.jsonl", "--dead-letter", "v.jsonl"], "-o and --dead-letter are both"),
        (["-o", "v.jsonl", "--part", "4/3"], "no part 4 of 3"),
        (["-o", "v.jsonl", "--top", "3"], "--prune"),
    ],
)
def test_options_of_encode_that_do_not_fit(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options, said
):
    monkeypatch.chdir(corpus.parent)
    archive = str(encoder_archive(corpus.with_name("encoder.zip")))
    assert main(["encode", archive, corpus.name, *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("keep", ["refuse", "first", "last"])
def test_ids_that_come_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keep: str
):
    """From stdin, which is read once; a later record that is refused takes no document's place."""
    lines = [("a", "one"), ("b", "b"), ("a", "two"), ("b", "b"), ("a", "three"), ("c", "c"), ("c", [])]
    text = "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in lines)
    archive, file = str(encoder_archive(tmp_path / "encoder.zip")), tmp_path / "vectors.jsonl"
    for command in (["ingest", "i", "-", "--dry-run"], ["encode", archive, "-", "-o", str(file)]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert main([*command, "--duplicates", keep, "--json"]) == 10
        told = json.loads(capsys.readouterr().out)
        dropped = 0 if keep == "refuse" else 2
        assert (told["read"], told["refused"], told["duplicates"]) == (7, 3 - dropped, 1 + dropped)
        assert (told["superseded"], told["superseded_ids"]) == (dropped, ["a"] * dropped)
    written = {line["_id"]: line["text"] for line in map(json.loads, file.read_text().splitlines())}
    assert written == {"a": "three" if keep == "last" else "one", "b": "b", "c": "c"}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--archive", "a", "--ray"], 4, "ray"),
        (["--archive", "a", "--encoders", "2"], 2, "--encoders has no effect without --ray"),
        (["--archive", "a", "--dry-run", "--ray"], 2, "no effect with --dry-run"),
        (["--encode", "none", "--ray"], 2, "needs an encoder"),
        (["--archive", "a", "--encode", "cluster", "--model", "m", "--ray=local"], 2, "needs an encoder"),
        (["--archive", "a", "--ray", "corpus.jsonl"], 2, "'corpus.jsonl' is no address of Ray's"),
        (["--archive", "a", "--ray=user:secret@host:1"], 2, "is no address of Ray's"),
    ],
)
def test_what_does_not_go_with_ray(
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    said: str,
):
    monkeypatch.setattr(extras, "is_installed", lambda name: name != "ray")
    assert main(["ingest", "i", str(corpus), *options]) == code
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and said in told


@pytest.mark.parametrize("suffix", ["parquet", "jsonl.gz"])
def test_two_processes_that_write_one_file(corpus: Path, suffix: str):
    """Each writes beside it: whatever comes last is there whole, and nothing else is left."""
    archive, file = str(encoder_archive(corpus.with_name("encoder.zip"))), corpus.with_name(f"out.{suffix}")
    sources = {n: corpus.with_name(f"{n}.jsonl") for n in (200, 300)}
    for count, source in sources.items():
        source.write_text(
            "".join(json.dumps({"_id": f"{n}", "text": f"{count}"}) + "\n" for n in range(count))
        )
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "oskit", "encode", archive, str(source), "-o", str(file), "--quiet"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for source in sources.values()
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    written = list(files.read_documents([file], vector_field="embedding"))
    texts = {item.text for item in written if isinstance(item, Document)}
    assert texts == {str(len(written))} and len(written) in sources
    assert [path for path in corpus.parent.iterdir() if path.name.startswith(".")] == []
