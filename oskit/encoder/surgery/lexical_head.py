"""A head in closed form, so that a text weighs its own tokens before any training.

A projection at random leaves an encoder that retrieves nothing, and that much training on little data cannot
mend. The hidden states of an encoder without a masked-language head still tell which token they stand for: a
linear discriminant reads it off. A masked-language head does so already, but predicts "the" with the same
certainty as "insulin", and the rarest words with hardly any: a bias for each token puts that right. Both take
seconds and no gradients; the encoder then matches words as BM25 does, roughly, and training starts from there
rather than from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from oskit.encoder.document_frequencies import corpus_idf
from oskit.encoder.head.streaming import attach, streamed
from oskit.encoder.surgery.hidden_states import ridge, token_states
from oskit.errors import DataError, EncoderError

if TYPE_CHECKING:
    from sentence_transformers.sparse_encoder.modules import Dense

    from oskit.encoder.model import NeuralSparseEncoder

ENOUGH_TOKENS = 100_000
"""Tokens of text after which more texts change a projection little."""

_ENOUGH_FOR_BIASES = 20_000
"""The same for biases: one number for each token of the vocabulary, not a vector."""

_PRIOR = 10.0
"""Occurrences that the mean guessed from a token's input embedding counts for."""

_LOGIT_PRIOR = 1.0
"""The same for a logit, whose guess is worth less: it varies more between tokens than between occurrences."""

_RIDGE = 0.01
"""Added to the diagonal of the covariance, as a share of its mean."""

_TYPICAL_LOGIT = 2.0
"""Of a token of the text itself, in the median: log1p of it is about 1."""

_STRENGTH = 0.8
"""Weight of a text's own token over the root of its IDF, from a masked-language head."""

_REACH = 0.5
"""Largest logit of a text's own token, over its distance from the largest where the token is another."""

_ENOUGH_ELSEWHERE = 5_000
"""Positions to look for those logits at."""

_TILE = 4_096
"""Tokens of the vocabulary whose logits are computed at once."""


def fit_lexical_head(
    encoder: NeuralSparseEncoder, texts: Sequence[str], *, tokens: int | None = None, batch_size: int = 32
) -> NeuralSparseEncoder:
    """Change the head of an encoder that was not trained for retrieval, so that it matches words.

    A projection of its own, such as a random one, is replaced by :func:`discriminant`; a masked-language head
    gets the biases of :func:`idf_biases`.

    Args:
        encoder: It is changed.
        texts: Passages like those that it will see; some hundreds are enough.
        tokens: Tokens to look at; texts beyond count for the IDF only. By default 100,000 for a projection,
            20,000 for biases.
        batch_size: Texts in one run of the encoder.

    Returns:
        ``encoder``.

    Raises:
        EncoderError: It has a masked-language head without biases, or a head that does more than multiply,
            or a layer that pools (``fit_dense_head``): all tokens of a text have one state there.
        DataError: The texts have hardly any tokens.
    """
    anatomy = encoder.anatomy
    projection, head = anatomy.projection, anatomy.output
    if anatomy.names_directions:
        raise EncoderError(
            "the tokens of this encoder are names of directions, behind a layer that pools: no head can tell "
            "words there",
            hint="Fit the dense model that it was made of.",
        )
    if not attach(anatomy):
        raise EncoderError(
            "the head of this encoder does more than multiply, so it cannot be fitted",
            hint="Train it as it is.",
        )
    if projection is None and head.bias is None:
        raise EncoderError(
            "the masked-language head of this encoder has no biases to fit", hint="Train it as it is."
        )

    def run(features: dict[str, Any]) -> Tensor:
        with streamed():  # leaves the last layer out
            for module in anatomy.logit_modules:
                features = module(features)
        found: Tensor = features["token_embeddings"]
        return found

    if tokens is None:
        tokens = ENOUGH_TOKENS if projection is not None else _ENOUGH_FOR_BIASES
    states, ids = token_states(encoder, texts, run, tokens=tokens, batch_size=batch_size)
    special = torch.from_numpy(encoder.vocabulary.weight_mask() == 0)
    if int((~special[ids]).sum()) < 2 * states.shape[1]:
        raise DataError(f"{len(texts)} texts have too few tokens to fit a head to", hint="Give more of them.")
    if projection is not None:
        embeddings: Tensor = anatomy.model.get_input_embeddings().weight.detach().float().cpu()
        replace_projection(projection, *discriminant(states, ids, embeddings, special))
    else:
        idf = torch.from_numpy(corpus_idf(texts, encoder, max_length=encoder.max_length))
        weight, bias = head.weight.detach().float().cpu(), head.bias.detach().float().cpu()
        fitted = idf_biases(states, ids, weight, bias, idf)
        with torch.no_grad():
            head.bias.copy_(fitted)
    return encoder


