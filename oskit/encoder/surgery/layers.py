"""The first layers of a transformer alone, with a head that still understands them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from oskit.encoder.anatomy import Anatomy, inference
from oskit.encoder.surgery.hidden_states import ridge, token_states
from oskit.encoder.surgery.survival import shapes, skeleton
from oskit.errors import EncoderError

if TYPE_CHECKING:
    from oskit.encoder.model import NeuralSparseEncoder

ENOUGH_TOKENS = 20_000
"""Tokens of text after which more texts change little."""


def check_layers(encoder: NeuralSparseEncoder, number: int) -> None:
    """Refuse what :func:`keep_layers` would refuse.

    Raises:
        EncoderError: As it does.
    """
    anatomy = encoder.anatomy
    if not 1 <= number <= anatomy.layers:
        raise EncoderError(
            f"{number} layers are to be kept, but {anatomy.config.name_or_path} has {anatomy.layers}",
            hint="Keep one at least, and no more than there are.",
        )
    if number < anatomy.layers:
        if anatomy.names_directions:
            raise EncoderError(
                f"the last layer of {anatomy.config.name_or_path} pools for its dense head, which needs it",
                hint="Cut the dense model first, then fit the head to it.",
            )
        layer_lists(anatomy, number)
        if not encoder.is_untrained:
            _reader(encoder)


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
    squares over the texts' tokens, goes into the first linear layer of the head; where that has no bias, the
    linear map does. That is the tuned lens of Belrose et al. (2023, arXiv 2303.08112), which they train by
    gradients and for every layer. A random projection understands nothing anyhow and stays as it is.

    Args:
        encoder: It is changed.
        number: Layers to keep.
        texts: Passages like those that it will see; some hundreds are enough.
        tokens: Tokens to look at; texts beyond are not used.
        batch_size: Texts in one run of the encoder.

    Raises:
        EncoderError: It has fewer layers, they are no list that can be cut, or no layer of the head can take
            the map.
        DataError: There are no texts.
    """
    check_layers(encoder, number)
    anatomy = encoder.anatomy
    if number == anatomy.layers:
        return
    base = anatomy.model.base_model
    reader = None if encoder.is_untrained else _reader(encoder)

    def states() -> Tensor:
        found = token_states(
            encoder, texts, lambda features: base(**features)[0], tokens=tokens, batch_size=batch_size
        )
        return found[0]

    if reader is not None:
        whole = states()
    for layers in layer_lists(anatomy, number):
        del layers[number:]
    set_layers(anatomy.config, number)
    if reader is not None:
        _fold(reader, *translator(states(), whole, offset=reader.bias is not None))


def translator(states: Tensor, targets: Tensor, *, offset: bool = True) -> tuple[Tensor, Tensor]:
    """The affine map from states to targets by ridge regression.

    Args:
        states: ``[tokens, hidden]``.
        targets: ``[tokens, hidden]``.
        offset: Whether it may move the origin.

    Returns:
        Weight ``[hidden, hidden]`` and bias ``[hidden]`` with ``targets ~ states @ weight.T + bias``.
    """
    if not offset:
        return ridge(states, targets).T, states.new_zeros(states.shape[1])
    middle, target_middle = states.mean(0), targets.mean(0)
    weight = ridge(states - middle, targets - target_middle).T
    return weight, target_middle - weight @ middle


def _fold(reader: Any, weight: Tensor, bias: Tensor) -> None:
    """Let a layer compute what it does now behind the map."""
    with torch.no_grad():
        own = reader.weight.float()
        weight, bias = weight.to(own), bias.to(own)
        if reader.bias is not None:
            reader.bias.add_((own @ bias).to(reader.bias))
        reader.weight.copy_(own @ weight)


def set_layers(config: Any, number: int) -> None:
    """Let a configuration say that there are so many layers, also where it has a list with one entry each."""
    there = config.num_hidden_layers
    config.num_hidden_layers = number
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == there:
            setattr(config, name, value[:number])


def layer_lists(anatomy: Anatomy, number: int) -> list[nn.ModuleList]:
    """The lists of modules of which a model of ``number`` layers has fewer.

    Raises:
        EncoderError: Such a model is not this one with those lists cut.
    """
    config = deepcopy(anatomy.config)
    set_layers(config, number)
    smaller = skeleton(anatomy.model, config)
    lengths = {
        name: len(module) for name, module in smaller.named_modules() if isinstance(module, nn.ModuleList)
    }
    lists = {
        name: module
        for name, module in anatomy.model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > lengths.get(name, 0)
    }
    gone = tuple(f"{name}.{i}." for name, module in lists.items() for i in range(number, len(module)))
    kept = {name: shape for name, shape in shapes(anatomy.model).items() if not name.startswith(gone)}
    if not lists or kept != shapes(smaller):
        raise EncoderError(
            f"the layers of {anatomy.config.name_or_path} are no list, so it cannot be cut",
            hint="Keep all of them.",
        )
    return list(lists.values())


def _reader(encoder: NeuralSparseEncoder) -> Any:
    """The linear layer of the head that reads the transformer's last states, seen on three tokens.

    Raises:
        EncoderError: There is none of its own: a projection that is tied to the embeddings cannot take a map.
    """
    anatomy = encoder.anatomy
    base = anatomy.model.base_model
    inside = set(base.modules())
    embeddings = base.get_input_embeddings().weight
    last: list[Any] = []
    readers: list[Any] = []

    def read(module: Any, inputs: tuple[Any, ...]) -> None:
        if last and inputs[0] is last[0] and module.weight is not embeddings:
            readers.append(module)

    if base is anatomy.model:  # sentence-transformers calls its forward, past its hooks
        handle = anatomy.transformer.register_forward_hook(
            lambda _, __, out: last.append(out["token_embeddings"])
        )
    else:
        handle = base.register_forward_hook(lambda _, __, output: last.append(output[0]))
    handles = [handle] + [
        module.register_forward_pre_hook(read)
        for part in anatomy.logit_modules
        for module in part.modules()
        if isinstance(module, nn.Linear) and module not in inside
    ]
    try:
        with inference(encoder):
            anatomy.try_out()
    finally:
        for handle in handles:
            handle.remove()
    if len(readers) != 1:
        raise EncoderError(
            f"no layer of the head of {anatomy.config.name_or_path} is the only one to read the last hidden "
            "states, so that it cannot be fitted to those of an earlier layer",
            hint="Keep all layers.",
        )
    return readers[0]
