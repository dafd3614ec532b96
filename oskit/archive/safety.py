"""Whether a zip is a safe and complete ML Commons archive, found out without unpacking it."""

from __future__ import annotations

import json
import re
import stat
import struct
import sys
import zlib
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from oskit.errors import ArchiveError

MAX_ARCHIVE_BYTES = 4_000_000_000
"""ML Commons takes no larger archive (``MODEL_MAX_SIZE`` of its clients)."""

MAX_UNPACKED_BYTES = 8_000_000_000
MAX_RATIO = 100
"""How often larger an entry may become; weights shrink by a tenth, JSON by ten times."""

RATIO_APPLIES_FROM = 10_000_000
"""Unpacked bytes below which a high ratio does no harm."""

MAX_ENTRIES = 100
MAX_JSON_BYTES = 300_000_000

_MODEL_SUFFIXES = (".pt", ".onnx")
# ML Commons 3.8 refuses .jar, .class, .so, .dylib and .dll; the others have no business there either.
_EXECUTABLE_NAME = re.compile(
    r"\.(jar|class|so(\.[0-9.]+)?|dylib|dll|exe|com|bat|cmd|ps1|sh|py|pyc)$", re.IGNORECASE
)
_EXECUTABLE_STARTS = (
    b"\x7fELF",
    b"MZ",
    b"#!",
    b"\xca\xfe\xba\xbe",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xcf\xfa\xed\xfe",
    b"\xce\xfa\xed\xfe",
)
_EXPORT_AGAIN = "Export the encoder again with `oskit export`."
_DO_NOT_TRUST = "Do not use this file; get the archive from its source again."


def inspect_zip(path: Path) -> str | None:
    """Check every entry of the zip, its content included.

    Returns:
        The name of the model in it; None for a tokenizer archive.

    Raises:
        ArchiveError: With the entry and what to do about it.
    """
    size = path.stat().st_size
    if size > MAX_ARCHIVE_BYTES:
        raise ArchiveError(
            f"{path} has {size / 1e9:.1f} GB, ML Commons takes at most {MAX_ARCHIVE_BYTES / 1e9:.0f} GB",
            hint="Export it quantised (--quantize int8), or use a smaller encoder.",
        )
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
            _check_directory(path, entries, size)
            model_file = _check_files(path, [entry.filename for entry in entries])
            for entry in entries:
                _check_content(path, archive, entry)
            _check_json(path, archive, model_file)
            return model_file
    except (BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError) as error:
        raise ArchiveError(
            f"{path} is not a zip file or is damaged: {error}",
            hint="It may have been cut off while it was copied: copy or export it again.",
        ) from error
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror or error}") from error


def _check_directory(path: Path, entries: list[ZipInfo], size: int) -> None:
    """The entries as declared: names, kinds, sizes."""
    if len(entries) > MAX_ENTRIES:
        raise ArchiveError(
            f"{path} has {len(entries)} entries; an archive has two or three", hint=_DO_NOT_TRUST
        )
    seen: set[str] = set()
    for entry in entries:
        _check_entry(path, entry)
        if entry.filename.lower() in seen:
            raise ArchiveError(f"{path} has the entry {entry.filename!r} twice", hint=_DO_NOT_TRUST)
        seen.add(entry.filename.lower())
    unpacked = sum(entry.file_size for entry in entries)
    # Entries that share their bytes (a quoted zip bomb) declare more packed bytes than the file has.
    if unpacked > MAX_UNPACKED_BYTES or sum(entry.compress_size for entry in entries) > size:
        raise ArchiveError(f"{path} would unpack to {unpacked / 1e9:.1f} GB: a zip bomb", hint=_DO_NOT_TRUST)


