"""What a report says of an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oskit.encoder.types import TextEncoder


def describe_encoder(encoder: TextEncoder) -> dict[str, Any]:
    """Name, architecture and sha256 of an encoder, as far as it knows them."""
    archive = getattr(encoder, "archive", None)
    return {
        "name": getattr(archive, "name", None) or type(encoder).__name__,
        "architecture": encoder.architecture,
        "sha256": getattr(archive, "sha256", None),
        "vocabulary": encoder.vocabulary.size,
    }
