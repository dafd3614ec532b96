"""What a report says of an encoder."""

from __future__ import annotations

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


def _archive(encoder: TextEncoder) -> Archive | None:
    archive: Archive | None = getattr(encoder, "archive", None)
    return archive
