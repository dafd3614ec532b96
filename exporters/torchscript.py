"""The TorchScript model of an archive: traced, reproducible, of operators that old libtorch knows."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from exporters.graph import BakedEncoder, TorchScriptInterface
from exporters.torchscript_file import normalise
from oskit.errors import ExportError, first_line

UNKNOWN_OPERATORS = frozenset(
    {
        "aten::scaled_dot_product_attention",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_native_multi_head_attention",
        "aten::_transformer_encoder_layer_fwd",
        "aten::rms_norm",
    }
)
"""Fused operators that libtorch 1.13.1, which OpenSearch 2.15 to 2.19 run, does not know."""


def write_torchscript(baked: BakedEncoder, input_ids: torch.Tensor, mask: torch.Tensor, path: Path) -> None:
    """Trace ``baked`` and save it.

    The file holds no path of this machine, and the same encoder gives the same bytes each time.

    Args:
        baked: The graph, see :func:`exporters.graph.exportable`.
        input_ids: Example, int64 ``[batch, length]``, with a padded row, so that the mask takes part.
        mask: Its attention mask.
        path: File to write.

    Raises:
        ExportError: The encoder cannot be traced, or only with operators that the server may not know.
    """
    features = {"input_ids": input_ids, "attention_mask": mask}
    with warnings.catch_warnings(), torch.no_grad():
        # TorchScript is deprecated, but it is what ML Commons runs; what tracing may get wrong, parity finds.
        warnings.simplefilter("ignore")
        try:
            traced = _trace(baked, features)
        except Exception as error:
            raise ExportError(
                f"the encoder cannot be traced by TorchScript: {first_line(error)}",
                hint="Export it as ONNX instead: --format onnx",
            ) from error
        _refuse_unknown_operators(operators(traced))
        with TemporaryDirectory(dir=path.parent) as folder:
            raw = Path(folder) / "traced.pt"
            try:
                torch.jit.save(traced, str(raw))
            except RuntimeError as error:
                raise ExportError(
                    f"torch cannot write the TorchScript model: {first_line(error)}",
                    hint="Is the disk full? Choose another folder with -o, or export ONNX: --format onnx",
                ) from error
            normalise(raw, path)


def _trace(baked: BakedEncoder, features: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    module = TorchScriptInterface(baked).eval()
    trace: Any = torch.jit.trace
    # Of all traces in a process the first is written differently: its classes share files, because their
    # names are still free, and local values are named by file. So the first one is thrown away.
    trace(module, (features,), strict=False, check_trace=False)
    return cast(torch.jit.ScriptModule, trace(module, (features,), strict=False, check_trace=False))


def operators(module: torch.jit.ScriptModule) -> frozenset[str]:
    """Names of all operators in a TorchScript module, blocks of control flow included."""
    blocks: list[Any] = [module.inlined_graph]
    found: set[str] = set()
    while blocks:
        for node in blocks.pop().nodes():
            found.add(node.kind())
            blocks.extend(node.blocks())
    return frozenset(found)


def _refuse_unknown_operators(found: frozenset[str]) -> None:
    unknown = sorted(found & UNKNOWN_OPERATORS)
    if unknown:
        raise ExportError(
            f"the encoder uses {', '.join(unknown)}, unknown to the libtorch of OpenSearch before 3.0",
            hint="Export it as ONNX instead: --format onnx",
        )
