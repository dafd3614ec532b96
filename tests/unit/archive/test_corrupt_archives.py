"""Damaged archives: refused in one line before anything of them is used, or as good as they were."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oskit.archive.archive import open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.cli.main import main
from oskit.errors import ArchiveError, OskitError
from tests.archives import add_entry, encoder_archive, tokenizer_archive, write_manifest, write_zip
from tests.http_server import HttpServer, Reply, Request

TEXTS = ["quick brown fox", "", "building permit ."]
FUZZ = settings(max_examples=120, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encoder_archive(tmp_path_factory.mktemp("whole") / "encoder.zip").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def expected(whole: bytes, folder: Path) -> list[dict[str, float]]:
    path = folder / "whole.zip"
    path.write_bytes(whole)
    return ArchiveEncoder.open(path).document_weights(TEXTS)


def opened(path: Path) -> list[dict[str, float]] | None:
    """What the archive predicts; None if it is refused."""
    try:
        open_archive(path)
        return ArchiveEncoder.open(path).document_weights(TEXTS)
    except OskitError as error:
        assert "\n" not in str(error)
        assert path.name in str(error), "the file is named"
        return None


@FUZZ
@given(data=st.data())
def test_changed_bytes(
    whole: bytes, folder: Path, expected: list[dict[str, float]], data: st.DataObject
) -> None:
    damaged = bytearray(whole)
    # Most bytes are compressed data; the headers are where a reader can be led astray.
    ends = st.integers(0, 400) | st.integers(len(whole) - 500, len(whole) - 1)
    for place in data.draw(st.lists(ends | st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        damaged[place] ^= data.draw(st.integers(1, 255))
    path = folder / "flipped.zip"
    path.write_bytes(damaged)
    found = opened(path)
    assert found is None or found == expected


@FUZZ
@given(cut=st.integers(0, 1 << 20), start=st.booleans())
@example(cut=1, start=False)
@example(cut=22, start=False)
def test_cut_off(whole: bytes, folder: Path, cut: int, start: bool) -> None:
    cut = 1 + cut % (len(whole) - 1)
    path = folder / "cut.zip"
    path.write_bytes(whole[cut:] if start else whole[:-cut])
    assert opened(path) is None


@FUZZ
@given(st.binary(max_size=300))
def test_anything(folder: Path, content: bytes) -> None:
    path = folder / "anything.zip"
    path.write_bytes(content)
    assert opened(path) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(data=st.data())
def test_a_manifest_that_was_tampered_with(whole: bytes, folder: Path, data: st.DataObject) -> None:
    path = folder / "described" / "encoder.zip"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(whole)
    manifest = write_manifest(path)
    values = json.loads(manifest.read_text())
    name = data.draw(st.sampled_from(sorted(values)))
    values[name] = data.draw(JSON)
    manifest.write_text(json.dumps(values), encoding="utf-8")
    try:
        found = open_archive(path)
    except OskitError as error:
        assert "\n" not in str(error)
    else:  # only what describes may differ
        assert (found.kind, found.model_format, found.function_name) == ("encoder", "ONNX", "SPARSE_ENCODING")
        assert found.sha256 == hashlib.sha256(whole).hexdigest()


def test_a_bomb_is_refused_without_being_unpacked(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("m.onnx", "w") as stream:
        for _ in range(64):
            stream.write(bytes(1 << 20))
    raw = inner.getvalue()
    assert len(raw) < 100_000
    # The headers say 5 GB: more than ML Commons takes.
    lying = raw.replace(struct.pack("<L", 64 << 20), struct.pack("<L", (5 << 30) & 0xFFFFFFFF))
    for content in (raw, lying):
        path = tmp_path / "bomb.zip"
        path.write_bytes(content)
        with pytest.raises(ArchiveError):
            open_archive(path)


@pytest.mark.parametrize(
    "name",
    ["../tokenizer.json", "/etc/tokenizer.json", "C:\\tokenizer.json", "a\\..\\tokenizer.json", "x/../../t"],
)
def test_a_path_that_climbs_out_is_refused(tmp_path: Path, whole: bytes, name: str) -> None:
    path = tmp_path / "climbing.zip"
    path.write_bytes(whole)
    add_entry(path, zipfile.ZipInfo(name), b"{}")
    with pytest.raises(ArchiveError) as raised:
        open_archive(path)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.parent.glob("tokenizer.json"))


def test_nothing_is_sent_of_a_damaged_archive(
    tmp_path: Path, whole: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def answer(request: Request) -> Reply:
        asked.append(request.path)
        return Reply(500)

    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    path = tmp_path / "damaged.zip"
    path.write_bytes(damaged)
    with HttpServer(answer) as server:
        code = main(["deploy", str(path), "--url", server.url])
    assert code == 6
    assert not asked
    error = capsys.readouterr().err
    assert "damaged.zip" in error
    assert len(error.splitlines()) == 1


def test_a_tokenizer_archive_with_a_bad_idf(tmp_path: Path) -> None:
    path = tokenizer_archive(tmp_path / "tokenizer.zip")
    with zipfile.ZipFile(path) as archive:
        tokenizer = archive.read("tokenizer.json")
    for idf in (b"", b"[]", b'{"a": "b"}', b'{"a": NaN}', b'{"a": 1e999}', b"\xff", b'{"a": {"b": 1}}'):
        write_zip(path, {"tokenizer.json": tokenizer, "idf.json": idf})
        with pytest.raises(ArchiveError):
            open_archive(path)
