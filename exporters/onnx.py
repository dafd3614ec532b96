"""The ONNX model of an archive, within the limits of the server's ONNX Runtime 1.16.3."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from exporters.exact_head import Feeds, make_head_exact
from exporters.graph import BakedEncoder
from oskit.archive.backends import ATTENTION_MASK, INPUT_IDS, OUTPUT
from oskit.errors import ExportError, first_line

OPSET = 17
"""Has layer normalisation as one operator; ONNX Runtime 1.16.3 knows opsets up to 19."""

MAX_OPSET = 19
MAX_IR_VERSION = 9
MAX_FILE_BYTES = 2_000_000_000
"""A protobuf message, and so a single ONNX file, has at most 2 GB; ML Commons takes no second one."""


def write_onnx(
    baked: BakedEncoder,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    path: Path,
    *,
    fold: bool = False,
    samples: Sequence[Feeds] = (),
) -> bool:
    """Export ``baked`` as one ONNX file with dynamic batch and length.

    Args:
        baked: The graph, see :func:`exporters.graph.exportable`.
        input_ids: Example, int64 ``[batch, length]``.
        mask: Its attention mask.
        path: File to write.
        fold: Store each matrix as it is multiplied, which is what quantising needs. Unfolded, the transposed
            copy of tied embeddings is made at load time instead of being stored.
        samples: Feeds of the model, by which it is decided whether the exact int8 head pays, see
            :mod:`exporters.exact_head`; without any, the head stays plain.

    Returns:
        Whether the head is the exact int8 one.

    Raises:
        ExportError: The encoder cannot be exported, or needs more than the server's ONNX Runtime has.
    """
    parameters = sum(tensor.numel() * 4 for tensor in baked.parameters())
    if parameters > MAX_FILE_BYTES:
        raise ExportError(
            f"the encoder's weights have {parameters / 1e9:.1f} GB, a single ONNX file at most 2 GB",
            hint="Export it as TorchScript: --format torchscript",
        )
    _export(baked, input_ids, mask, path, fold=fold)
    # The head's integers are a quarter as large as its weights, and those no larger than the file.
    fits = path.stat().st_size * 1.25 <= MAX_FILE_BYTES
    exact = bool(samples) and fits and _make_head_exact(path, samples)
    _check_limits(path)
    return exact


def _make_head_exact(path: Path, samples: Sequence[Feeds]) -> bool:
    import onnx

    model = onnx.load(str(path))
    if not make_head_exact(model, samples):
        return False
    onnx.save(model, str(path))
    return True


def _export(
    baked: BakedEncoder, input_ids: torch.Tensor, mask: torch.Tensor, path: Path, *, fold: bool
) -> None:
    axes = {0: "batch", 1: "length"}
    with warnings.catch_warnings(), torch.no_grad(), _without_dumps():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                baked,
                (input_ids, mask),
                str(path),
                input_names=[INPUT_IDS, ATTENTION_MASK],
                output_names=[OUTPUT],
                dynamic_axes={INPUT_IDS: axes, ATTENTION_MASK: axes, OUTPUT: {0: "batch"}},
                opset_version=OPSET,
                do_constant_folding=fold,
                # The exporter by torch.export writes opset 18 and up and an IR version above the server's.
                dynamo=False,
            )
        except Exception as error:
            raise ExportError(
                f"the encoder cannot be exported as ONNX: {first_line(error)}",
                hint="Export it as TorchScript instead: --format torchscript",
            ) from error


@contextmanager
def _without_dumps() -> Iterator[None]:
    """On a failure torch prints the whole graph to the process's stdout, and cannot be asked not to."""
    library: Any = torch._C
    switch = library._jit_set_onnx_log_enabled
    library._jit_set_onnx_log_enabled = lambda _enabled: None
    try:
        yield
    finally:
        library._jit_set_onnx_log_enabled = switch


def _check_limits(path: Path) -> None:
    """Opset, IR version, one file: what ONNX Runtime 1.16.3 and ML Commons can load."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset > MAX_OPSET or model.ir_version > MAX_IR_VERSION:
        raise ExportError(
            f"the ONNX model has opset {opset} and IR version {model.ir_version}; the server's ONNX Runtime "
            f"takes {MAX_OPSET} and {MAX_IR_VERSION} at most",
            hint="Export it as TorchScript instead: --format torchscript",
        )
    external = [tensor.name for tensor in model.graph.initializer if tensor.external_data]
    if external:
        raise ExportError(f"the ONNX model keeps {len(external)} tensors in files of their own")
