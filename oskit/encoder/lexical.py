"""A projection in closed form: fitted so that each token of a text predicts itself.

A projection at random leaves an encoder that retrieves nothing, and that much training on little data cannot
mend. The hidden states of an encoder without a masked-language head still tell which token they stand for: a
linear discriminant reads it off, in seconds and without gradients. The encoder then matches words as BM25
does, roughly, and training starts from there rather than from nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oskit.encoder.heads import projection_of
from oskit.errors import DataError, EncoderError

if TYPE_CHECKING:
    from sentence_transformers.sparse_encoder.modules import Dense

    from oskit.encoder.model import NeuralSparseEncoder

ENOUGH_TOKENS = 100_000
"""Tokens of text after which more texts change little."""

_PRIOR = 10.0
"""Occurrences that the mean guessed from a token's input embedding counts for."""

_RIDGE = 0.01
"""Added to the diagonal of the covariance, as a share of its mean."""

_TYPICAL_LOGIT = 2.0
"""Of a token of the text itself, in the median: log1p of it is about 1."""


def fit_lexical_head(
    encoder: NeuralSparseEncoder, texts: Sequence[str], *, tokens: int = ENOUGH_TOKENS, batch_size: int = 32
) -> NeuralSparseEncoder:
    """Replace the projection of an encoder without a head of its own, so that it matches words.

    With hidden states ``h`` of the texts' tokens, their mean ``m``, the mean ``m_v`` of each token ``v`` of
    the vocabulary and the covariance ``S`` of ``h - m_v`` within tokens, the logits are those of a linear
    discriminant analysis with equal priors (Fisher 1936; Hastie, Tibshirani and Friedman, "The Elements of
    Statistical Learning", 4.3)::

        logit_v(h) = a (w_v (h - m) - w_v (m_v - m) / 2 - t)      w_v = S^-1 (m_v - m)

    ``m_v`` is shrunk towards what a linear map from the input embeddings predicts, which is all there is for
    tokens that the texts lack. ``a`` and ``t`` put the logits of the texts' own tokens at 2 in the median,
    and nine of ten above 0. The states of special tokens count as noise; special tokens are never predicted.

    Args:
        encoder: An encoder whose projection is a module of its own, such as a random one; it is changed.
        texts: Passages like those that it will see; some hundreds are enough.
        tokens: Tokens to look at; texts beyond are not used.
        batch_size: Texts in one run of the encoder.

    Returns:
        ``encoder``.

    Raises:
        EncoderError: It has a masked-language head, which knows better.
        DataError: The texts have hardly any tokens.
    """
    projection = projection_of(encoder.document_modules)
    if projection is None:
        raise EncoderError(
            "this encoder has a masked-language head, which is no projection to fit",
            hint="Train it as it is.",
        )
    states, ids = _token_states(encoder, texts, tokens, batch_size)
    special = torch.from_numpy(encoder.vocabulary.weight_mask() == 0)
    if int((~special[ids]).sum()) < 2 * states.shape[1]:
        raise DataError(
            f"{len(texts)} texts have too few tokens to fit a projection to", hint="Give more of them."
        )
    model: Any = encoder.document_transformer.model
    embeddings: Tensor = model.get_input_embeddings().weight.detach().float().cpu()
    weight, bias = discriminant(states, ids, embeddings, special)
    _replace(projection, weight, bias)
    return encoder


def discriminant(states: Tensor, ids: Tensor, embeddings: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
    """The projection of :func:`fit_lexical_head`.

    Args:
        states: Hidden states, ``[tokens, hidden]``.
        ids: Which token each stands for, ``[tokens]``.
        embeddings: Input embeddings, ``[rows, width]``; rows beyond the vocabulary are ignored.
        special: Which tokens are never predicted, ``[vocabulary]``.

    Returns:
        Weight ``[vocabulary, hidden]`` and bias ``[vocabulary]``.
    """
    size, hidden = len(special), states.shape[1]
    plain = ~special[ids]
    center = states[plain].mean(0)
    states = states - center
    own, own_ids = states[plain], ids[plain]
    means = _shrunk_means(own, own_ids, _standardised(embeddings, size))
    noise = torch.cat([own - means[own_ids], states[~plain]])
    covariance = noise.T @ noise / len(noise)
    covariance += _RIDGE * covariance.diagonal().mean() * torch.eye(hidden)
    weight = torch.linalg.solve(covariance, means.T).T
    bias = -(weight * means).sum(1) / 2
    logits = (weight[own_ids] * own).sum(1) + bias[own_ids]
    middle = float(logits.median())
    threshold = min(float(logits.quantile(0.1)), 0.9 * middle) / 2
    scale = _TYPICAL_LOGIT / (middle - threshold)
    weight, bias = scale * weight, scale * (bias - threshold)
    bias = bias - weight @ center
    weight[special], bias[special] = 0.0, -1.0
    return weight, bias


def _standardised(embeddings: Tensor, size: int) -> Tensor:
    rows = torch.zeros(size, embeddings.shape[1])
    known = embeddings[:size]
    rows[: len(known)] = torch.nn.functional.normalize(known - known.mean(0), dim=1)
    return rows


def _shrunk_means(states: Tensor, ids: Tensor, embeddings: Tensor) -> Tensor:
    """Mean state of each token, ``[vocabulary, hidden]``, shrunk to what its input embedding predicts."""
    size = len(embeddings)
    counts = torch.bincount(ids, minlength=size).float()[:, None]
    sums = torch.zeros(size, states.shape[1]).index_add_(0, ids, states)
    seen = counts[:, 0] > 0
    root = counts[seen].sqrt()  # least squares over occurrences, not over kinds of tokens
    inputs, targets = embeddings[seen] * root, sums[seen] / root
    gram = inputs.T @ inputs
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
    predicted = embeddings @ torch.linalg.solve(gram, inputs.T @ targets)
    means: Tensor = (sums + _PRIOR * predicted) / (counts + _PRIOR)
    return means


def _token_states(
    encoder: NeuralSparseEncoder, texts: Sequence[str], limit: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Last hidden states and token ids of the texts' first ``limit`` tokens, padding left out, on the CPU."""
    states, ids, count = [], [], 0
    training = encoder.training
    encoder.eval()
    try:
        for features in _batches(encoder, texts, batch_size):
            with torch.no_grad():
                found = encoder.document_transformer(dict(features))["token_embeddings"]
            mask = features["attention_mask"].bool()
            states.append(found[mask].float().cpu())
            ids.append(features["input_ids"][mask].cpu())
            count += len(ids[-1])
            if count >= limit:
                break
    finally:
        encoder.train(training)
    if not states:
        raise DataError("there are no texts to fit a projection to", hint="Give some passages.")
    return torch.cat(states), torch.cat(ids)


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


def _replace(projection: Dense, weight: Tensor, bias: Tensor) -> None:
    linear: Any = projection.linear
    with torch.no_grad():
        linear.weight.copy_(weight)
        if linear.bias is None:
            linear.bias = torch.nn.Parameter(bias.to(linear.weight))
        else:
            linear.bias.copy_(bias)
