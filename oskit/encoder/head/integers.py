"""The streaming head at the speed of 8-bit integers, with fp32's own weights, on a CPU.

A weight is positive for a few hundred of 30,522 columns. So all columns are multiplied in int8 first, with an
upper bound of what fp32 would give; fp32 follows for the columns alone whose bound is positive. All others
are 0 for certain, and the positive ones are fp32's own:

    |h.w - h^.w^| <= |h - h^| |w| + |h^| |w - w^|        (Cauchy-Schwarz; ^ is what int8 makes of a vector)

with the maxima over a text's tokens, plus what fp32 rounds. Each text has its own scale. Activations have 8
bits, weights 7: two products fit in 16 bits, so CPUs without VNNI, whose instructions saturate there, compute
the same. The exporter builds the same into a graph (:mod:`exporters.exact_head`).

Nobody has to ask for it. It starts when the same weights were used for some time, and stops where too many
columns need fp32, as those of an encoder that is not trained for sparsity do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from oskit.encoder.head.maxima import TILE_BYTES, Tokens, blocks, maximum_logits, tiles

LARGEST_ACTIVATION, LARGEST_WEIGHT = 127, 63

UNIT_ROUNDOFF = 2.0**-24

_TILE = TILE_BYTES["cpu"] // 4
"""Size of a tile of 32-bit logits."""

LARGEST_SHARE = 0.25
"""Of the fp32 product, that may be left to do. The int8 pass costs .2 to .4 of it, so above .6 is a loss."""

ENOUGH_TOKENS = 2048
"""Tokens that weights were used for before they are worth the integers, which cost as much as some 500."""

_LONGEST_WAIT = 64 * ENOUGH_TOKENS

_TOKENS_IN_FP32 = 48
"""Tokens of neighbours whose columns are computed together: more of them share few columns."""

_UNDERFLOW = 1e-18
"""Added to the norm of a difference: squares below 1e-38 are lost in it."""


class IntegerWeights(NamedTuple):
    """A projection ``[vocabulary, hidden]`` in 7 bits, and what the bound needs for each of its columns.

    Attributes:
        integers: int8 ``[vocabulary, hidden]``.
        scale: What an integer stands for, float32 ``[vocabulary]`` like those that follow.
        norm: Of the weights, rounded upwards by what fp32 rounds elsewhere.
        error: Norm of what the integers miss, and what fp32 rounds in a dot product.
    """

    integers: Tensor
    scale: Tensor
    norm: Tensor
    error: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> IntegerWeights:
        """Of weights in float32."""
        parts = zip(*map(_integers, torch.split(weight.detach(), 2048)), strict=True)
        return cls(*(torch.cat(part) for part in parts))


def _integers(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    exact = weight.double()
    scale = (exact.abs().amax(dim=1) / LARGEST_WEIGHT).float()
    scale[scale == 0] = 1
    whole = (exact / scale.double()[:, None]).round_().clamp_(-LARGEST_WEIGHT, LARGEST_WEIGHT)
    integers = whole.to(torch.int8)
    norm = torch.linalg.vector_norm(exact, dim=1)
    error = torch.linalg.vector_norm(exact.sub_(whole.mul_(scale.double()[:, None])), dim=1)
    # What fp32 rounds: in a dot product of this length, in norms as long, and in the bound's own few steps.
    rounding = (2 * weight.shape[1] + 64) * UNIT_ROUNDOFF
    error = error * (1 + 2 * rounding) + 2 * rounding * norm
    return integers, scale, (norm * (1 + 3 * rounding)).float(), error.float()


class _Shortcut:
    """What is known of a projection: its integers, or how many tokens to wait for them."""

    def __init__(self) -> None:
        self.wait = self.pause = ENOUGH_TOKENS
        self.known: tuple[IntegerWeights, Tensor] | None = None

    def maxima(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens) -> Tensor | None:
        """:func:`maximum_logits`, or None where it has to compute them itself."""
        if self.wait > 0:
            self.wait -= len(tokens.rows)
            return None
        fingerprint = weight @ _signs(weight.shape[1])
        known = self.known = self.known or (IntegerWeights.of(weight), fingerprint)
        if not torch.equal(fingerprint, known[1]):  # weights change in ways that no version counter sees
            self.known, self.wait, self.pause = None, ENOUGH_TOKENS, ENOUGH_TOKENS
            return None
        found = _exact(hidden, weight, bias, tokens, known[0])
        if found is None:
            self.known, self.wait, self.pause = None, self.pause, min(2 * self.pause, _LONGEST_WAIT)
        return found


_shortcuts: WeakKeyDictionary[nn.Module, _Shortcut] = WeakKeyDictionary()


def maxima_of(projection: nn.Linear, hidden: Tensor, tokens: Tokens) -> Tensor:
    """:func:`maximum_logits` of a projection, on a CPU in fp32 by integers where that pays.

    The weights are the same, but for the order in which fp32 may add up.

    Args:
        projection: From hidden states to the vocabulary.
        hidden: ``[rows, hidden]``.
        tokens: Which rows belong to which text.
    """
    weight, bias = projection.weight, projection.bias
    learns = any(tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias))
    if not (learns and torch.is_grad_enabled()) and _is_single(hidden, weight):
        found = _shortcuts.setdefault(projection, _Shortcut()).maxima(hidden, weight, bias, tokens)
        if found is not None:
            return found
    return maximum_logits(hidden, weight, bias, tokens)


def _is_single(*tensors: Tensor) -> bool:
    """Whether fp32 is what they are multiplied in, on a CPU that multiplies integers faster."""
    for tensor in tensors:
        plain = type(tensor) in (Tensor, nn.Parameter)  # others multiply in their own way
        if not plain or tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return False
    if torch.is_autocast_enabled("cpu") or _is_narrowed():
        return False
    return integers_pay(tensors[0].shape[1])


def _is_narrowed() -> bool:
    """Whether somebody lets this CPU multiply fp32 in narrower numbers, to which the bound does not apply."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)  # where it is, the older call may raise
    precision = getattr(settings, "fp32_precision", None) or torch.get_float32_matmul_precision()
    return precision not in ("none", "ieee", "highest")


