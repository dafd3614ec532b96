"""A TorchScript archive on torch."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oskit.archive.backends.backend import OUTPUT, cannot_load, checked
from oskit.archive.batching import padded, sparse_rows
from oskit.errors import EncoderError, MissingDependencyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from oskit.archive.archive import Archive


class TorchScriptBackend:
    """See :class:`oskit.archive.backends.backend.Backend`."""

    def __init__(self, archive: Archive, threads: int | None, *, device: str = "cpu") -> None:
        try:
            torch: Any = importlib.import_module("torch")
        except ImportError:
            raise MissingDependencyError(
                f"{archive.path} is TorchScript; running it here needs torch, which is not installed",
                hint="Use the ONNX archive of the same export, or: pip install 'oskit[export]'",
            ) from None
        self._torch, self._device = torch, device
        self.batches = True
        self.name = f"torch {torch.__version__}{'' if device == 'cpu' else f' {device}'}"
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            content = io.BytesIO(archive.read(archive.model_file or ""))
            with warnings.catch_warnings():
                # TorchScript is deprecated, but it is what ML Commons runs.
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                self._module: Any = torch.jit.load(content, map_location=device).eval()
        except RuntimeError as error:
            raise cannot_load(archive, "torch", error) from error

    def run(self, ids: Sequence[Sequence[int]], keep: NDArray[np.bool_] | None) -> csr_matrix:
        input_ids, mask = padded(ids)
        features = {
            "input_ids": self._torch.from_numpy(input_ids).to(self._device),
            "attention_mask": self._torch.from_numpy(mask).to(self._device),
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
        return sparse_rows(checked(output[OUTPUT].cpu().numpy()), keep)
