"""What runs the model of an archive: ONNX Runtime, OpenVINO, or torch for a TorchScript archive."""

from oskit.archive.backends.backend import ATTENTION_MASK, INPUT_IDS, OUTPUT, Backend
from oskit.archive.backends.opening import open_backend
from oskit.archive.backends.runtime import Runtime

__all__ = ["ATTENTION_MASK", "INPUT_IDS", "OUTPUT", "Backend", "Runtime", "open_backend"]