def idf_biases(states: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, idf: Tensor) -> Tensor:
    """Biases with which a masked-language head weighs a text's own tokens by the root of their IDF.

    With logits before their bias, of which ``o_v`` is token ``v``'s mean where it is the text's own and
    ``m_v`` its largest where it is not, the bias becomes::

        min(exp(a sqrt(idf_v)) - 1, c d_v, d_v) - o_v        a = 0.8, c = 0.5, d_v = o_v - m_v

    so that ``log1p`` of its logit is ``a sqrt(idf_v)`` typically. Query and document both have that weight: a
    shared token scores ``0.64 idf_v``, which is about what BM25 gives it, and sums lie where those of trained
    encoders do. The other terms keep the token out of texts that lack it. ``o_v`` is shrunk towards ``m_v``
    and the mean distance of the two, which is all there is for tokens that the texts lack.

    Args:
        states: What the head's last layer multiplies, ``[tokens, hidden]``.
        ids: Which token each stands for, ``[tokens]``.
        weight: The last layer's, ``[rows, hidden]``.
        bias: The last layer's, ``[rows]``.
        idf: Of each token, ``[vocabulary]``; 0 for special tokens.

    Returns:
        ``[rows]``; rows beyond the vocabulary and those of special tokens stay as they are.
    """
    size = len(idf)
    special = idf == 0
    elsewhere = _largest_elsewhere(states, ids, weight[:size])
    plain = ~special[ids]
    states, ids = states[plain], ids[plain]
    own = torch.einsum("nh,nh->n", states, weight[ids])
    counts = torch.bincount(ids, minlength=size).float()
    sums = torch.zeros(size).index_add_(0, ids, own)
    guessed = elsewhere + (own - elsewhere[ids]).mean()
    typical = (sums + _LOGIT_PRIOR * guessed) / (counts + _LOGIT_PRIOR)
    distance = typical - elsewhere
    wanted = torch.expm1(_STRENGTH * idf.sqrt()).minimum(_REACH * distance).minimum(distance)
    fitted = bias.clone()
    fitted[:size] = torch.where(special, bias[:size], wanted - typical)
    return fitted


def _largest_elsewhere(states: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
    """The largest logit of each token over some positions of other tokens, before its bias."""
    step = -(-len(ids) // _ENOUGH_ELSEWHERE)
    states, ids = states[::step], ids[::step]
    found = []
    for start in range(0, len(weight), _TILE):  # not [positions, vocabulary] at once
        logits = states @ weight[start : start + _TILE].T
        inside = ((ids >= start) & (ids < start + _TILE)).nonzero()[:, 0]
        logits[inside, ids[inside] - start] = -torch.inf
        found.append(logits.amax(0))
    return torch.cat(found)


def discriminant(states: Tensor, ids: Tensor, embeddings: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
    """A projection that reads off which token a hidden state stands for.

    With hidden states ``h`` of the texts' tokens, their mean ``m``, the mean ``m_v`` of each token ``v`` of
    the vocabulary and the covariance ``S`` of ``h - m_v`` within tokens, the logits are those of a linear
    discriminant analysis with equal priors (Fisher 1936; Hastie, Tibshirani and Friedman, "The Elements of
    Statistical Learning", 4.3)::

        logit_v(h) = a (w_v (h - m) - w_v (m_v - m) / 2 - t)      w_v = S^-1 (m_v - m)

    ``m_v`` is shrunk towards what a linear map from the input embeddings predicts, which is all there is for
    tokens that the texts lack. ``a`` and ``t`` put the logits of the texts' own tokens at 2 in the median,
    and nine of ten above 0. The states of special tokens count as noise; special tokens are never predicted.

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
    predicted = embeddings @ ridge(inputs, targets)
    means: Tensor = (sums + _PRIOR * predicted) / (counts + _PRIOR)
    return means


def replace_projection(projection: Dense, weight: Tensor, bias: Tensor) -> None:
    """Give a projection ``[vocabulary, hidden]`` weights, and a bias, which it may not have had."""
    linear: Any = projection.linear
    if linear.bias is None:
        linear.bias = nn.Parameter(torch.empty_like(linear.weight[:, 0]))
        projection.bias = True  # what is saved says so too
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
