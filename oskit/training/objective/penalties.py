"""What makes vectors sparse: FLOPS, FLOPS by IDF, L1, each with an L0 mask; and top-k in training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oskit.training.recipe.objective import PenaltyPart

MAX_RELATIVE_COST = 10.0
"""A token costs at most this many times the average one: that of a stop word would have no bound."""


def penalty_of(part: PenaltyPart, vectors: Tensor, costs: Tensor | None = None) -> Tensor:
    """The penalty on vectors of weights of at least 0, not yet weighted.

    ``flops`` is ``sum_j (mean_i w_ij)^2`` (Paria et al., arXiv 2004.05665), ``idf_flops`` the same of weights
    times the costs of their tokens, ``l1`` is ``mean_i sum_j w_ij``. ``over: slot`` is the sum over the slots
    of each one's: all first documents, all second ones, … (as OpenSearch trains; SPLADE++ has their mean).

    Args:
        part: Which, and its ``threshold``: vectors of no more active dimensions than that count as 0 (the L0
            mask of Shen et al., arXiv 2504.14839).
        vectors: ``[slots, texts, vocabulary]``.
        costs: :func:`idf_costs` for ``idf_flops``.
    """
    if part.threshold is not None:
        vectors = vectors * ((vectors > 0).sum(dim=-1, keepdim=True) > part.threshold)
    if part.kind == "idf_flops":
        assert costs is not None, "idf_flops needs the IDF of the corpus"
        vectors = vectors * costs
    if part.kind == "l1":
        return vectors.sum(dim=2).mean()
    over_slots = getattr(part, "over", "batch") == "slot"  # queries have one slot
    return vectors.mean(dim=1 if over_slots else (0, 1)).square().sum()


def largest(vectors: Tensor, count: int) -> Tensor:
    """Vectors ``[..., vocabulary]`` with their ``count`` largest weights alone."""
    if count >= vectors.shape[-1]:
        return vectors
    places = vectors.topk(count, dim=-1).indices
    return vectors * torch.zeros_like(vectors).scatter_(-1, places, 1.0)


def idf_costs(idf: NDArray[np.float32]) -> Tensor:
    """The costs ``c`` of an IDF-aware FLOPS penalty ``sum_j (c_j * mean_i u_ij)^2``: rare tokens are cheaper.

    ``c_j = m / idf_j``, at most :data:`MAX_RELATIVE_COST`, where ``m`` is the mean IDF of a document's
    tokens, each counted by its IDF (``sum df * idf^2 / sum df * idf``): what a document's vector is mostly
    made of costs 1, so one weight of the penalty means about the same with and without IDF.

    Geng et al. (arXiv 2411.04403) have it for inference-free encoders, whose score is ``sum_j idf_j * w_j``
    and whose FLOPS penalise ``w``; here the encoder learns the whole weight ``u_j = idf_j * w_j`` itself.
    ``m`` and the cap are ours.

    Args:
        idf: ``ln(1 + (N - df + 0.5) / (df + 0.5))`` of each token, ``[vocabulary]``; 0 for special tokens.

    Returns:
        float32 ``[vocabulary]``; 1 everywhere where no token has an IDF.
    """
    values = np.asarray(idf, dtype=np.float64)
    known = values > 0
    if not known.any():
        return torch.ones(len(values), dtype=torch.float32)
    # idf = ln((N + 1) / (df + 0.5)), so exp(-idf) is the share of the documents that have the token.
    share = np.where(known, np.exp(-values), 0.0)
    mean = (share * values**2).sum() / (share * values).sum()
    costs = np.divide(mean, values, out=np.zeros_like(values), where=known)
    return torch.from_numpy(np.minimum(costs, MAX_RELATIVE_COST).astype(np.float32))
