"""What closed-form fits share: hidden states of the tokens of some texts, and ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oskit.encoder.anatomy import inference
from oskit.errors import DataError

if TYPE_CHECKING:
    from oskit.encoder.model import NeuralSparseEncoder

_RIDGE = 1e-3
"""Added to the diagonal of the inputs' covariance, as a share of its mean."""


def token_states(
    encoder: NeuralSparseEncoder,
    texts: Sequence[str],
    run: Callable[[dict[str, Tensor]], Tensor],
    *,
    tokens: int,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """States of the first tokens of texts, in inference, without padding.

    Args:
        encoder: Tokenizes, and says what a text is truncated to.
        texts: They are run in this order.
        run: From ``input_ids`` and ``attention_mask`` to states ``[batch, length, hidden]``.
        tokens: No batch is run after this many.
        batch_size: Texts in one run.

    Returns:
        States ``[tokens, hidden]`` in float32 and token ids ``[tokens]``, on the CPU.

    Raises:
        DataError: There are no texts.
    """
    states, ids = [], []
    anatomy = encoder.anatomy
    with_tokens = [encoding.ids for encoding in anatomy.tokenize(texts) if encoding.ids]
    with inference(encoder), torch.no_grad():
        for start in range(0, len(with_tokens), batch_size):
            features = anatomy.features(with_tokens[start : start + batch_size])
            mask = features["attention_mask"].bool()
            ids.append(features["input_ids"][mask].cpu())
            states.append(run(features)[mask].float().cpu())
            if sum(map(len, ids)) >= tokens:
                break
    if not states:
        raise DataError("there are no texts to fit a head to", hint="Give some passages.")
    return torch.cat(states), torch.cat(ids)


def ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """The linear map ``[width, hidden]`` from inputs ``[rows, width]`` to targets ``[rows, hidden]``."""
    gram = inputs.T @ inputs
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    found: Tensor = torch.linalg.solve(gram, inputs.T @ targets)
    return found
