"""Opening archives: what is taken, and everything that is refused, each with its reason."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from zipfile import ZIP_BZIP2, ZIP_STORED, ZipInfo

import pytest
import tiny

import oskit.archive.safety as checks
from oskit.archive.archive import Archive, is_archive, open_archive
from oskit.archive.manifest import Manifest
from oskit.errors import ArchiveError
from tests.archives import add_entry, write_zip

TOKENIZER = tiny.fast_tokenizer("bert").backend_tokenizer.to_str()
MODEL = b"\x08\x08model"
GOOD = {"model.onnx": MODEL, "tokenizer.json": TOKENIZER}


def write_entry(path: Path, entry: ZipInfo, content: bytes = b"x") -> Path:
    return add_entry(write_zip(path, GOOD, ZIP_STORED), entry, content)


def refusal(path: Path) -> str:
    with pytest.raises(ArchiveError) as caught:
        open_archive(path)
    assert "\n" not in str(caught.value)
    assert str(path.name) in str(caught.value) or str(path) in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


def manifest_for(archive: Archive, **changes: object) -> Manifest:
    parity = dict.fromkeys(("max_difference", "mean_difference", "mean_cosine", "min_cosine", "tolerance"), 0)
    content = {
        "file": archive.path.name,
        "sha256": archive.sha256,
        "size": archive.size,
        "name": "a-name",
        "version": "2.0",
        "description": "what it is",
        "kind": archive.kind,
        "model_format": archive.model_format,
        "function_name": archive.function_name,
        "architecture": "symmetric",
        "source": {"model": "somewhere"},
        "activation": "relu",
        "max_length": 512,
        "vocabulary": {"size": 161, "key_format": "token", "special_ids": 5},
        "parity": {**parity, "texts": 1, "runtime": "none"},
        **changes,
    }
    return Manifest.model_validate(content)


def test_an_onnx_archive(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "some-encoder.zip", {**GOOD, "LICENSE": "text"})
    archive = open_archive(path)
    assert (archive.kind, archive.model_format, archive.function_name) == (
        "encoder",
        "ONNX",
        "SPARSE_ENCODING",
    )
    assert (archive.name, archive.version, archive.model_file) == ("some-encoder", "1.0.0", "model.onnx")
    assert archive.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert archive.read("model.onnx") == MODEL
    assert archive.register_body() == {
        "name": "some-encoder",
        "version": "1.0.0",
        "description": "",
        "function_name": "SPARSE_ENCODING",
        "model_format": "ONNX",
        "model_content_size_in_bytes": path.stat().st_size,
        "model_content_hash_value": archive.sha256,
        "total_chunks": 1,
    }


def test_a_torchscript_archive_and_a_tokenizer_archive(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"model.pt": b"PK", "tokenizer.json": TOKENIZER})
    assert open_archive(path).model_format == "TORCH_SCRIPT"
    path = write_zip(tmp_path / "b.zip", {"idf.json": '{"hello": 1.5}', "tokenizer.json": TOKENIZER})
    archive = open_archive(path)
    assert (archive.kind, archive.function_name) == ("tokenizer", "SPARSE_TOKENIZE")
    assert archive.model_file is None


def test_chunks_are_counted_as_ml_commons_takes_them(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {**GOOD, "model.onnx": bytes(10_000_000)}, ZIP_STORED)
    assert open_archive(path).total_chunks == 2


def test_folders(tmp_path: Path) -> None:
    for kind, model in (("torchscript", "model.pt"), ("onnx", "model.onnx")):
        write_zip(tmp_path / "out" / kind / f"e-{kind}.zip", {model: MODEL, "tokenizer.json": TOKENIZER})
    assert open_archive(tmp_path / "out").model_format == "ONNX"
    assert open_archive(tmp_path / "out" / "torchscript").model_format == "TORCH_SCRIPT"
    (tmp_path / "out" / "onnx" / "e-onnx.zip").unlink()
    assert open_archive(tmp_path / "out").model_format == "TORCH_SCRIPT"


def test_what_opens_as_an_archive_is_taken_for_one(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "onnx" / "model.zip", GOOD)
    for there in (path, path.parent, tmp_path):
        assert is_archive(there)
        assert open_archive(there).path == path
    assert not is_archive(tmp_path / "no")
    (tmp_path / "data").mkdir()
    path.rename(tmp_path / "data" / "texts.zip")
    assert not is_archive(tmp_path), "a zip in any other folder of a model makes it no export"


def test_a_folder_without_archives_or_with_several(tmp_path: Path) -> None:
    assert "no archive at" in refusal(tmp_path / "absent")
    assert "no archive (*.zip)" in refusal(tmp_path)
    write_zip(tmp_path / "a.zip", GOOD)
    second = open_archive(write_zip(tmp_path / "b.zip", GOOD))
    assert "2 archives: a.zip, b.zip" in refusal(tmp_path)
    (tmp_path / "manifest.json").write_text(manifest_for(second).to_json())
    assert open_archive(tmp_path).path == second.path
    assert open_archive(tmp_path / "a.zip").manifest is None


def test_manifest_names_and_describes(tmp_path: Path) -> None:
    archive = open_archive(write_zip(tmp_path / "a.zip", GOOD))
    (tmp_path / "manifest.json").write_text(manifest_for(archive).to_json())
    archive = open_archive(archive.path)
    assert (archive.name, archive.version, archive.description) == ("a-name", "2.0", "what it is")
    assert archive.manifest is not None
    assert archive.manifest.key_format == "token"


def test_an_archive_that_its_manifest_does_not_describe(tmp_path: Path) -> None:
    archive = open_archive(write_zip(tmp_path / "a.zip", GOOD))
    path = tmp_path / "manifest.json"
    path.write_text(manifest_for(archive, sha256="0" * 64).to_json())
    assert "manifest.json beside it says 000000000000" in refusal(archive.path)
    path.write_text(manifest_for(archive, model_format="TORCH_SCRIPT").to_json())
    assert "holds model.onnx, but its manifest says encoder, TORCH_SCRIPT" in refusal(archive.path)
    path.write_text("{}")
    with pytest.raises(
        ArchiveError, match=r"manifest\.json is not an archive's manifest: file: Field required"
    ):
        open_archive(archive.path)


def test_the_register_body_of_opensearch_py_ml_names_an_archive_too(tmp_path: Path) -> None:
    archive = open_archive(write_zip(tmp_path / "a.zip", GOOD))
    body = {"name": "n", "version": "3", "model_content_hash_value": archive.sha256}
    path = tmp_path / "ml-commons_model_config.json"
    path.write_text(json.dumps(body))
    assert (open_archive(archive.path).name, open_archive(archive.path).version) == ("n", "3")
    path.write_text(json.dumps({**body, "model_content_hash_value": "1" * 64}))
    assert "ml-commons_model_config.json beside it says 111111111111" in refusal(archive.path)


def test_the_query_archive_stays_within_the_export(tmp_path: Path) -> None:
    archive = open_archive(write_zip(tmp_path / "out" / "onnx" / "a.zip", GOOD))
    manifest = archive.path.with_name("manifest.json")
    tokenizer = write_zip(tmp_path / "out" / "tokenizer" / "t.zip", {"tokenizer.json": TOKENIZER})
    manifest.write_text(manifest_for(archive, query_archive="../tokenizer/t.zip").to_json())
    assert open_archive(archive.path).query_archive() == tokenizer.resolve()
    tokenizer.unlink()
    assert open_archive(archive.path).query_archive() is None
    for path in ("../../elsewhere.zip", "/etc/elsewhere.zip"):
        manifest.write_text(manifest_for(archive, query_archive=path).to_json())
        with pytest.raises(ArchiveError, match="outside of the export"):
            open_archive(archive.path).query_archive()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tokenizer.json": TOKENIZER}, "neither a model"),
        ({"model.onnx": MODEL}, "no tokenizer.json"),
        ({**GOOD, "other.pt": MODEL}, "2 models"),
        ({**GOOD, "folder/file": "x"}, "is in a folder"),
        ({"e/model.onnx": MODEL, "e/tokenizer.json": TOKENIZER}, "is in a folder"),
        ({**GOOD, "../up": "x"}, "points out of the archive"),
        ({**GOOD, "..\\up": "x"}, "points out of the archive"),
        ({**GOOD, "/etc/passwd": "x"}, "points out of the archive"),
        ({**GOOD, "C:evil": "x"}, "points out of the archive"),
        ({**GOOD, "lib.so": "x"}, "executable"),
        ({**GOOD, "lib.SO.6": "x"}, "executable"),
        ({**GOOD, "Evil.class": "x"}, "executable"),
        ({**GOOD, "run.sh": "x"}, "executable"),
        ({**GOOD, "serving.properties": "x"}, "executable"),
        ({**GOOD, "innocent": b"\x7fELF\x02\x01"}, "executable program"),
        ({**GOOD, "innocent": b"#!/bin/sh\n"}, "executable program"),
        ({**GOOD, "model.onnx": b"MZ\x90"}, "executable program"),
        ({**GOOD, "MODEL.ONNX": MODEL}, "twice"),
        ({**GOOD, "tokenizer.json": "{"}, "tokenizer.json is not JSON"),
        ({**GOOD, "tokenizer.json": "[]"}, "not a tokenizer"),
        ({"tokenizer.json": TOKENIZER, "idf.json": "[1]"}, "not a table of token weights"),
        ({"tokenizer.json": TOKENIZER, "idf.json": "{}"}, "not a table of token weights"),
        ({"tokenizer.json": TOKENIZER, "idf.json": '{"a": "1"}'}, "gives the token 'a' the weight '1'"),
        ({"tokenizer.json": TOKENIZER, "idf.json": '{"a": true}'}, "gives the token 'a' the weight True"),
        ({"tokenizer.json": TOKENIZER, "idf.json": '{"a": -1}'}, "gives the token 'a' the weight -1"),
        ({"tokenizer.json": TOKENIZER, "idf.json": '{"a": NaN}'}, "gives the token 'a' the weight nan"),
        ({"tokenizer.json": TOKENIZER, "idf.json": '{"a": 1, "a": 2}'}, "the key 'a' comes twice"),
        ({**GOOD, **{f"file{i}": "x" for i in range(100)}}, "102 entries"),
        ({**GOOD, "zeros": bytes(12_000_000)}, "zip bomb"),
    ],
)
def test_refused_contents(tmp_path: Path, files: dict[str, bytes | str], reason: str) -> None:
    assert reason in refusal(write_zip(tmp_path / "a.zip", files))


def test_links_devices_and_foreign_compression_are_refused(tmp_path: Path) -> None:
    link = ZipInfo("link")
    link.external_attr = 0o120777 << 16
    assert "is a link" in refusal(write_entry(tmp_path / "a.zip", link, b"/etc/passwd"))
    packed = ZipInfo("packed")
    packed.compress_type = ZIP_BZIP2
    assert "packed by a method" in refusal(write_entry(tmp_path / "b.zip", packed))


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", GOOD)
    content = bytearray(path.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    content[central + 8] |= 1
    path.write_bytes(bytes(content))
    assert "is encrypted" in refusal(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {**GOOD, "model.onnx": bytes(range(256)) * 40}, ZIP_STORED)
    good = path.read_bytes()
    for damaged in (b"", b"not a zip", good[: len(good) // 2], good[:-30]):
        path.write_bytes(damaged)
        assert "is not a zip file or is damaged" in refusal(path)
    flipped = bytearray(good)
    flipped[good.index(bytes(range(256))) + 10] ^= 0xFF
    path.write_bytes(bytes(flipped))
    assert "Bad CRC-32" in refusal(path)


def test_a_size_that_is_not_what_was_declared_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {**GOOD, "model.onnx": bytes(50_000)})
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, central + 24, 100)  # unpacked size of the first entry
    path.write_bytes(bytes(content))
    assert "damaged" in refusal(path)


def test_too_large_for_ml_commons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "a.zip", GOOD)
    monkeypatch.setattr(checks, "MAX_ARCHIVE_BYTES", 1000)
    assert "ML Commons takes at most" in refusal(path)
    monkeypatch.undo()
    monkeypatch.setattr(checks, "MAX_UNPACKED_BYTES", 1000)
    assert "zip bomb" in refusal(path)
