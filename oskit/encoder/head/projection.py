"""The projection from hidden size to vocabulary as a module of its own, read from a file or random.

It is sentence-transformers' ``Dense`` on the token embeddings, so the saved encoder opens in plain
sentence-transformers: ``Transformer(feature-extraction) → Dense → SpladePooling``.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers.sparse_encoder.modules import Dense
from torch import Tensor, nn

from oskit.errors import BrokenEncoderError, first_line

WRAPPERS = ("projection", "state_dict", "model_state_dict", "head", "neural_sparse_head")
"""Keys under which the state dict may lie, beside metadata such as ``max_length``; else it is the file."""

PREFIXES = (
    "",
    "projection.",
    "linear.",
    "head.",
    "decoder.",
    "vocab_projection.",
    "vocab_projector.",
    "neural_sparse_head.",
    "proj.",
    "dense.",
    "output.",
    "fc.",
)
"""What may stand before ``weight`` and ``bias``; ``module.`` (DataParallel) may stand before all of it."""


class ProjectionFile(NamedTuple):
    """A projection as it was read: weight ``[vocabulary, hidden]``, bias ``[vocabulary]`` or None."""

    weight: Tensor
    bias: Tensor | None
    max_length: int | None


def read_projection(path: Path, *, hidden_size: int) -> ProjectionFile:
    """Read ``neural_sparse_head.pt``, never running code that it may hold.

    Understood is a state dict with ``PREFIX + "weight"`` of shape ``[vocabulary, hidden]`` and, optionally,
    ``PREFIX + "bias"`` of shape ``[vocabulary]``, with a prefix of :data:`PREFIXES`; or a dict that holds
    this state dict under a key of :data:`WRAPPERS`, beside plain values of which ``max_length`` is used.

    Raises:
        BrokenEncoderError: It is truncated, holds more than tensors and plain values, or has other or more
            keys, or other shapes.
    """
    state = _load(path)
    max_length = state.get("max_length")
    wrapper = next((key for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
    tensors = state if wrapper is None else state[wrapper]
    tensors = {str(key).removeprefix("module."): value for key, value in tensors.items()}
    prefix = next((prefix for prefix in PREFIXES if isinstance(tensors.get(f"{prefix}weight"), Tensor)), None)
    if prefix is None:
        raise BrokenEncoderError(
            f"{path} has no projection under a known key, only {_names(tensors)}",
            hint="Rename its keys to 'weight' and 'bias'; docs/loading.md lists all that are understood.",
        )
    own = (f"{prefix}weight", f"{prefix}bias")
    more = {name: value for name, value in tensors.items() if isinstance(value, Tensor) and name not in own}
    if more:
        raise BrokenEncoderError(
            f"{path} holds more than a projection from hidden states to the vocabulary: {_names(more)}",
            hint="A head of several layers cannot be used; save the one layer that makes the logits.",
        )
    weight, bias = tensors[f"{prefix}weight"].float(), tensors.get(f"{prefix}bias")
    if weight.ndim != 2 or weight.shape[1] != hidden_size:
        raise BrokenEncoderError(
            f"{path}: {prefix}weight has the shape {list(weight.shape)}, this encoder needs "
            f"[vocabulary, {hidden_size}]",
            hint="Use the head that was trained with this encoder.",
        )
    if isinstance(bias, Tensor) and bias.shape != weight.shape[:1]:
        raise BrokenEncoderError(
            f"{path}: {prefix}bias has the shape {list(bias.shape)}, its weight {list(weight.shape)}",
            hint="Use the head that was trained with this encoder.",
        )
    length = max_length if isinstance(max_length, int) and max_length > 0 else None
    return ProjectionFile(weight, bias.float() if isinstance(bias, Tensor) else None, length)


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = "Weights only load failed" in str(error)
        reason = "holds more than tensors and plain values and was not run" if unsafe else "is damaged"
        raise BrokenEncoderError(
            f"{path} {reason}",
            hint="Save the projection again with torch.save(projection.state_dict(), path).",
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, OSError, ValueError and others
        raise BrokenEncoderError(
            f"{path} cannot be read: {first_line(error)}", hint="Copy or download it again."
        ) from error
    if not isinstance(state, Mapping):
        raise BrokenEncoderError(
            f"{path} holds a {type(state).__name__}, not a state dict",
            hint="Save the projection with torch.save(projection.state_dict(), path).",
        )
    return dict(state)


def _names(tensors: Mapping[str, Any]) -> str:
    names = sorted(map(str, tensors))
    return ", ".join(map(repr, names[:5])) + (" and more" if len(names) > 5 else "") if names else "nothing"


def projection_module(weight: Tensor, bias: Tensor | None) -> Dense:
    """The projection as a module that maps each token's hidden state to logits over the vocabulary."""
    module = Dense(
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        bias=bias is not None,
        activation_function=nn.Identity(),
        module_input_name="token_embeddings",
    )
    with torch.no_grad():
        module.linear.weight.copy_(weight)
        if bias is not None:
            module.linear.bias.copy_(bias)
    return module


def random_projection(hidden_size: int, vocabulary_size: int, *, std: float, seed: int) -> Dense:
    """A projection that knows nothing yet: normal weights of deviation ``std``, bias 0; one for each seed."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary_size, hidden_size, generator=generator) * std
    return projection_module(weight, torch.zeros(vocabulary_size))


_MARK = "oskit_random_projection"


def mark_random(projection: Dense, config: Any) -> None:
    """Note a random projection in the transformers model's configuration.

    That is ``config.json``, the one place which plain sentence-transformers keeps when it loads and saves.
    """
    setattr(config, _MARK, _fingerprint(projection))


def is_random(projection: Dense, config: Any) -> bool:
    """Whether a projection is still the one that was marked; training ends that, another type does not."""
    mark = getattr(config, _MARK, None)
    return mark is not None and mark == _fingerprint(projection)


def read_earlier_mark(projection: Dense, config: Any, mark: str) -> None:
    """Take over the mark of earlier versions: sha256 over weights and biases in float32."""
    digest = hashlib.sha256()
    for tensor in (projection.linear.weight, projection.linear.bias):
        if tensor is not None:
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    if mark == digest.hexdigest():
        mark_random(projection, config)


def forget_mark(config: Any) -> None:
    """Take the mark of a projection that was trained out of the configuration."""
    if hasattr(config, _MARK):
        delattr(config, _MARK)


def _fingerprint(projection: Dense) -> str:
    """sha256 over the signs of the weights, and which biases are not 0.

    Half precision keeps both. A step of training turns some of many thousand signs, and no bias stays 0.
    """
    linear = projection.linear
    bits = [linear.weight.signbit(), *([] if linear.bias is None else [linear.bias != 0])]
    digest = hashlib.sha256()
    for tensor in bits:
        digest.update(np.packbits(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()
