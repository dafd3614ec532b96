"""The streaming vocabulary head: transformer, projection and SPLADE pooling without the logits between them.

The modules stay those of sentence-transformers, so that a saved encoder opens there. Only what they do
inside of :func:`streamed` differs: the projection to the vocabulary (the ``decoder`` of a masked-language
head, or a ``Dense`` module) hands its input on instead of multiplying it, and the pooling that gets it
computes projection and maximum at once (:func:`oskit.encoder.head.maxima.maximum_logits`). Outside of it they
compute what they always do: the exporter traces the very same modules.

No list says which architectures this fits. :func:`attach` runs the modules on three tokens, and attaches only
if what reaches the pooling is the very tensor that the projection returned, unchanged. An encoder that scales
its logits, adds to them, or multiplies without calling its projection goes the usual way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Any

import torch
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import Tensor, nn

from oskit.encoder.anatomy import Anatomy
from oskit.encoder.head.integers import maxima_of
from oskit.encoder.head.maxima import Tokens
from oskit.errors import EncoderError

_handed_on: ContextVar[HandedOn | None] = ContextVar("_handed_on", default=None)

_attaching = Lock()
_REFUSED = "_not_streamed"


class HandedOn:
    """What a projection handed on, until the pooling takes it."""

    def __init__(self, activate: bool) -> None:
        self.projection: VocabularyProjection | None = None
        self.hidden: Tensor | None = None
        self.activate = activate
        self.logarithms = 0


@contextmanager
def streamed(*, activate: bool = True) -> Iterator[HandedOn]:
    """Projections that are attached to a pooling hand their input on to it; for this thread.

    Without ``activate`` the pooling, where it streams, gives relu(maximum) alone, and ``logarithms`` of what
    this yields says how often ``log1p`` is still to be taken: of few positive values that is cheap.
    """
    handed_on = HandedOn(activate)
    token = _handed_on.set(handed_on)
    try:
        yield handed_on
    finally:
        _handed_on.reset(token)


class VocabularyProjection(nn.Linear):
    """The linear layer from hidden states to logits; inside of :func:`streamed` it does nothing."""

    def forward(self, input: Tensor) -> Tensor:
        """Logits ``[..., vocabulary]`` of hidden states ``[..., hidden]``, or those states themselves."""
        handed_on = _handed_on.get()
        if handed_on is None:
            return super().forward(input)
        handed_on.projection, handed_on.hidden = self, input
        return input


def attach(encoder: Anatomy) -> bool:
    """Let the projection to the vocabulary and the pooling of an encoder work together.

    Cheap when they do already, or when it was found out before that they cannot.

    Returns:
        Whether they do.
    """
    pooling, projection = encoder.pooling, encoder.output
    if not _is_free(projection):
        return False
    with _attaching:
        if type(projection) is nn.Linear and _REFUSED not in projection.__dict__:
            if _reaches(projection, encoder):
                # As torch's parametrizations do: the parameters and their names stay.
                projection.__class__ = VocabularyProjection
            else:
                projection.__dict__[_REFUSED] = True
        attached = type(projection) is VocabularyProjection
        if attached and "forward" not in pooling.__dict__:
            # As accelerate's hooks do: the class, which a saved encoder names, stays.
            pooling.__dict__["forward"] = partial(_pool, pooling)
    return attached


def _is_free(projection: Any) -> bool:
    """Whether it is a linear layer that no hooks or wrappers want to see at work."""
    if not isinstance(projection, nn.Linear) or "forward" in projection.__dict__:
        return False
    hooks = projection._forward_hooks or projection._forward_pre_hooks or projection._backward_hooks
    # Sharded weights (ZeRO-3) are there only while the layer itself runs.
    sharded = projection.weight.shape != (projection.out_features, projection.in_features)
    return not (hooks or sharded)


def _reaches(projection: nn.Linear, encoder: Anatomy) -> bool:
    """Whether what reaches the pooling is what the projection returned, seen on three tokens."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = projection.register_forward_hook(lambda _, __, output: seen.append((output, output.clone())))
    try:
        logits = encoder.try_out()
    except Exception:  # it needs other inputs: the usual way raises what there is to raise
        return False
    finally:
        handle.remove()
    return len(seen) == 1 and logits is seen[0][0] and torch.equal(logits, seen[0][1])


def _tokens(features: dict[str, Any]) -> Tokens:
    """Which hidden states count; a GPU is asked only where whoever made the batch did not say it."""
    if "lengths" in features:
        return Tokens(features["token_rows"], features["lengths"])
    bounds = features.get("cu_seq_lens_q")
    return Tokens.of_mask(features["attention_mask"]) if bounds is None else Tokens.of_bounds(bounds)


def _pool(pooling: SpladePooling, features: dict[str, Any]) -> dict[str, Any]:
    """``pooling.forward``, on hidden states where the projection handed them on."""
    handed_on = _handed_on.get()
    if handed_on is None or handed_on.hidden is None:
        return SpladePooling.forward(pooling, features)
    projection, hidden = handed_on.projection, handed_on.hidden
    handed_on.projection = handed_on.hidden = None
    assert projection is not None
    if features["token_embeddings"] is not hidden:
        raise EncoderError(
            "a module between the projection to the vocabulary and the pooling changes the logits",
            hint="Turn the streaming head off: encoder.streaming = False.",
        )
    if pooling.pooling_strategy != "max":
        features["token_embeddings"] = nn.Linear.forward(projection, hidden)
        return SpladePooling.forward(pooling, features)
    weights = maxima_of(projection, hidden.flatten(0, -2), _tokens(features))
    logarithms = 2 if pooling.activation_function == "log1p_relu" else 1
    if handed_on.activate:
        for _ in range(logarithms):
            weights = weights.log1p()
    else:
        handed_on.logarithms = logarithms
    if pooling.embedding_dimension is None:
        pooling.embedding_dimension = weights.shape[1]
    features["sentence_embedding"] = weights
    return features
