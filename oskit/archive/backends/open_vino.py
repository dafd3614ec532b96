"""An ONNX archive on OpenVINO: the same results in less time, or nearly the same in half of it (bf16)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oskit.archive.backends.backend import (
    ATTENTION_MASK,
    INPUT_IDS,
    OUTPUT,
    cannot_load,
    check_tensors,
    checked,
    may_batch,
)
from oskit.archive.batching import padded, sparse_rows
from oskit.errors import EncoderError, first_line
from oskit.extras import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from oskit.archive.archive import Archive


class OpenVinoBackend:
    """See :class:`oskit.archive.backends.backend.Backend`.

    Args:
        archive: In ONNX format.
        threads: As many as one batch may use.
        narrow: Whether to compute in bf16, see :func:`has_bf16`; weights and results stay float32.
    """

    def __init__(self, archive: Archive, threads: int | None, *, narrow: bool = False) -> None:
        require("--backend openvino", "openvino", ["openvino"])
        import openvino

        self.name = f"openvino {openvino.__version__.partition('-')[0]}{' bf16' if narrow else ''}"
        model = archive.read(archive.model_file or "")
        self.batches = may_batch(model)
        # One batch at a time on all cores: a second stream would hold a second set of its tensors.
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if narrow else "f32",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            core = _core()
            graph = core.read_model(model)
            names = [{*tensor.names} for tensor in (*graph.inputs, *graph.outputs)]
            check_tensors(archive, *_names(names, len(graph.inputs)))
            self._request = core.compile_model(graph, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise cannot_load(archive, "OpenVINO", error) from error
        self._lock = threading.Lock()  # a request has one set of tensors

    def run(self, ids: Sequence[Sequence[int]], keep: NDArray[np.bool_] | None) -> csr_matrix:
        input_ids, mask = padded(ids)
        try:
            with self._lock:
                self._request.infer({INPUT_IDS: input_ids, ATTENTION_MASK: mask}, share_inputs=True)
                return sparse_rows(checked(self._request.get_output_tensor(0).data), keep)
        except RuntimeError as error:
            raise EncoderError(
                f"OpenVINO failed on a batch of {input_ids.shape}: {first_line(error)}"
            ) from error


def has_bf16() -> bool:
    """Whether OpenVINO can compute in bf16 on this CPU.

    Raises:
        MissingDependencyError: It is not installed.
    """
    require("--backend openvino", "openvino", ["openvino"])
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def _core() -> Any:
    """OpenVINO's core, one for the process and kept.

    With the first model of a core the thread that compiles gets the stack on which it handles signals from
    OpenVINO. Where the core goes in another thread (whichever drops the last encoder), that memory is given
    back while the first thread still has it, and Ctrl-C or SIGTERM end the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _names(names: Sequence[set[str]], inputs: int) -> tuple[list[str], list[str]]:
    """The names of inputs and outputs; a tensor may have several, of which ML Commons' counts."""
    known = {INPUT_IDS, ATTENTION_MASK, OUTPUT}
    told = [min(found & known or found or {"?"}) for found in names]
    return told[:inputs], told[inputs:]
