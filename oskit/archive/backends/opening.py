"""Opening the back end that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oskit.archive.backends.runtime import Runtime

if TYPE_CHECKING:
    from oskit.archive.archive import Archive
    from oskit.archive.backends.backend import Backend


def open_backend(archive: Archive, runtime: Runtime | None = None, threads: int | None = None) -> Backend:
    """Load the archive's model.

    Args:
        archive: An encoder archive.
        runtime: What it shall run on. What is left to ``"auto"`` is ONNX Runtime, or torch on the CPU for a
            TorchScript archive, and OpenVINO for bf16; :class:`oskit.archive.backends.auto.Selection` finds
            what is faster.
        threads: Threads that one batch may use; None lets the runtime decide.

    Raises:
        ArchiveError: The model cannot be loaded, or its inputs are not those that ML Commons gives.
        MissingDependencyError: What it runs on is not installed.
        UsageError: The archive does not fit the runtime.
    """
    runtime = runtime or Runtime()
    runtime.check(archive)
    if archive.model_format != "ONNX":
        from oskit.archive.backends.torch_script import TorchScriptBackend

        return TorchScriptBackend(archive, threads, device=runtime.device if runtime.on_gpu else "cpu")
    if runtime.backend == "openvino" or runtime.precision == "bf16":
        from oskit.archive.backends.open_vino import OpenVinoBackend

        return OpenVinoBackend(archive, threads, narrow=runtime.precision == "bf16")
    from oskit.archive.backends.onnx_runtime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(archive, threads)
