"""Opening whatever stands for an encoder on a command line: an archive, a model's folder, or its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from oskit.archive.archive import is_archive
from oskit.archive.backends.runtime import Runtime, check_device
from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.archive.text_encoder import TextEncoder
    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.encoder.pipeline import Precision


def open_encoder(
    source: str | Path,
    runtime: Runtime | None = None,
    *,
    query: str | Path | None = None,
    fallback: bool = True,
    load: Callable[[str], NeuralSparseEncoder] | None = None,
    notify: Callable[[str], object] | None = None,
) -> TextEncoder:
    """Open an archive, which needs no torch; anything else is a model's folder or name, and does.

    Args:
        source: An archive, the folder of an export, a model's folder, or its name on the Hub.
        runtime: What it shall run on; None is what others are compared with, fp32 on ONNX Runtime or torch.
        query: The tokenizer archive for the queries of an inference-free archive.
        fallback: Whether a model may be the base encoder with a random projection, unless ``load`` decides.
        load: Loads a model; by default as ``NeuralSparseEncoder.from_pretrained`` does.
        notify: Told, in one line, which back end was found to be the fastest.

    Raises:
        ArchiveError: The archive cannot be used.
        EncoderError: The model cannot be loaded.
        MissingDependencyError: What it runs on is not installed.
        UsageError: It does not fit ``runtime``.
    """
    if is_archive(Path(source).expanduser()):
        from oskit.archive.encoder import ArchiveEncoder

        return ArchiveEncoder.open(Path(source).expanduser(), query=query, runtime=runtime, notify=notify)
    if query is not None:
        raise UsageError("--query-archive goes with an archive", hint="A model brings its own queries.")
    runtime = runtime or Runtime(precision="fp32")
    precision = _precision(source, runtime)
    from oskit.encoder.model import NeuralSparseEncoder

    device = None if runtime.device == "auto" else runtime.device
    encoder = (
        load(str(source))
        if load
        else NeuralSparseEncoder.from_pretrained(str(source), device=device, fallback=fallback)
    )
    encoder.precision = precision
    return encoder


def _precision(source: str | Path, runtime: Runtime) -> Precision:
    """What a model computes in: as its weights are, unless another precision is asked for."""
    if runtime.backend not in ("auto", "torch"):
        raise UsageError(
            f"{source} is no archive: a model runs on torch, not on {runtime.backend}",
            hint="Export it first: oskit export MODEL",
        )
    if runtime.precision == "int8":
        raise UsageError(
            f"{source} is no archive: a model is not quantised to int8",
            hint="Make an archive that is: oskit export MODEL --quantize int8",
        )
    if runtime.on_gpu:
        check_device(runtime.device)
    return runtime.precision or "fp32"
