"""From a neural sparse encoder to proven retrieval in OpenSearch.

The names below are the public interface. Each is imported when it is first used, so ``import oskit`` loads
neither torch nor anything else that costs time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oskit.encoder.archive import Archive as Archive
    from oskit.encoder.archive import open_archive as open_archive
    from oskit.encoder.model import NeuralSparseEncoder as NeuralSparseEncoder
    from oskit.encoder.report import LoadAttempt as LoadAttempt
    from oskit.encoder.report import LoadReport as LoadReport
    from oskit.encoder.report import UntrainedProjectionWarning as UntrainedProjectionWarning
    from oskit.encoder.runtime import ArchiveEncoder as ArchiveEncoder
    from oskit.encoder.types import TextEncoder as TextEncoder
    from oskit.encoder.types import TokenWeights as TokenWeights
    from oskit.encoder.vocabulary import Vocabulary as Vocabulary
    from oskit.encoder.weights import Prune as Prune
    from oskit.errors import OskitError as OskitError

_HOME = {
    "Archive": "oskit.encoder.archive",
    "ArchiveEncoder": "oskit.encoder.runtime",
    "LoadAttempt": "oskit.encoder.report",
    "LoadReport": "oskit.encoder.report",
    "NeuralSparseEncoder": "oskit.encoder.model",
    "OskitError": "oskit.errors",
    "Prune": "oskit.encoder.weights",
    "TextEncoder": "oskit.encoder.types",
    "TokenWeights": "oskit.encoder.types",
    "UntrainedProjectionWarning": "oskit.encoder.report",
    "Vocabulary": "oskit.encoder.vocabulary",
    "open_archive": "oskit.encoder.archive",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("oskit")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'oskit' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _EXTRA:
            from oskit.errors import MissingDependencyError

            raise MissingDependencyError.for_extra(f"oskit.{name}", package, "export") from error
        raise
    globals()[name] = value
    return value


_EXTRA = ("torch", "transformers", "sentence_transformers", "huggingface_hub", "safetensors")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
