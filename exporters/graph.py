"""The module that is baked into an archive: encoder, pooling, activation, special tokens and pruning.

ML Commons applies nothing of its own to a model's output (no activation, no pooling, no pruning), so the
graph has to return the final weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from oskit.archive.text_encoder import Activation, Pooling
from oskit.archive.token_weights import Prune
from oskit.errors import UsageError

BAKEABLE = ("max_ratio", "top_k", "abs_value")
"""Pruning that can be part of the graph; ``alpha_mass`` sums in an order that a graph cannot promise."""


def check_bakeable(prune: Prune) -> None:
    """Refuse pruning that cannot be part of the graph.

    Raises:
        UsageError: It is of another type than :data:`BAKEABLE`.
    """
    if prune.type not in BAKEABLE:
        raise UsageError(
            f"{prune} cannot be baked into an archive",
            hint=f"Use {', '.join(BAKEABLE)}, or prune with {prune.type} in the ingest pipeline.",
        )


class BakedEncoder(nn.Module):
    """Token ids and attention mask, int64 ``[batch, length]``, to weights, float32 ``[batch, vocabulary]``.

    Args:
        modules: Sentence-transformers modules that lead to ``token_embeddings``, logits over the vocabulary.
        pooling: How the weights of a text's tokens become one.
        activation: From a logit to a weight.
        weight_mask: ``[vocabulary]``, 0 for the tokens that never weigh anything.
        around: Tokens that the tokenizer puts around a text; a text of nothing else has no weights.
        prune: Which weights to keep, see :class:`oskit.archive.token_weights.Prune`.

    Raises:
        UsageError: This kind of pruning cannot be baked.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        *,
        pooling: Pooling,
        activation: Activation,
        weight_mask: Tensor,
        around: int,
        prune: Prune | None = None,
    ) -> None:
        super().__init__()
        if prune is not None:
            check_bakeable(prune)
        self.encoder = nn.ModuleList(modules)
        self.weight_mask: Tensor
        self.pooling = pooling
        self.double_log = activation == "log1p_relu"
        self.around = around
        self.prune = prune
        self.register_buffer("weight_mask", weight_mask, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        for module in self.encoder:
            features = module(features)
        weights = self._pool(features["token_embeddings"], attention_mask)
        has_tokens = attention_mask.sum(dim=1, keepdim=True) > self.around
        weights = weights * self.weight_mask * has_tokens.to(weights.dtype)
        return weights if self.prune is None else _prune(weights, self.prune)

    def _pool(self, logits: Tensor, attention_mask: Tensor) -> Tensor:
        # A padding position's logits become 0, which every activation maps to 0, the least a weight can be:
        # it can neither win the maximum nor add to the sum.
        logits = logits.masked_fill(attention_mask.unsqueeze(-1) == 0, 0.0)
        if self.pooling == "sum":
            return self._activate(logits).sum(dim=1)
        # The activations grow monotonously, so they may come after the maximum, where there is less to do.
        return self._activate(logits.max(dim=1).values)

    def _activate(self, logits: Tensor) -> Tensor:
        weights = torch.log1p(torch.relu(logits))
        return torch.log1p(weights) if self.double_log else weights


def _prune(weights: Tensor, rule: Prune) -> Tensor:
    """neural-search's ``PruneUtils`` on ``[batch, vocabulary]``; weights that go become 0."""
    if rule.type == "top_k":
        # scatter, not a threshold: of equal weights at the edge exactly as many stay as k allows.
        top = weights.topk(min(int(rule.ratio), weights.shape[1]), dim=1)
        return torch.zeros_like(weights).scatter(1, top.indices, top.values)
    if rule.type == "max_ratio":
        threshold = weights.max(dim=1, keepdim=True).values * rule.ratio
        return weights * (weights >= threshold).to(weights.dtype)
    return weights * (weights >= rule.ratio).to(weights.dtype)


class TorchScriptInterface(nn.Module):
    """The signature that ML Commons calls: one dict in, exactly ``{"output": weights}`` out."""

    def __init__(self, baked: BakedEncoder) -> None:
        super().__init__()
        self.baked = baked

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"output": self.baked(features["input_ids"], features["attention_mask"])}


@contextmanager
def exportable(modules: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """The modules as they can be traced: on the CPU, in float32, not training, with eager attention.

    Fused attention is unknown to the libtorch of OpenSearch before 3.0. The encoder is as it was afterwards;
    it is copied only where it is elsewhere or in another precision.
    """
    tensors = [tensor for module in modules for tensor in module.parameters()]
    in_place = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    traced = list(modules) if in_place else [deepcopy(module).cpu().float() for module in modules]
    training = [(module, module.training) for root in traced for module in root.modules()]
    transformers: list[Any] = [
        module
        for root in traced
        for module in root.modules()
        if hasattr(module, "set_attn_implementation") and hasattr(module, "config")
    ]
    attention = [module.config._attn_implementation for module in transformers]
    try:
        for module in traced:
            module.eval()
        for module in transformers:
            module.set_attn_implementation("eager")
        with torch.no_grad():
            yield traced
    finally:
        for module, implementation in zip(transformers, attention, strict=True):
            module.set_attn_implementation(implementation)
        for module, was_training in training:
            module.training = was_training
