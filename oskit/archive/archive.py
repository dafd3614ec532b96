"""Opening an ML Commons archive: what is in it, and whether it is fit to be used.

An archive is a zip of files at its root: exactly one ``.pt`` or ``.onnx`` and ``tokenizer.json`` (an
encoder), or ``tokenizer.json`` and ``idf.json`` (a tokenizer, the query side of an inference-free encoder).
Everything is checked before anything is used, and nothing is ever unpacked to disk.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile, ZipFile

from oskit.archive.safety import inspect_zip
from oskit.errors import ArchiveError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from oskit.archive.manifest import Manifest

ArchiveKind = Literal["encoder", "tokenizer"]
ModelFormat = Literal["TORCH_SCRIPT", "ONNX"]
FunctionName = Literal["SPARSE_ENCODING", "SPARSE_TOKENIZE"]

CHUNK_SIZE = 10_000_000
"""Bytes that ML Commons takes in one upload."""

REGISTER_BODY_NAME = "ml-commons_model_config.json"
"""The register body's file, by the name that opensearch-py-ml gives it."""

FOLDERS = ("onnx", "torchscript", "tokenizer")
"""Folders of an export, the preferred one first."""


@dataclass(frozen=True)
class Archive:
    """A checked archive.

    Attributes:
        path: The zip.
        kind: ``"encoder"`` or ``"tokenizer"``.
        model_format: As registered; for a tokenizer it has no meaning, but ML Commons wants one.
        function_name: ML Commons' name of what it does.
        sha256: Of the zip, in hex: the ``model_content_hash_value``.
        size: Of the zip, in bytes.
        name: Name to register it by.
        version: Version to register it by.
        description: One line for people.
        model_file: Name of the model inside the zip; None for a tokenizer.
        manifest: What the exporter recorded, when ``manifest.json`` lies beside the zip.
    """

    path: Path
    kind: ArchiveKind
    model_format: ModelFormat
    function_name: FunctionName
    sha256: str
    size: int
    name: str
    version: str
    description: str
    model_file: str | None = None
    manifest: Manifest | None = None

    @property
    def total_chunks(self) -> int:
        """How many uploads of :data:`CHUNK_SIZE` bytes it takes."""
        return math.ceil(self.size / CHUNK_SIZE)

    def register_body(self) -> dict[str, Any]:
        """Body for ``POST /_plugins/_ml/models/_register_meta``.

        It has no ``model_config``: since OpenSearch 3.1 a sparse model that has one fails to deploy.
        """
        return {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "function_name": self.function_name,
            "model_format": self.model_format,
            "model_content_size_in_bytes": self.size,
            "model_content_hash_value": self.sha256,
            "total_chunks": self.total_chunks,
        }

    def read(self, name: str) -> bytes:
        """A file inside the archive, whole.

        Raises:
            ArchiveError: It is not there, or its content is damaged.
        """
        try:
            with ZipFile(self.path) as archive:
                return archive.read(name)
        except (KeyError, BadZipFile, OSError) as error:
            raise ArchiveError(f"{self.path}: {name} cannot be read: {error}") from error

    def tokenizer(self) -> Tokenizer:
        """Its ``tokenizer.json``.

        Raises:
            ArchiveError: It cannot be read.
        """
        from tokenizers import Tokenizer

        content = self.read("tokenizer.json")
        try:
            return Tokenizer.from_buffer(content)
        except Exception as error:  # tokenizers raises nothing more specific
            raise ArchiveError(
                f"{self.path}: tokenizer.json cannot be read: {first_line(error)}",
                hint="Export the encoder again with `oskit export`.",
            ) from error

    def query_archive(self) -> Path | None:
        """The tokenizer archive that the manifest names for queries, if it is there.

        Raises:
            ArchiveError: The manifest names a file outside of the export's folder.
        """
        if self.manifest is None or self.manifest.query_archive is None:
            return None
        folder = self.path.parent.resolve()
        path = (folder / self.manifest.query_archive).resolve()
        if not path.is_relative_to(folder.parent):
            raise ArchiveError(
                f"{self.path.with_name('manifest.json')} names a query archive outside of the export: "
                f"{self.manifest.query_archive}",
                hint="Give the tokenizer archive by its path instead.",
            )
        return path if path.is_file() else None


def is_archive(path: str | Path) -> bool:
    """Whether it is a zip, an archive's folder, or one with such folders, and not a model's folder."""
    path = Path(path)
    if path.is_file():
        return path.suffix == ".zip"
    if any((path / name).is_file() for name in ("modules.json", "config.json")):
        return False
    bodies = (REGISTER_BODY_NAME, f"*/{REGISTER_BODY_NAME}")
    zips = ("*.zip", *(f"{name}/*.zip" for name in FOLDERS))
    return any(any(path.glob(pattern)) for pattern in (*bodies, *zips))


