"""Packs an encoder for ML Commons: the graph that is baked, TorchScript, ONNX, the tokenizer archive, parity.

Knows nothing of clusters or of the command line. It needs torch (``oskit[export]``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporters.export import export_encoder

__all__ = ["export_encoder"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from exporters import export
    except ImportError as error:
        from oskit.errors import MissingDependencyError

        if error.name is None or error.name.startswith(("exporters", "oskit")):
            raise
        raise MissingDependencyError.for_extra("Exporting", error.name, "export") from error
    return getattr(export, name)
