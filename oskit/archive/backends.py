"""What runs the model of an archive: ONNX Runtime, or torch for a TorchScript archive."""

from __future__ import annotations

import importlib
import io
import warnings
from typing import TYPE_CHECKING, Any, Protocol

from oskit.archive.archive import Archive
from oskit.errors import ArchiveError, EncoderError, MissingDependencyError, first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INPUT_IDS = "input1.input_ids"
ATTENTION_MASK = "input1.attention_mask"
"""Names that ML Commons gives its tensors, and by which ONNX Runtime must find the graph's inputs."""

OUTPUT = "output"


class Backend(Protocol):
    """A loaded model."""

    name: str
    """What it runs on, with its version."""

    batches: bool
    """Whether a text's weights are the same in any batch, so that texts may share one."""

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights ``[batch, vocabulary]`` of token ids and mask, both ``[batch, length]``."""
        ...


class OnnxBackend:
    """An ONNX archive on ONNX Runtime."""

    def __init__(self, archive: Archive, threads: int | None) -> None:
        import onnxruntime

        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        model = archive.read(archive.model_file or "")
        # Dynamic quantisation scales by the largest value of a batch; the server runs one text at a time.
        self.batches = b"DynamicQuantizeLinear" not in model
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ArchiveError(
                f"{archive.path}: ONNX Runtime cannot load {archive.model_file}: {first_line(error)}",
                hint="Export the encoder again with `oskit export`.",
            ) from error
        inputs = sorted(tensor.name for tensor in self._session.get_inputs())
        outputs = [tensor.name for tensor in self._session.get_outputs()]
        if inputs != sorted((INPUT_IDS, ATTENTION_MASK)) or outputs != [OUTPUT]:
            raise ArchiveError(
                f"{archive.path}: {archive.model_file} has the inputs {', '.join(inputs)} and the outputs "
                f"{', '.join(outputs)}; ML Commons gives {INPUT_IDS} and {ATTENTION_MASK} and takes {OUTPUT}",
                hint="Export the encoder with `oskit export`.",
            )

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            (output,) = self._session.run([OUTPUT], {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask})
        except Exception as error:
            raise EncoderError(
                f"ONNX Runtime failed on a batch of {input_ids.shape}: {first_line(error)}"
            ) from error
        return _checked(output)


class TorchScriptBackend:
    """A TorchScript archive on torch."""

    def __init__(self, archive: Archive, threads: int | None) -> None:
        try:
            torch: Any = importlib.import_module("torch")
        except ImportError:
            raise MissingDependencyError(
                f"{archive.path} is TorchScript; running it here needs torch, which is not installed",
                hint="Use the ONNX archive of the same export, or: pip install 'oskit[export]'",
            ) from None
        self._torch = torch
        self.batches = True
        self.name = f"torch {torch.__version__}"
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            content = io.BytesIO(archive.read(archive.model_file or ""))
            with warnings.catch_warnings():
                # TorchScript is deprecated, but it is what ML Commons runs.
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                self._module: Any = torch.jit.load(content, map_location="cpu").eval()
        except RuntimeError as error:
            raise ArchiveError(
                f"{archive.path}: torch cannot load {archive.model_file}: {first_line(error)}",
                hint="Export the encoder again with `oskit export`.",
            ) from error

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        features = {
            "input_ids": self._torch.from_numpy(input_ids),
            "attention_mask": self._torch.from_numpy(attention_mask),
        }
        try:
            with self._torch.inference_mode():
                output = self._module(features)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EncoderError(f"torch failed on a batch of {input_ids.shape}: {reason}") from error
        if not isinstance(output, dict) or set(output) != {OUTPUT}:
            raise EncoderError(
                f"the TorchScript model does not return exactly {{{OUTPUT!r}: tensor}}",
                hint="Export the encoder with `oskit export`.",
            )
        return _checked(output[OUTPUT].numpy())


def open_backend(archive: Archive, threads: int | None) -> Backend:
    """Load the archive's model.

    Args:
        archive: An encoder archive.
        threads: Threads that one batch may use; None lets the runtime decide.

    Raises:
        ArchiveError: The model cannot be loaded, or its inputs are not those that ML Commons gives.
        MissingDependencyError: It is TorchScript and torch is not installed.
    """
    if archive.model_format == "ONNX":
        return OnnxBackend(archive, threads)
    return TorchScriptBackend(archive, threads)


def _checked(output: Any) -> NDArray[np.float32]:
    import numpy as np

    if output.ndim != 2 or output.dtype != np.float32:
        raise EncoderError(
            f"the model returns {output.dtype} of shape {output.shape}, not float32 [batch, vocabulary]",
            hint="Export the encoder with `oskit export`.",
        )
    if not np.isfinite(output).all():
        raise EncoderError("the model returns weights that are not finite numbers")
    return output  # type: ignore[no-any-return]
