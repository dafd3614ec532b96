"""How texts go through a model: how many at once, in which precision, and what leaves the device.

A GPU waits for whoever feeds it. So two batches are on their way, each on a stream of its own: while one
waits for its result the other computes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from oskit.archive.batching import in_threads, token_batches
from oskit.encoder.loader.failures import out_of_memory
from oskit.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

Precision = Literal["auto", "fp32", "bf16"]
"""What documents are computed in: ``bf16`` by autocast, ``fp32`` as the weights are, ``auto`` bf16 on a GPU
that computes in it, else as the weights are."""

BATCHES_ON_A_GPU = 2
TOKENS_ON_A_GPU, TOKENS_ON_A_CPU = 1 << 16, 1 << 11

BYTES_OF_A_TOKEN = 4
"""About; of English as of Chinese or Russian, which have more bytes to a character."""


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
    if precision == "auto" and not (weights.dtype == torch.float32 and has_bf16(weights.device)):
        return nullcontext()
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision != "fp32")


def has_bf16(device: torch.device) -> bool:
    """Whether ``auto`` computes in bf16 there: on a GPU that does."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def stored_in(precision: str) -> torch.dtype:
    """What weights are stored in: ``precision`` by torch's name, float32 where it is ``auto``."""
    dtype: torch.dtype = torch.float32 if precision == "auto" else getattr(torch, precision)
    return dtype


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


def in_bulk(
    items: Sequence[T],
    run: Callable[[list[T]], NDArray[np.float32]],
    *,
    texts: Callable[[T], str],
    max_length: int,
    hidden_size: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """Run a model that tokenizes by itself over many items, neighbours in length together.

    Lengths are guessed by bytes; where a batch does not fit into memory after all, it is halved, and so are
    those that follow.

    Args:
        items: Texts, or pairs of them.
        run: Rows ``[len(batch), ...]`` of some items. On a GPU it is called in two threads.
        texts: What the model reads of an item, for its length.
        max_length: Tokens that it reads at most.
        hidden_size: Of its hidden states.
        device: Where it computes.

    Returns:
        The rows in the order of the items.

    Raises:
        RuntimeError: One item alone does not fit.
    """
    lengths = [min(max_length, 2 + len(texts(item).encode()) // BYTES_OF_A_TOKEN) for item in items]
    budget = tokens_at_once(hidden_size, device)
    shrunk = [len(items)]  # of a list, for threads to share

    def halved(group: Sequence[int]) -> NDArray[np.float32]:
        size = shrunk[0]
        if len(group) <= size:
            try:
                return run([items[place] for place in group])
            except RuntimeError as error:
                if len(group) == 1 or out_of_memory(error, "a batch") is None:
                    raise
            shrunk[0] = size = len(group) // 2
            logger.warning("out of memory: going on with %d texts at once", size)
            torch.cuda.empty_cache()
        return np.concatenate([halved(group[at : at + size]) for at in range(0, len(group), size)])

    groups = list(token_batches([range(length) for length in lengths], budget))
    found = list(on(device)(halved, groups))
    rows = np.concatenate(found)
    order = np.concatenate([np.asarray(group) for group in groups])
    result = np.empty_like(rows)
    result[order] = rows
    return result
