"""One batch of all processes: each has the vectors of all others, and their gradients are added up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed


def processes() -> int:
    """How many processes there are that know of each other."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather(rows: Tensor) -> Tensor:
    """The tensors of all processes, which have the same shape, ``[processes, *shape]``, in their order.

    The gradient is that of this process's own rows. Each process computes the whole batch's loss from what it
    gathered, so nothing has to be exchanged backwards: :func:`add_up` of the weights' gradients makes them
    those of that one loss.
    """
    if processes() == 1:
        return rows[None]
    found: Tensor = _Gather.apply(rows)
    return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        found = rows.new_empty(processes(), *rows.shape)
        distributed.all_gather(list(found.unbind()), rows.contiguous())
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][distributed.get_rank()]


@torch.no_grad()
def add_up(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Make each gradient the sum of all processes' ones.

    Not left to ``DistributedDataParallel``: of a step with several forward passes it takes parameters that
    only some of them use, such as a table of query weights, for done too early.
    """
    if processes() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.contiguous()
            distributed.all_reduce(parameter.grad)