def open_archive(path: str | Path, *, first: str | None = None) -> Archive:
    """Check an archive and say what it is.

    Args:
        path: The zip; its folder; or the folder that ``oskit export`` wrote, of whose archives ``onnx`` is
            preferred over ``torchscript``, and that over ``tokenizer``.
        first: The one of these folders that is preferred to all others.

    Raises:
        ArchiveError: It is not there, not a usable and safe archive, or not what its manifest describes.
    """
    zip_path = _find_zip(Path(path), [first, *FOLDERS] if first is not None else FOLDERS)
    model_file = inspect_zip(zip_path)
    with zip_path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    manifest = _manifest_of(zip_path)
    registered = _register_body_of(zip_path)
    if manifest is not None:
        _refuse_other_content(zip_path, sha256, manifest.sha256, "manifest.json")
        _refuse_other_kind(zip_path, model_file, manifest)
    elif registered is not None:
        _refuse_other_content(zip_path, sha256, registered["model_content_hash_value"], REGISTER_BODY_NAME)
    named = manifest.model_dump() if manifest is not None else registered or {}
    kind: ArchiveKind = "encoder" if model_file else "tokenizer"
    return Archive(
        path=zip_path,
        kind=kind,
        model_format="ONNX" if (model_file or "").endswith(".onnx") else "TORCH_SCRIPT",
        function_name="SPARSE_ENCODING" if kind == "encoder" else "SPARSE_TOKENIZE",
        sha256=sha256,
        size=zip_path.stat().st_size,
        name=str(named.get("name") or zip_path.stem),
        version=str(named.get("version") or "1.0.0"),
        description=str(named.get("description") or ""),
        model_file=model_file,
        manifest=manifest,
    )


def _find_zip(path: Path, names: Sequence[str]) -> Path:
    if not path.exists():
        raise ArchiveError(f"there is no archive at {path}", hint="Make one with: oskit export MODEL")
    if path.is_file():
        return path
    folders = [path, *(path / name for name in names)]
    zips = next(filter(None, (sorted(folder.glob("*.zip")) for folder in folders)), [])
    if not zips:
        raise ArchiveError(f"there is no archive (*.zip) in {path}", hint="Make one with: oskit export MODEL")
    if len(zips) == 1:
        return zips[0]
    if described := [found for found in zips if _manifest_of(found)]:
        return described[0]
    raise ArchiveError(
        f"{zips[0].parent} holds {len(zips)} archives: {', '.join(found.name for found in zips[:5])}",
        hint="Name the one that is meant.",
    )


def _manifest_of(zip_path: Path) -> Manifest | None:
    """The manifest beside the zip, when it is this zip's."""
    path = zip_path.with_name("manifest.json")
    if not path.is_file():
        return None
    from oskit.archive.manifest import Manifest

    manifest = Manifest.read(path)
    return manifest if manifest.file == zip_path.name else None


def _register_body_of(zip_path: Path) -> dict[str, Any] | None:
    """The register body beside a zip without a manifest (as opensearch-py-ml leaves it)."""
    path = zip_path.with_name(REGISTER_BODY_NAME)
    if not path.is_file() or len(list(zip_path.parent.glob("*.zip"))) > 1:
        return None
    try:
        body = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArchiveError(f"{path} is not JSON: {error}", hint="Repair it or remove it.") from error
    return body if isinstance(body, dict) and "model_content_hash_value" in body else None


def _refuse_other_content(zip_path: Path, actual: str, expected: str, described_by: str) -> None:
    if actual != expected:
        raise ArchiveError(
            f"{zip_path} has the sha256 {actual[:12]}…, but {described_by} beside it says {expected[:12]}…",
            hint="The archive was changed or damaged: export or copy it again, with the files beside it.",
        )


def _refuse_other_kind(zip_path: Path, model_file: str | None, manifest: Manifest) -> None:
    actual = "encoder" if model_file else "tokenizer"
    is_onnx = (model_file or "").endswith(".onnx")
    if manifest.kind != actual or (actual == "encoder" and (manifest.model_format == "ONNX") != is_onnx):
        raise ArchiveError(
            f"{zip_path} holds {model_file or 'a tokenizer'}, but its manifest says "
            f"{manifest.kind}, {manifest.model_format}",
            hint="Export the encoder again with `oskit export`.",
        )
