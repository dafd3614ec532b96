"""The largest logit of each token of the vocabulary over a text, without the logits of all its positions.

A masked-language head makes a tensor ``[batch, length, vocabulary]`` only for SPLADE's pooling to reduce it
to ``[batch, vocabulary]``. Here it is made tile by tile, and each tile is reduced while it is in the cache.
The activation grows monotonously, so it may come after the maximum, where there is less to do. Backwards,
only a maximum that is positive has a gradient, and it goes to the one position it came from. Sparton (arXiv
2603.25011) does the same in a GPU kernel; this is plain PyTorch for any device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

TILE_BYTES = {"cpu": 2 << 20, "cuda": 64 << 20}
"""Size of a tile of logits by type of device: about what its last cache but one holds."""

_COLUMNS = 64
"""A tile is a multiple of this wide, so that vectors stay aligned."""

_PADDING = 64
"""Rows of padding in a block that cost less than a block of their own: the weights are read once a block."""


class Tokens(NamedTuple):
    """Which hidden states belong to which text.

    Attributes:
        rows: Rows of the hidden states that count, text after text, int64 ``[tokens]``.
        lengths: Number of them in each text; 0 for a text without any.
    """

    rows: Tensor
    lengths: list[int]

    @classmethod
    def of_mask(cls, mask: Tensor) -> Tokens:
        """Of an attention mask ``[batch, length]``; the padding may be at either side."""
        counts = mask != 0
        return cls(counts.flatten().nonzero().squeeze(1), counts.sum(dim=1).tolist())

    @classmethod
    def of_bounds(cls, bounds: Tensor) -> Tokens:
        """Of texts without padding between them; ``bounds [batch + 1]`` says where each starts and ends."""
        return cls(torch.arange(int(bounds[-1]), device=bounds.device), bounds.diff().tolist())


class _Block(NamedTuple):
    """Texts of about one length: ``texts [n]``, rows of their hidden states ``rows [n, length]``."""

    texts: Tensor
    rows: Tensor


def maximum_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, *, tile_bytes: int | None = None
) -> Tensor:
    """``relu(max over a text's tokens of (hidden @ weight.T + bias))``; 0 for a text without tokens.

    Differentiable once, by ``hidden``, ``weight`` and ``bias``. Of positions with the same logit the first
    has the gradient, as in ``torch.max``. Under autocast it computes in autocast's type, as ``nn.Linear``.

    Args:
        hidden: Hidden states ``[rows, hidden]``.
        weight: ``[vocabulary, hidden]``.
        bias: ``[vocabulary]`` or None.
        tokens: Which rows belong to which text.
        tile_bytes: Memory for a tile of logits; None takes :data:`TILE_BYTES`. A tile has one text and 64
            columns at least.

    Returns:
        ``[texts, vocabulary]``.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden, weight, bias = _cast(torch.get_autocast_dtype(kind), hidden, weight, bias)
    budget = (tile_bytes or TILE_BYTES.get(kind, TILE_BYTES["cuda"])) // hidden.element_size()
    wanted = [tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)]
    with torch.autocast(kind, enabled=False):
        if torch.is_grad_enabled() and any(wanted):
            maxima: Tensor = _MaximumLogits.apply(hidden, weight, bias, tokens, budget)
            return maxima
        return _forward(hidden, weight, bias, tokens, budget, track=False)[0]


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def blocks(tokens: Tokens, budget: int) -> list[_Block]:
    """All texts that have tokens, the longest first, in blocks as long as a tile of so many numbers is wide.

    Square tiles read hidden states and weights equally often. Shorter texts of a block are filled up with
    their own last token: it changes no maximum, and being the later one it never is the position of one.
    """
    limit = min(math.isqrt(budget), budget // _COLUMNS)
    order = sorted((i for i, n in enumerate(tokens.lengths) if n), key=lambda i: -tokens.lengths[i])
    groups: list[list[int]] = []
    used = 0
    for text in order:
        length = tokens.lengths[groups[-1][0]] if groups else 0
        size = length * (len(groups[-1]) + 1) if groups else 0
        used += tokens.lengths[text]
        if not groups or size > limit or size - used > max(_PADDING, size // 8):
            groups.append([])
            used = tokens.lengths[text]
        groups[-1].append(text)
    device = tokens.rows.device
    lengths = torch.tensor(tokens.lengths, device=device)
    starts = lengths.cumsum(0) - lengths
    return [_block(group, tokens, starts, lengths) for group in groups]


def tiles(budget: int, rows: int, columns: int) -> Iterator[slice]:
    """All columns in tiles of at most ``budget`` numbers with so many rows."""
    width = max(budget // rows // _COLUMNS, 1) * _COLUMNS
    return (slice(start, start + width) for start in range(0, columns, width))


def _block(group: Sequence[int], tokens: Tokens, starts: Tensor, lengths: Tensor) -> _Block:
    texts = torch.tensor(group, device=starts.device)
    steps = torch.arange(tokens.lengths[group[0]], device=starts.device)
    inside = torch.minimum(steps, lengths[texts].unsqueeze(1) - 1)
    return _Block(texts, tokens.rows[starts[texts].unsqueeze(1) + inside])


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, budget: int, *, track: bool
) -> tuple[Tensor, Tensor | None]:
    """The maxima, and with ``track`` the row of ``hidden`` of each, -1 where it has no gradient, int32."""
    size = len(tokens.lengths), len(weight)
    maxima = hidden.new_zeros(size)
    rows = torch.full(size, -1, dtype=torch.int32, device=hidden.device) if track else None
    for block in blocks(tokens, budget):
        states = hidden[block.rows.flatten()]
        for tile in tiles(budget, len(states), len(weight)):
            logits = functional.linear(states, weight[tile], None if bias is None else bias[tile])
            logits = logits.view(*block.rows.shape, -1)
            if rows is None:
                maxima[block.texts, tile] = logits.amax(dim=1).relu_()
            else:
                best, where = _maximum(logits)
                maxima[block.texts, tile] = best.relu()
                found = block.rows.gather(1, where).int()
                rows[block.texts, tile] = torch.where(best > 0, found, -1)
    return maxima, rows


def _maximum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the positions of ``[texts, length, columns]``; where it is positive, its first position.

    ``torch.max`` with indices does not vectorize on a CPU and takes nearly as long as the product itself.
    Looking for the positions of a few positive maxima alone takes a small part of that; where they are many
    (an untrained head), comparing all logits with their maximum takes less than half.
    """
    if logits.device.type != "cpu":
        best, where = logits.max(dim=1)
        return best, where
    best = logits.amax(dim=1)
    texts, columns = (best > 0).nonzero(as_tuple=True)
    if 4 * len(texts) < best.numel():
        where = torch.zeros(best.shape, dtype=torch.long)
        where[texts, columns] = logits[texts, :, columns].argmax(dim=1)
        return best, where
    length = logits.shape[1]
    backwards = torch.arange(length, 0, -1, dtype=torch.int16 if length < 1 << 15 else torch.int32)
    hits = (logits == best.unsqueeze(1)) * backwards[:, None]
    # Where the maximum is NaN there is no hit; it has no gradient either.
    return best, (length - hits.amax(dim=1).long()).clamp_(max=length - 1)


class _MaximumLogits(torch.autograd.Function):
    """:func:`maximum_logits` with a gradient that is as sparse as the maxima."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, budget: int
    ) -> Tensor:
        maxima, rows = _forward(hidden, weight, bias, tokens, budget, track=True)
        ctx.save_for_backward(hidden, weight, rows)
        return maxima

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, rows = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        active = rows >= 0
        columns, texts = active.T.nonzero(as_tuple=True)
        sources, values = rows[texts, columns].long(), gradient[texts, columns]
        result: list[Tensor | None] = [None] * 5
        if of_hidden:
            order = sources.argsort()
            result[0] = _sums(sources[order], columns[order], values[order], weight, like=hidden)
        if of_weight:
            result[1] = _sums(columns, sources, values, hidden, like=weight)
        if of_bias:
            result[2] = (gradient * active).sum(dim=0)
        return tuple(result)


def _sums(targets: Tensor, sources: Tensor, values: Tensor, table: Tensor, *, like: Tensor) -> Tensor:
    """For each row ``i`` of ``like`` the sum of ``values * table[sources]`` where ``targets`` is ``i``.

    That is the product of a sparse matrix with ``table``, as PyTorch does it fastest.

    Args:
        targets: Ascending.
        sources: Rows of the table.
        values: Their factors.
        table: ``[n, width]``.
        like: Gives the result its shape and its type; sums of half precision are made in single precision.
    """
    precision = torch.promote_types(table.dtype, torch.float32)
    starts = torch.searchsorted(targets, torch.arange(len(like), device=targets.device))
    sums = functional.embedding_bag(
        sources, table.to(precision), starts, mode="sum", per_sample_weights=values.to(precision)
    )
    return sums.to(like.dtype)