def _check_entry(path: Path, entry: ZipInfo) -> None:
    # zipfile cuts a name at a NUL and turns the platform's separator; orig_filename is what the zip says.
    name = entry.orig_filename
    where = f"{path}: entry {name!r}"
    parts = re.split(r"[/\\]", name)
    if not name or "\0" in name or ".." in parts or parts[0] == "" or re.match(r"[A-Za-z]:", name):
        raise ArchiveError(f"{where} points out of the archive", hint=_DO_NOT_TRUST)
    if len(parts) > 1:
        raise ArchiveError(
            f"{where} is in a folder; ML Commons reads files at the root only",
            hint="Zip the files themselves, not the folder that holds them.",
        )
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise ArchiveError(f"{where} is a link or a device, not a file", hint=_DO_NOT_TRUST)
    if entry.flag_bits & 0x1:
        raise ArchiveError(f"{where} is encrypted", hint="Zip it without a password.")
    if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ArchiveError(
            f"{where} is packed by a method that ML Commons cannot read",
            hint="Zip it again with the methods `store` or `deflate`.",
        )
    if _EXECUTABLE_NAME.search(name) or name.lower() == "serving.properties":
        raise ArchiveError(
            f"{where} is an executable or configures one; ML Commons refuses it", hint=_DO_NOT_TRUST
        )
    if entry.file_size > RATIO_APPLIES_FROM and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
        raise ArchiveError(
            f"{where} would grow {entry.file_size // max(entry.compress_size, 1)} times: a zip bomb",
            hint=_DO_NOT_TRUST,
        )


def _check_files(path: Path, names: list[str]) -> str | None:
    """The archive is complete: one model and a tokenizer, or a tokenizer and IDF weights."""
    models = [name for name in names if name.endswith(_MODEL_SUFFIXES)]
    if len(models) > 1:
        raise ArchiveError(
            f"{path} holds {len(models)} models ({', '.join(models)}); ML Commons takes exactly one",
            hint=_EXPORT_AGAIN,
        )
    if "tokenizer.json" not in names:
        raise ArchiveError(f"{path} has no tokenizer.json", hint=_EXPORT_AGAIN)
    if not models and "idf.json" not in names:
        raise ArchiveError(
            f"{path} has neither a model (*.onnx, *.pt) nor idf.json",
            hint="An encoder archive needs the first, a tokenizer archive the second. " + _EXPORT_AGAIN,
        )
    return models[0] if models else None


def _check_content(path: Path, archive: ZipFile, entry: ZipInfo) -> None:
    """Read the entry to its end: zipfile compares length and CRC with what was declared."""
    count = 0
    with archive.open(entry) as stream:
        start = stream.read(8)
        if start.startswith(_EXECUTABLE_STARTS):
            raise ArchiveError(
                f"{path}: entry {entry.filename!r} is an executable program", hint=_DO_NOT_TRUST
            )
        count = len(start)
        while block := stream.read(1 << 20):
            count += len(block)
    if count != entry.file_size:
        raise ArchiveError(
            f"{path}: entry {entry.filename!r} has {count} bytes, {entry.file_size} were declared",
            hint="Copy or export the archive again.",
        )


def _check_json(path: Path, archive: ZipFile, model_file: str | None) -> None:
    tokenizer = _read_json(path, archive, "tokenizer.json")
    if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("model"), dict):
        raise ArchiveError(
            f"{path}: tokenizer.json is not a tokenizer of the `tokenizers` library", hint=_EXPORT_AGAIN
        )
    fault = table_fault(_read_json(path, archive, "idf.json")) if model_file is None else None
    if fault is not None:
        raise ArchiveError(f"{path}: idf.json {fault}", hint=_EXPORT_AGAIN)


def _read_json(path: Path, archive: ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > MAX_JSON_BYTES:
        raise ArchiveError(
            f"{path}: {name} is larger than {MAX_JSON_BYTES // 1_000_000} MB", hint=_DO_NOT_TRUST
        )
    try:
        return json.loads(archive.read(name), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{path}: {name} is not JSON: {error}", hint=_EXPORT_AGAIN) from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """ML Commons' JSON reader refuses a key that comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def table_fault(table: Any) -> str | None:
    """What is wrong with a table ``{token: weight}``, weights finite and not negative; else None."""
    if not isinstance(table, dict) or not table:
        return "is not a table of token weights"
    for token, weight in table.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= sys.float_info.max:
            return f"gives the token {token!r} the weight {weight!r}"
    return None
