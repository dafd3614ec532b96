"""An ONNX archive on ONNX Runtime, as the cluster runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from oskit.archive.archive import Archive


class OnnxRuntimeBackend:
    """See :class:`oskit.archive.backends.backend.Backend`."""

    def __init__(self, archive: Archive, threads: int | None) -> None:
        import onnxruntime

        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        model = archive.read(archive.model_file or "")
        self.batches = may_batch(model)
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise cannot_load(archive, "ONNX Runtime", error) from error
        inputs = [tensor.name for tensor in self._session.get_inputs()]
        check_tensors(archive, inputs, [tensor.name for tensor in self._session.get_outputs()])

    def run(self, ids: Sequence[Sequence[int]], keep: NDArray[np.bool_] | None) -> csr_matrix:
        input_ids, mask = padded(ids)
        try:
            (output,) = self._session.run([OUTPUT], {INPUT_IDS: input_ids, ATTENTION_MASK: mask})
        except Exception as error:
            raise EncoderError(
                f"ONNX Runtime failed on a batch of {input_ids.shape}: {first_line(error)}"
            ) from error
        return sparse_rows(checked(output), keep)
