"""The first layers of a transformer alone, with a head that still understands them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from oskit.encoder.loader.modules import config_of
from oskit.encoder.surgery.hidden_states import ridge, token_states
from oskit.errors import EncoderError

if TYPE_CHECKING:
    from oskit.encoder.model import NeuralSparseEncoder

ENOUGH_TOKENS = 20_000
"""Tokens of text after which more texts change little."""


def check_layers(encoder: NeuralSparseEncoder, number: int) -> list[nn.ModuleList]:
    """The lists that hold the transformer's layers.

    Raises:
        EncoderError: It has fewer than ``number``, or its layers are no list of modules.
    """
    transformer = encoder.document_transformer
    config: Any = config_of(transformer)
    there = int(config.num_hidden_layers)
    if number > there:
        raise EncoderError(
            f"{number} layers are to be kept, but {config.name_or_path} has {there}",
            hint="Keep fewer, or all of them.",
        )
    lists = [
        module
        for module in transformer.model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == there
    ]
    if not lists:
        raise EncoderError(
            f"the layers of {config.name_or_path} are not found, so it cannot be cut",
            hint="Keep all of them.",
        )
    return lists


def keep_layers(
    encoder: NeuralSparseEncoder,
    number: int,
    texts: Sequence[str],
    *,
    tokens: int = ENOUGH_TOKENS,
    batch_size: int = 32,
) -> None:
    """Keep the first layers of the transformer and forget the others.

    A head was trained behind the last layer, and understands little of what an earlier one says. So the
    affine map that predicts the states of the last layer from those of the last one that is kept, by least
    squares over the texts' tokens, goes into the first linear layer of the head. That is the tuned lens of
    Belrose et al. (2023, arXiv 2303.08112), which they train by gradients and for every layer. A random
    projection understands nothing anyhow and stays as it is.

    Args:
        encoder: It is changed.
        number: Layers to keep.
        texts: Passages like those that it will see; some hundreds are enough.
        tokens: Tokens to look at; texts beyond are not used.
        batch_size: Texts in one run of the encoder.

    Raises:
        EncoderError: It has fewer layers, or they are not found.
        DataError: There are no texts.
    """
    lists = check_layers(encoder, number)
    config: Any = config_of(encoder.document_transformer)
    if number == config.num_hidden_layers:
        return
    base, reader = _base(encoder), None if encoder.is_untrained else _reader(encoder)

    def states() -> Tensor:
        found = token_states(
            encoder, texts, lambda features: base(**features)[0], tokens=tokens, batch_size=batch_size
        )
        return found[0]

    def cut() -> None:
        for layers in lists:
            del layers[number:]
        config.num_hidden_layers = number
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:number]

    if reader is None:
        cut()
        return
    whole = states()
    cut()
    _fold(reader, *translator(states(), whole))


def translator(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map from states to targets by ridge regression.

    Args:
        states: ``[tokens, hidden]``.
        targets: ``[tokens, hidden]``.

    Returns:
        Weight ``[hidden, hidden]`` and bias ``[hidden]`` with ``targets ~ states @ weight.T + bias``.
    """
    middle, target_middle = states.mean(0), targets.mean(0)
    weight = ridge(states - middle, targets - target_middle).T
    return weight, target_middle - weight @ middle


def _fold(reader: Any, weight: Tensor, bias: Tensor) -> None:
    """Let a layer compute what it does now behind the map."""
    weight, bias = weight.to(reader.weight), bias.to(reader.weight)
    with torch.no_grad():
        offset = reader.weight @ bias
        reader.weight.copy_(reader.weight @ weight)
        if reader.bias is None:
            reader.bias = nn.Parameter(offset)
        else:
            reader.bias.add_(offset)


def _base(encoder: NeuralSparseEncoder) -> Any:
    """The transformers model without its masked-language head."""
    model: Any = encoder.document_transformer.model
    return model.base_model


def _reader(encoder: NeuralSparseEncoder) -> nn.Linear | None:
    """The layer of the head that reads the transformer's last states, seen on three tokens.

    None where there is none of its own: a projection that is tied to the embeddings cannot take the map.
    """
    base = _base(encoder)
    inside = set(base.modules())
    embeddings = base.get_input_embeddings().weight
    last: list[Any] = []
    readers: list[Any] = []

    def read(module: Any, inputs: tuple[Any, ...]) -> None:
        if last and inputs[0] is last[0] and module.weight is not embeddings:
            readers.append(module)

    handles = [base.register_forward_hook(lambda _, __, output: last.append(output[0]))]
    handles += [
        module.register_forward_pre_hook(read)
        for part in encoder.logit_modules
        for module in part.modules()
        if isinstance(module, nn.Linear) and module not in inside
    ]
    ids = torch.tensor([[0, 1, 2]], device=encoder.device)
    features: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        with torch.no_grad():
            for part in encoder.logit_modules:
                features = part(features)
    finally:
        for handle in handles:
            handle.remove()
    return readers[0] if len(readers) == 1 else None
