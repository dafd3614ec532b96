"""What is minimised: distillation by KL divergence or margin-MSE, InfoNCE, and what makes vectors sparse.

The formulas are those of sentence-transformers and of the published training code (naver/splade,
OpenSearch's tuning sample), which differ in details that the recipe says: whether ``T^2`` multiplies the KL
divergence, which pairs margin-MSE looks at, who the candidates are. A label that is NaN is unknown: its
document is left out. See :class:`Batch` for the shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from oskit.training.recipe.objective import (
    AnyLoss,
    InfoNceConfig,
    KlConfig,
    MarginMseConfig,
    PenaltyPart,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oskit.training.objective.batches import KnownPairs

MAX_RELATIVE_COST = 10.0
"""A token costs at most this many times the average one: that of a stop word would have no bound."""


@dataclass(frozen=True)
class Batch:
    """The vectors of a batch, of all processes, with what is known of them."""

    queries: Tensor  # `[B, vocabulary]`
    documents: Tensor  # `[C, B, vocabulary]`: the first documents of all queries, then all second ones, …
    query_ids: Tensor  # int64 `[B]`; equal for queries that ask the same
    document_ids: Tensor  # int64 `[B, C]`
    positives: Tensor  # bool `[B, C]`: which of its documents are known to answer a query
    # teachers' scores of a query's own documents, `[B, C]`; NaN where unknown, None without any
    labels: Tensor | None = None
    # those of all documents for each query, `[B, C * B]` in the order of `documents`
    batch_labels: Tensor | None = None
    known: KnownPairs | None = None  # pairs of query and positive over all of the data

    @cached_property
    def own_scores(self) -> Tensor:
        """Of each query and its own documents, ``[B, C]``."""
        return torch.einsum("bv,cbv->bc", self.queries, self.documents)

    @cached_property
    def scores(self) -> Tensor:
        """Of each query and all documents, ``[B, C * B]``."""
        return self.queries @ self.documents.flatten(0, 1).T


def loss_of(part: AnyLoss, batch: Batch) -> Tensor:
    """One of the losses of a recipe, not yet weighted."""
    if isinstance(part, KlConfig):
        return _kl(part, batch)
    if isinstance(part, MarginMseConfig):
        return _margin_mse(part, batch)
    return _info_nce(part, batch)


def _kl(part: KlConfig, batch: Batch) -> Tensor:
    """``KL(softmax(labels / T) || softmax(scores / T))``, the mean over queries; ``T^2`` times that."""
    scores, labels = _candidates(part, batch)
    unknown = labels.isnan()
    least = torch.finfo(scores.dtype).min
    mine = torch.log_softmax((scores / part.temperature).masked_fill(unknown, least), dim=1)
    theirs = torch.log_softmax((labels / part.temperature).masked_fill(unknown, least), dim=1)
    divergence = (theirs.exp() * (theirs - mine)).masked_fill(unknown, 0).sum(dim=1)
    queries = ((~unknown).sum(dim=1) > 1).sum().clamp(min=1)  # one label alone says nothing
    return divergence.sum() / queries * (part.temperature**2 if part.t_squared else 1.0)


def _margin_mse(part: MarginMseConfig, batch: Batch) -> Tensor:
    """Mean square of how far differences of two documents' scores are from those of their labels.

    Hofstätter et al., arXiv 2010.02666; ``pairs: all`` is that of SPLADE-v3 (arXiv 2403.06789).
    """
    scores, labels = _candidates(part, batch)
    error = scores - labels
    if part.pairs == "all":
        error = error[:, :, None] - error[:, None, :]
    elif part.candidates == "own":
        error = error[:, :1] - error[:, 1:]
    else:
        error = error.diagonal()[:, None] - error
        error.fill_diagonal_(torch.nan)  # the first document beside itself
    unknown = error.isnan()
    # Not `error[~unknown]`: how many there are is no question to a GPU.
    return error.masked_fill(unknown, 0).square().sum() / (~unknown).sum().clamp(min=1)


def _candidates(part: KlConfig | MarginMseConfig, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores and labels of a loss's candidates."""
    own = part.candidates == "own"
    labels = batch.labels if own else batch.batch_labels
    assert labels is not None, f"{part.kind} needs labels"
    return batch.own_scores if own else batch.scores, labels


def _info_nce(part: InfoNceConfig, batch: Batch) -> Tensor:
    """Cross-entropy of each query's first document among its candidates.

    What is known to answer the query is not its negative: a document that comes twice, another positive of
    the same query, a mined negative that is a positive elsewhere. A query without a known positive is left
    out.
    """
    queries, documents = batch.query_ids, batch.document_ids
    size, count = documents.shape
    rows = torch.arange(size, device=queries.device)
    if part.candidates == "own":
        scores, others, own = batch.own_scores, documents, torch.zeros_like(rows)
        answers = batch.positives.clone()
    else:
        scores, others, own = batch.scores, documents.T.reshape(1, -1), rows
        answers = torch.zeros_like(scores, dtype=torch.bool)
        places = torch.arange(count, device=rows.device) * size + rows[:, None]
        answers.scatter_(1, places, batch.positives)
    answers |= others == documents[:, :1]
    if batch.known is not None:
        answers |= batch.known.contains(queries[:, None], others)
    answers[rows, own] = False
    found = torch.nn.functional.cross_entropy(
        (scores / part.temperature).masked_fill(answers, -torch.inf), own, reduction="none"
    )
    has_positive = batch.positives[:, 0]
    return (found * has_positive).sum() / has_positive.sum().clamp(min=1)


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
