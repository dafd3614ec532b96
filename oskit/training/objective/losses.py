"""What the encoder learns from a batch: distillation by KL divergence or margin-MSE, and InfoNCE.

The formulas are those of sentence-transformers and of the published training code (naver/splade,
OpenSearch's tuning sample), which differ in details that the recipe says: whether ``T^2`` multiplies the KL
divergence, which pairs margin-MSE looks at, who the candidates are. A label that is NaN is unknown: its
document is left out. See :class:`Batch` for the shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oskit.training.recipe.objective import AnyLoss, InfoNceConfig, KlConfig, MarginMseConfig

if TYPE_CHECKING:
    from oskit.training.objective.batches import KnownPairs


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
