"""How documents go through the modules: how many at once, in which precision, and what leaves the device.

A GPU waits for whoever feeds it. So two batches are on their way, each on a stream of its own: while one
waits for its result the other computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from oskit.archive.batching import in_threads
from oskit.errors import UsageError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

T = TypeVar("T")
R = TypeVar("R")

Precision = Literal["auto", "fp32", "bf16"]
"""What documents are computed in: ``bf16`` by autocast, ``fp32`` as the weights are, ``auto`` bf16 on a GPU
that computes in it, else as the weights are."""

BATCHES_ON_A_GPU = 2
TOKENS_ON_A_GPU, TOKENS_ON_A_CPU = 1 << 16, 1 << 11


def on(device: torch.device) -> Callable[[Callable[[T], R], Iterable[T]], Iterable[R]]:
    """``map``, on a GPU for two items at a time."""
    if device.type != "cuda":
        return map
    before = torch.cuda.current_stream(device)

    def start() -> None:
        stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(before)  # the weights may still be on their way
        torch.cuda.set_stream(stream)

    return partial(in_threads, threads=BATCHES_ON_A_GPU, start=start)


def tokens_at_once(hidden_size: int, device: torch.device) -> int:
    """Tokens of one batch whose hidden states are the largest tensors, padding included."""
    if device.type != "cuda":
        return TOKENS_ON_A_CPU
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    # Some 30 tensors of hidden states in float32 are there at once in a layer, and two batches.
    return max(min(TOKENS_ON_A_GPU, free // (BATCHES_ON_A_GPU * 128 * hidden_size)), 512)


def arithmetic(precision: Precision, weights: Tensor) -> AbstractContextManager[object]:
    """In which context modules compute in ``precision``; ``weights`` are some of theirs.

    Raises:
        UsageError: There is no such precision.
    """
    if precision not in get_args(Precision):
        raise UsageError(
            f"{precision!r} is no precision of the torch encoder",
            hint=f"Use one of {', '.join(get_args(Precision))}.",
        )
    kind = weights.device.type
    if precision == "auto":
        single = weights.dtype == torch.float32
        if not (kind == "cuda" and single and torch.cuda.is_bf16_supported(including_emulation=False)):
            return nullcontext()
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision != "fp32")


def sparse_rows(weights: Tensor, never: Tensor, logarithms: int = 0) -> csr_matrix:
    """The positive weights of ``[texts, vocabulary]`` in float32: nothing else leaves the device.

    Args:
        weights: In any precision, on any device.
        never: Columns that never weigh anything, on the same device.
        logarithms: How often ``log1p`` is still to be taken.
    """
    from scipy.sparse import csr_matrix

    positive = (weights > 0).index_fill_(1, never, False)
    places = positive.flatten().nonzero().squeeze(1)
    values = weights.flatten()[places].float()
    for _ in range(logarithms):
        values.log1p_()
    found = (values, (places % weights.shape[1]).int(), positive.sum(dim=1))
    data, columns, counts = (tensor.to("cpu", non_blocking=True) for tensor in found)
    if weights.is_cuda:
        torch.cuda.current_stream(weights.device).synchronize()
    ends = np.concatenate([[0], counts.numpy().cumsum()])
    return csr_matrix((data.numpy(), columns.numpy(), ends), shape=tuple(weights.shape))
