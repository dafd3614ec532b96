"""What closed-form fits share: hidden states of the tokens of some texts, and ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
    states, ids, count = [], [], 0
    training = encoder.training
    encoder.eval()
    try:
        for features in _batches(encoder, texts, batch_size):
            with torch.no_grad():
                found = run(dict(features))
            mask = features["attention_mask"].bool()
            states.append(found[mask].float().cpu())
            ids.append(features["input_ids"][mask].cpu())
            count += len(ids[-1])
            if count >= tokens:
                break
    finally:
        encoder.train(training)
    if not states:
        raise DataError("there are no texts to fit a head to", hint="Give some passages.")
    return torch.cat(states), torch.cat(ids)


def ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """The linear map ``[width, hidden]`` from inputs ``[rows, width]`` to targets ``[rows, hidden]``."""
    gram = inputs.T @ inputs
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    found: Tensor = torch.linalg.solve(gram, inputs.T @ targets)
    return found


def _batches(
    encoder: NeuralSparseEncoder, texts: Sequence[str], batch_size: int
) -> Iterator[dict[str, Tensor]]:
    tokenizer: Any = encoder.document_transformer.tokenizer
    for start in range(0, len(texts), batch_size):
        encoded = tokenizer(
            list(texts[start : start + batch_size]),
            truncation=True,
            max_length=encoder.max_length,
            padding=True,
            return_tensors="pt",
        )
        yield {name: encoded[name].to(encoder.device) for name in ("input_ids", "attention_mask")}