@cache
def integers_pay(hidden_size: int) -> bool:
    """Whether torch multiplies 8-bit integers on this CPU without saturation, and twice as fast as fp32."""
    product: Callable[[Tensor, Tensor], Tensor] | None = getattr(torch, "_int_mm", None)
    if product is None:
        return False
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        ones = torch.randint(2, (64 + 1024, hidden_size), generator=generator, device="cpu") * 2 - 1
        ones[0], ones[64] = 1, 1  # the largest sum there can be
        states, weight = ones[:64], ones[64:]
        left, right = (states * LARGEST_ACTIVATION).to(torch.int8), (weight * LARGEST_WEIGHT).to(torch.int8)
        expected = (left.double() @ right.double().T).int()
        try:
            exact = all(torch.equal(product(left[:n], right.T), expected[:n]) for n in (1, 64))
        except (RuntimeError, TypeError):
            return False
        floats = left.float(), right.float().T
        return exact and 2 * _least_seconds(product, left, right.T) <= _least_seconds(torch.mm, *floats)


def _least_seconds(product: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(left, right)
        times.append(time.perf_counter() - start)
    return min(times)


@cache
def _signs(size: int) -> Tensor:
    """By which weights are known again: any change moves the product of a row with it."""
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(1)
        return torch.randint(2, (size,), generator=generator, device="cpu").mul(2).sub(1).float()


def _exact(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, integers: IntegerWeights
) -> Tensor | None:
    """The maxima ``[texts, vocabulary]``; None if too many columns need fp32."""
    maxima = hidden.new_zeros(len(tokens.lengths), len(weight))
    rows = work = 0
    for block in blocks(tokens, _TILE):
        states = hidden[block.rows]
        possible = _possible(states, bias, integers)
        count = max(_TOKENS_IN_FP32 // states.shape[1], 1)
        columns = [part.any(dim=0).nonzero().squeeze(1) for part in torch.split(possible, count)]
        parts = list(zip(torch.split(block.texts, count), torch.split(states, count), columns, strict=True))
        rows += block.rows.numel()
        work += sum(part.shape[0] * part.shape[1] * len(chosen) for _, part, chosen in parts)
        if work > LARGEST_SHARE * rows * len(weight):
            return None
        for texts, part, chosen in parts:
            logits = functional.linear(part, weight[chosen], None if bias is None else bias[chosen])
            maxima[texts[:, None], chosen] = logits.amax(dim=1).relu_()
    return maxima


def _possible(states: Tensor, bias: Tensor | None, weights: IntegerWeights) -> Tensor:
    """Which columns may be positive for which text, bool ``[texts, vocabulary]``.

    ``states`` are those of texts of one length, ``[texts, length, hidden]``.
    """
    step = states.abs().amax(dim=(1, 2)).clamp_min_(1e-30).div_(LARGEST_ACTIVATION)[:, None]
    whole = (states / step[:, None]).round_().clamp_(-LARGEST_ACTIVATION, LARGEST_ACTIVATION)
    integers = whole.to(torch.int8).flatten(0, 1)
    restored = whole.mul_(step[:, None])
    norm = torch.linalg.vector_norm(restored, dim=2).amax(dim=1, keepdim=True)
    difference = torch.linalg.vector_norm(restored.sub_(states), dim=2).amax(dim=1, keepdim=True)
    difference += _UNDERFLOW
    possible = states.new_empty(len(states), len(weights.scale), dtype=torch.bool)
    for tile in tiles(_TILE, len(integers), len(weights.scale)):
        sums = torch._int_mm(integers, weights.integers[tile].T).view(*states.shape[:2], -1)
        upper = sums.amax(dim=1).float().mul_(step * weights.scale[tile])
        if bias is not None:
            upper += bias[tile]
        upper.addcmul_(difference, weights.norm[tile]).addcmul_(norm, weights.error[tile])
        possible[:, tile] = (upper <= 0).logical_not_()  # what is no number is possible
    return possible
