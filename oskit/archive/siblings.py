"""By which archives an encoder is known: an export writes it in several formats."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from oskit.archive.manifest import MANIFEST_NAME, Manifest
from oskit.errors import ArchiveError

if TYPE_CHECKING:
    from oskit.archive.archive import Archive
    from oskit.archive.text_encoder import TextEncoder


def archive_sha256(encoder: object) -> str | None:
    """sha256 of the archive that an encoder was opened from; None if it does not come from one."""
    found: str | None = getattr(getattr(encoder, "archive", None), "sha256", None)
    return found


def known_sha256(encoder: TextEncoder) -> frozenset[str]:
    """sha256 of the archives that hold this encoder; empty if it does not come from an archive.

    An export writes one encoder in several formats, each a zip of its own. An index made by the TorchScript
    model is rightly verified with the ONNX archive of the same export, and scores tell if they differ.
    """
    archive: Archive | None = getattr(encoder, "archive", None)
    if archive is None:
        return frozenset()
    return frozenset({archive.sha256, *_siblings(archive)})


def _siblings(archive: Archive) -> list[str]:
    """sha256 of the other encoder archives of the same export: of one name, version and source."""
    if archive.manifest is None:
        return []
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
