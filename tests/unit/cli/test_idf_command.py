"""``oskit idf``."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oskit.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.fast_tokenizer("bert").save_pretrained(folder)
    return folder


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["idf", *(str(arg) for arg in args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_several_sources_of_several_kinds(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = jsonl(tmp_path / "a.jsonl", [{"title": "the", "text": "road"}, {"text": "the water"}])
    second = tmp_path / "b.csv"
    second.write_text("id,text\n1,a bridge\n")
    folder = tmp_path / "beir"
    folder.mkdir()
    jsonl(folder / "corpus.jsonl", [{"_id": "1", "title": "", "text": "the house"}])
    target = tmp_path / "idf.json"
    code, out, err = run(capsys, first, second, folder, "-o", target, "--model", tokenizer, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["documents"], result["refused"], result["tokens_seen"]) == (4, 0, 6)
    assert result["largest"] == pytest.approx(math.log(10))
    table = json.loads(target.read_text())
    assert table["the"] == pytest.approx(math.log(1 + 1.5 / 3.5))
    assert table["road"] == pytest.approx(math.log(1 + 3.5 / 1.5))
    assert table["strong"] == pytest.approx(math.log(10))
    assert table["[CLS]"] == 0
    assert len(table) == 161
    assert min(weight for weight in table.values() if weight) > 0


def test_from_stdin_for_people(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'{"body": "the road"}\n{"body": "the water"}\n'))
    monkeypatch.setattr("sys.stdin", stdin)
    code, out, err = run(capsys, "-", "-o", tmp_path / "i.json", "--model", tokenizer, "--text-field", "body")
    assert (code, err) == (0, "")
    assert "2 documents, 3 tokens occur in them" in out


def test_refused_records_are_told(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "the road"}\noops\n{"body": "x"}\n')
    target = tmp_path / "idf.json"
    code, out, err = run(capsys, path, "-o", target, "--model", tokenizer)
    assert code == 10
    assert "2 records were refused" in out
    assert f"Warning: {path}:2: not JSON" in err and f"{path}:3: no field 'text'" in err
    assert target.is_file()
    path.write_text("oops\n")
    code, out, err = run(capsys, path, "-o", tmp_path / "none.json", "--model", tokenizer)
    assert (code, out) == (3, "")
    assert err.startswith("Error: all 1 records were refused") and err.count("\n") == 1
    assert not (tmp_path / "none.json").exists()


def test_what_cannot_be(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": "the road"}])
    for args, code in (
        ((tmp_path / "no.jsonl", "-o", tmp_path / "i", "--model", tokenizer), 3),
        ((source, "-o", tmp_path / "i", "--model", tmp_path), 5),
        ((source, "-o", source / "i", "--model", tokenizer), 2),
        ((source,), 2),
    ):
        found, out, err = run(capsys, *args)
        assert (found, out) == (code, "")
        assert err.startswith("Error: ") and err.count("\n") == 1


def test_it_needs_no_torch(tokenizer: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": "the road"}])
    args = ["idf", str(source), "-o", str(tmp_path / "idf.json"), "--model", str(tokenizer)]
    blocked = "".join(
        f"sys.modules[{name!r}] = None\n" for name in ("torch", "transformers", "sentence_transformers")
    )
    script = f"import sys\n{blocked}from oskit.cli import main\nsys.exit(main({args!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 documents" in done.stdout
