"""Packs an encoder for ML Commons: the graph that is baked, TorchScript, ONNX, the tokenizer archive, parity.

Knows nothing of clusters or of the command line. It needs torch (``oskit[export]``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oskit.lazy import importer

if TYPE_CHECKING:
    from exporters.export import export_encoder

__all__ = ["export_encoder"]

__getattr__ = importer(__name__, {"export_encoder": "exporters.export"}, "Exporting")
