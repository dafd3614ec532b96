"""What is changed on a model survives saving and loading, or is refused.

Loading makes a model of its configuration and fills in the weights that are there. So what has a place in
the model that the configuration makes survives, and nothing else does: no bias that it does not provide for,
no layer that it does not count. That model is made here without memory for its weights, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers.sparse_encoder.modules import Dense, SparseStaticEmbedding, Transformer
from torch import nn

from oskit.errors import EncoderError, first_line


def check_survives(modules: Iterable[nn.Module]) -> None:
    """Refuse modules that would be something else after saving and loading.

    Args:
        modules: Those of an encoder, and those inside of them.

    Raises:
        EncoderError: Names the weights that would be lost, or that their configuration asks for in vain.
    """
    for module in modules:
        loaded = _as_loaded(module)
        if loaded is None:
            continue
        here, there = shapes(module), shapes(loaded)
        changed = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if changed:
            name = changed[0]
            raise EncoderError(
                f"{len(changed)} weights would not survive saving, {name} first: the "
                f"{type(module).__name__} has {_shape(here.get(name))}, its configuration says "
                f"{_shape(there.get(name))}",
                hint=_TABLE if isinstance(module, SparseStaticEmbedding) else _OTHER,
            )


_TABLE = (
    "A table is as wide as its tokenizer has tokens: give the ids that are no token one in tokenizer.json."
)
_OTHER = "Change its configuration with its weights, or leave both as they were."


def skeleton(model: Any, config: Any) -> Any:
    """A transformers model of another configuration, without memory for its weights.

    Raises:
        EncoderError: The model is none that a configuration makes.
    """
    try:
        with torch.device("meta"):  # through a dictionary, as through config.json
            return type(model)(type(config).from_dict(config.to_dict()))
    except Exception as error:  # a wrapper's or a back end's own
        raise EncoderError(
            f"no {type(model).__name__} can be made of its configuration: {first_line(error)}",
            hint="Take the model out of what was put around it: merge an adapter, undo torch.compile.",
        ) from error


def _as_loaded(module: Any) -> Any:
    if isinstance(module, Transformer):
        # The transformers model is a module of the Transformer's and has names of its own.
        loaded = nn.Module()
        loaded.model = skeleton(module.model, module.model.config)
        return loaded
    tokenizer: Any = getattr(module, "tokenizer", None)
    with torch.device("meta"):
        if isinstance(module, SparseStaticEmbedding):  # made as wide as the tokenizer
            return SparseStaticEmbedding(tokenizer)
        if isinstance(module, Dense):
            return Dense(**{key: getattr(module, key) for key in module.config_keys})
    return None


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all that is saved of a module, by name."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"the shape {list(shape)}"
