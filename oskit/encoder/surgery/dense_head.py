"""A head in closed form that says in tokens what a dense model's embedding says.

A dense encoder, such as most of sentence-transformers, retrieves by the cosine of two mean states. Along many
random directions such a state is large in few: those few, of all directions of a vocabulary, are a sparse
vector, and texts with a large cosine share many of them. So a dense model becomes a sparse encoder of about
its own quality, without any training, in an inverted index. Its tokens are names of directions: they mean
nothing, explain nothing, and match no word.

That is what the fruit fly does with odours (Dasgupta, Stevens and Navlakha 2017, Science 358:793). Which
dimensions are active is trained by gradients elsewhere (CSR; Wen et al. 2025, arXiv 2503.01776).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from oskit.encoder.anatomy import DIRECTIONS_MARK, Anatomy, inference
from oskit.encoder.surgery.layers import layer_lists, set_layers
from oskit.encoder.surgery.lexical_head import replace_projection
from oskit.errors import DataError, EncoderError, OskitError

if TYPE_CHECKING:
    from oskit.encoder.model import NeuralSparseEncoder

ACTIVE = 300
"""Active dimensions of a text in the mean; the largest half of a document's serves nearly as well."""

_STEEPNESS = 200.0
"""Logit over cosine with a direction: so steep that how many directions two texts share counts more than how
large they are there, as :func:`torch.log1p` of the logit is nearly flat."""

_POOLED = 1000.0
"""The mean state over a token's own, in the layer that pools."""

_ENOUGH_TEXTS = 500
_MAX_SPREAD = 0.05
"""Distance of two tokens' pooled states, which have length 1, that rounding explains."""


def fit_dense_head(
    encoder: NeuralSparseEncoder,
    texts: Sequence[str],
    *,
    active: int = ACTIVE,
    seed: int = 0,
    batch_size: int = 32,
) -> NeuralSparseEncoder:
    """Change an encoder with an untrained projection, so that its vectors compare as its mean states do.

    A layer is put behind the transformer's last one: each token attends to all alike, so that its state
    becomes the mean one, less the mean of the texts, with length 1. The projection gets a random direction
    for each token of the vocabulary, and one threshold for all.

    Args:
        encoder: It is changed. Its transformer has layers like BERT's, and was trained to be pooled by the
            mean.
        texts: Passages like those that it will see; some hundreds are enough.
        active: Active dimensions of a text, in the mean over ``texts``.
        seed: Of the directions.
        batch_size: Texts in one run of the encoder.

    Returns:
        ``encoder``.

    Raises:
        EncoderError: It has a masked-language head, or layers that cannot be made to pool.
        DataError: There are no texts.
    """
    anatomy, projection = encoder.anatomy, encoder.anatomy.projection
    layers, pooling = pooling_layer(encoder)
    assert projection is not None
    texts = texts[:: max(1, len(texts) // _ENOUGH_TEXTS)]
    layers.append(pooling)
    set_layers(anatomy.config, len(layers))
    try:
        pooled = _pooled(encoder, texts, batch_size)
    except OskitError:
        del layers[-1]
        set_layers(anatomy.config, len(layers))
        raise
    mean, bias = pooled.mean(0), pooling.output.dense.bias
    with torch.no_grad():  # there a state is as long as a layer norm leaves it, and only then of length 1
        bias.copy_(-mean * anatomy.hidden_size**0.5)
    states = nn.functional.normalize(pooled - mean, dim=1)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(anatomy.width, anatomy.hidden_size, generator=generator)
    directions = nn.functional.normalize(directions, dim=1)
    known = torch.from_numpy(encoder.vocabulary.weight_mask() != 0)
    usable = torch.zeros(anatomy.width, dtype=torch.bool)
    usable[: len(known)] = known
    cosines = states @ directions[usable].T
    largest = cosines.flatten().topk(min(active * len(states), cosines.numel() - 1)).values
    weight, biases = _STEEPNESS * directions, torch.full((anatomy.width,), -_STEEPNESS * float(largest[-1]))
    weight[~usable], biases[~usable] = 0.0, -1.0
    replace_projection(projection, weight, biases)
    setattr(anatomy.config, DIRECTIONS_MARK, True)
    return encoder


def pooling_layer(encoder: NeuralSparseEncoder) -> tuple[nn.ModuleList, Any]:
    """The encoder's layers, and the one that :func:`fit_dense_head` puts behind them.

    Raises:
        EncoderError: As there.
    """
    if encoder.anatomy.projection is None:
        raise EncoderError(
            "this encoder has a masked-language head, not the projection of a dense model",
            hint="Fit it with head: lexical.",
        )
    layers = _layers(encoder.anatomy)
    return layers, _pooling(layers[-1], encoder.anatomy)


def _layers(anatomy: Anatomy) -> nn.ModuleList:
    try:
        (layers,) = layer_lists(anatomy, anatomy.layers - 1)
    except (EncoderError, ValueError):  # no list, or more than one
        raise _not_like_bert(anatomy) from None
    return layers


def _pooled(encoder: NeuralSparseEncoder, texts: Sequence[str], batch_size: int) -> Tensor:
    """The state that all tokens of a text have, ``[texts, hidden]`` float32.

    Raises:
        DataError: There are no texts.
        EncoderError: They differ.
    """
    anatomy = encoder.anatomy
    found = []
    with_tokens = [encoding.ids for encoding in anatomy.tokenize(texts) if encoding.ids]
    with inference(encoder), torch.no_grad():
        for start in range(0, len(with_tokens), batch_size):
            features = anatomy.features(with_tokens[start : start + batch_size])
            states = anatomy.transformer(features)["token_embeddings"].float()
            spread = (states - states[:, :1]).norm(dim=2) * features["attention_mask"]
            if float((spread.amax(1) / states[:, 0].norm(dim=1)).max()) > _MAX_SPREAD:
                raise _not_like_bert(anatomy)
            found.append(states[:, 0].cpu())
    if not found:
        raise DataError("there are no texts to fit a head to", hint="Give some passages.")
    return torch.cat(found)


def _pooling(layer: nn.Module, anatomy: Anatomy) -> Any:
    """A layer like another one, after which each token has the mean state, with length 1. The bias of its
    last linear layer is added to the mean before it gets that length.

    Raises:
        EncoderError: It has other parts than BERT's.
    """
    pooling: Any = deepcopy(layer)
    try:
        attention, mixed = pooling.attention.self, pooling.attention.output
        attending = (attention.query, attention.key, attention.value, mixed.dense)
        linear = (*attending, pooling.intermediate.dense, pooling.output.dense)
        norms = (mixed.LayerNorm, pooling.output.LayerNorm)
    except AttributeError:
        raise _not_like_bert(anatomy) from None
    with torch.no_grad():
        for part in linear:
            part.weight.zero_()
            part.bias.zero_()
        attention.value.weight.fill_diagonal_(1.0)
        mixed.dense.weight.fill_diagonal_(_POOLED)
        for norm, size in zip(norms, (1.0, anatomy.hidden_size**-0.5), strict=True):
            norm.weight.fill_(size)
            norm.bias.zero_()
    return pooling


def _not_like_bert(anatomy: Anatomy) -> EncoderError:
    return EncoderError(
        f"the layers of {anatomy.config.name_or_path} are not built like BERT's, so none can pool",
        hint="Fit it with head: lexical.",
    )
