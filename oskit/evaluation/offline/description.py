"""What a report says of an encoder, and by which archives it is known."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oskit.archive.archive import Archive
    from oskit.archive.text_encoder import TextEncoder


def describe_encoder(encoder: TextEncoder) -> dict[str, Any]:
    """Name, source, architecture and sha256 of an encoder, as far as it knows them."""
    archive, loaded = _archive(encoder), getattr(encoder, "load_report", None)
    return {
        "name": archive.name if archive else loaded.name if loaded else type(encoder).__name__,
        "source": str(archive.path) if archive else loaded.source if loaded else None,
        "architecture": encoder.architecture,
        "sha256": archive.sha256 if archive is not None else None,
        "format": archive.model_format if archive is not None else None,
        "vocabulary": encoder.vocabulary.size,
    }


def known_sha256(encoder: TextEncoder) -> frozenset[str]:
    """sha256 of the archives that hold this encoder; empty if it does not come from an archive.

    An export writes one encoder in several formats, each a zip of its own. An index made by the TorchScript
    model is rightly verified with the ONNX archive of the same export, and scores tell if they differ.
    """
    archive = _archive(encoder)
    if archive is None:
        return frozenset()
    return frozenset({archive.sha256, *_siblings(archive)})


def _archive(encoder: TextEncoder) -> Archive | None:
    archive: Archive | None = getattr(encoder, "archive", None)
    return archive


def _siblings(archive: Archive) -> list[str]:
    """sha256 of the other encoder archives of the same export: of one name, version and source."""
    if archive.manifest is None:
        return []
    from oskit.archive.manifest import MANIFEST_NAME, Manifest
    from oskit.errors import ArchiveError

    origin = attrgetter("name", "version", "source")
    found = []
    for path in archive.path.parent.parent.glob(f"*/{MANIFEST_NAME}"):
        try:
            other = Manifest.read(path)
        except ArchiveError:
            continue  # whatever that is, it is not the archive that was asked for
        if origin(other) == origin(archive.manifest) and other.kind == "encoder":
            found.append(other.sha256)
    return found
