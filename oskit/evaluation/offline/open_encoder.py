"""Opening whatever stands for an encoder on a command line: an archive, or a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oskit.archive.text_encoder import TextEncoder


def is_archive(path: str | Path) -> bool:
    """Whether ``path`` is an archive, or a folder that holds some, and not a model's folder."""
    path = Path(path)
    if path.is_file():
        return path.suffix == ".zip"
    return path.is_dir() and (any(path.glob("*.zip")) or any(path.glob("*/*.zip")))


def open_encoder(source: str) -> TextEncoder:
    """Open an archive on ONNX Runtime; anything else is a model's folder or name, and needs torch.

    Raises:
        ArchiveError: The archive cannot be used.
        EncoderError: The model cannot be loaded.
        MissingDependencyError: A model is named and torch is not installed.
    """
    if is_archive(source):
        from oskit.archive.encoder import ArchiveEncoder

        return ArchiveEncoder.open(source)
    return open_model(source)


def open_model(source: str) -> TextEncoder:
    """Load a model's folder or name with torch.

    Raises:
        EncoderError: It cannot be loaded.
        MissingDependencyError: torch is not installed.
    """
    from oskit.encoder.model import NeuralSparseEncoder

    encoder: TextEncoder = NeuralSparseEncoder.from_pretrained(source)
    return encoder
