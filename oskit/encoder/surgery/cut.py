"""An encoder with fewer active dimensions: one number is taken from all logits of its head.

What a penalty presses out in training costs steps that would teach; a head that was fitted in closed form
leaves hundreds of weak dimensions, which are better cut off afterwards, all at once. Lowering each bias keeps
what is largest in a text, of queries as of documents, and needs nothing of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import EncoderError


def biases(encoder: NeuralSparseEncoder) -> torch.Tensor:
    """Those of the head, one for each logit.

    Raises:
        EncoderError: It has none.
    """
    found: torch.Tensor | None = getattr(encoder.anatomy.output, "bias", None)
    if found is None:
        raise EncoderError("the head of this encoder has no biases to lower", hint="Leave out sparsity.cut.")
    return found


def cut(encoder: NeuralSparseEncoder, texts: Sequence[str], active: int) -> float:
    """Lower the biases of the head, until texts have so many active dimensions in the mean.

    Args:
        encoder: It is changed, unless texts have no more than that already.
        texts: Documents like those that it will see; some hundreds are enough.
        active: Active dimensions of a document in the mean.

    Returns:
        What was taken from each logit; 0 where nothing had to go.

    Raises:
        EncoderError: The head has no biases.
    """
    bias = biases(encoder)
    weights = encoder.document_matrix(texts).data.astype(np.float64)
    goes = len(weights) - active * len(texts)
    if goes <= 0:
        return 0.0
    border = np.partition(weights, (goes - 1, goes))[goes - 1 : goes + 1].mean()
    for _ in range(2 if encoder.anatomy.pooling.activation_function == "log1p_relu" else 1):
        border = np.expm1(border)
    with torch.no_grad():
        bias -= float(border)
    return float(border)
