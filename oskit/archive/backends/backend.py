"""The interface of a back end, and what they all check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from oskit.errors import ArchiveError, EncoderError, first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from oskit.archive.archive import Archive

INPUT_IDS = "input1.input_ids"
ATTENTION_MASK = "input1.attention_mask"
"""Names that ML Commons gives its tensors, and by which the graph's inputs are found."""

OUTPUT = "output"


class Backend(Protocol):
    """A loaded model. It may be run by several threads at once."""

    name: str
    """What it runs on, with its version, and in which precision where that is not the archive's."""

    batches: bool
    """Whether a text's weights are the same in any batch, so that texts may share one."""

    def run(self, ids: Sequence[Sequence[int]], keep: NDArray[np.bool_] | None) -> csr_matrix:
        """The positive weights ``[len(ids), vocabulary]`` of texts.

        Args:
            ids: Token ids of each text, at least one; the longest first spares memory.
            keep: ``[vocabulary]``, which tokens may weigh something; None for all.

        Raises:
            EncoderError: The model fails, or returns something else than weights.
        """
        ...


def cannot_load(archive: Archive, who: str, error: Exception) -> ArchiveError:
    """The model is none, or none for this back end."""
    return ArchiveError(
        f"{archive.path}: {who} cannot load {archive.model_file}: {first_line(error)}",
        hint="Export the encoder again with `oskit export`.",
    )


def check_tensors(archive: Archive, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """An ONNX graph takes what ML Commons gives.

    Raises:
        ArchiveError: It does not.
    """
    if sorted(inputs) != sorted((INPUT_IDS, ATTENTION_MASK)) or list(outputs) != [OUTPUT]:
        raise ArchiveError(
            f"{archive.path}: {archive.model_file} has the inputs {', '.join(sorted(inputs))} and "
            f"the outputs {', '.join(outputs)}; ML Commons gives {INPUT_IDS} and {ATTENTION_MASK} and "
            f"takes {OUTPUT}",
            hint="Export the encoder with `oskit export`.",
        )


def may_batch(model: bytes) -> bool:
    """Whether texts may share a batch of this graph.

    Dynamic quantisation scales by the largest value of a batch; the server runs one text at a time.
    """
    return b"DynamicQuantizeLinear" not in model


def checked(output: Any) -> NDArray[np.float32]:
    """A model's output, if it is weights ``[batch, vocabulary]``.

    Raises:
        EncoderError: It is something else.
    """
    import numpy as np

    if output.ndim != 2 or output.dtype != np.float32:
        raise EncoderError(
            f"the model returns {output.dtype} of shape {output.shape}, not float32 [batch, vocabulary]",
            hint="Export the encoder with `oskit export`.",
        )
    if not np.isfinite(output).all():
        raise EncoderError("the model returns weights that are not finite numbers")
    return output  # type: ignore[no-any-return]
