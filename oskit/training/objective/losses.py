"""The loss: distillation, InfoNCE and sparsity penalties in one module, each part logged.

It is sentence-transformers' ``SpladeLoss`` with its gradient cache and its losses; what is added:

* weights of special tokens count for nothing, as on the cluster: scores here are scores there;
* InfoNCE leaves out of its negatives what is known to be a positive of the query;
* distillation over all documents of a batch;
* the IDF-aware FLOPS penalty;
* active dimensions and FLOPS of each batch, for curves and guards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sparse_encoder.losses import (
    FlopsLoss,
    SparseDistillKLDivLoss,
    SparseMarginMSELoss,
    SparseMultipleNegativesRankingLoss,
    SpladeLoss,
)
from sentence_transformers.util import all_gather, dot_score
from torch import Tensor, nn

from oskit.training.recipe.objective import (
    AnyLoss,
    InfoNceConfig,
    KlConfig,
    MarginMseConfig,
    PenaltyPart,
    SparsityPart,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.training.objective.batches import KnownPairs

Targets = dict[str, Tensor]
"""What a batch brings beside its texts: ``query_ids`` int64 ``[B]``, ``document_ids`` int64 ``[B, 1 + n]``,
and the teachers' ``label`` float ``[B, 1 + n]`` or, over the whole batch, ``[B, B * (1 + n)]`` with the
positives first, then all first negatives, and so on."""

MAX_RELATIVE_COST = 10.0
"""A token costs at most this many times the average one: that of a stop word would have no bound."""


def idf_costs(idf: NDArray[np.float32]) -> Tensor:
    """The costs ``c`` of an IDF-aware FLOPS penalty ``sum_j (c_j * mean_i u_ij)^2``: rare tokens are cheaper.

    ``c_j = m / idf_j``, at most :data:`MAX_RELATIVE_COST`, where ``m`` is the mean IDF of a document's
    tokens, each counted by its IDF (``sum df * idf^2 / sum df * idf``): what a document's vector is mostly
    made of costs 1, so one weight of the penalty means about the same with and without IDF.

    This is the IDF-aware FLOPS loss of Geng et al., "Towards Competitive Search Relevance For Inference-Free
    Learned Sparse Retrievers" (arXiv 2411.04403) for encoders that learn the whole weight
    ``u_j = idf_j * w_j`` themselves: there the score is ``sum_j idf_j * w_j`` over the query's tokens and
    FLOPS penalises ``w``, which in terms of ``u`` is ``sum_j (mean_i u_ij / idf_j)^2``. An inference-free
    encoder with IDF as query weights has that effect without this, through the score. ``m`` and the cap are
    ours.

    Args:
        idf: IDF of each token, ``ln(1 + (N - df + 0.5) / (df + 0.5))``, ``[vocabulary]``; 0 for special
            tokens.

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


class IdfFlopsLoss(FlopsLoss):
    """FLOPS where each token has a cost, by :func:`idf_costs`: ``sum_j (c_j * mean_i w_ij)^2``.

    Args:
        model: The encoder.
        costs: ``c``, float32 ``[vocabulary]``.
        threshold: Only vectors with more active dimensions are penalised (the L0 mask of Shen et al.,
            arXiv 2504.14839).
    """

    costs: Tensor

    def __init__(self, model: SparseEncoder, costs: Tensor, threshold: int | None = None) -> None:
        super().__init__(model, threshold)
        self.register_buffer("costs", costs, persistent=False)

    def compute_loss_from_embeddings(self, embeddings: Tensor) -> Tensor:
        """The penalty of vectors ``[n, vocabulary]``."""
        return super().compute_loss_from_embeddings(embeddings * self.costs)


class InfoNCE(SparseMultipleNegativesRankingLoss):
    """InfoNCE with in-batch and mined negatives (``SparseMultipleNegativesRankingLoss``).

    What is known to answer a query is never its negative: a document that comes twice, another positive of
    the same query, a mined negative that is a positive elsewhere in the data.

    Args:
        model: The encoder.
        scale: Scores are multiplied by this.
        known: Pairs of query and positive, over all of the data; None where every batch is free of them.
    """

    def __init__(self, model: SparseEncoder, scale: float, known: KnownPairs | None) -> None:
        super().__init__(model, scale=scale, similarity_fct=self._similarity)
        self._known = known
        self._excluded: Tensor | None = None

    def compute_loss_from_embeddings(  # type: ignore[override]
        self, embeddings: list[Tensor], labels: Targets
    ) -> Tensor:
        """The loss of columns ``[B, vocabulary]``: queries, positives, first negatives, …"""
        # Not known before: processes meet when the trainer's arguments are made.
        self.gather_across_devices = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._known is not None:
            self._excluded = self._known_positives(self._known, labels)
        try:
            # The base class has no use for labels.
            return super().compute_loss_from_embeddings(embeddings, labels["query_ids"])
        finally:
            self._excluded = None

    def _known_positives(self, known: KnownPairs, labels: Targets) -> Tensor:
        """Which documents of the batch answer which query, ``[B, documents]``, but its own positive."""
        queries, documents = labels["query_ids"], labels["document_ids"].T
        own, rows = 0, torch.arange(len(queries), device=queries.device)
        if self.gather_across_devices:
            documents = torch.stack([all_gather(column.contiguous()) for column in documents])
            own = torch.distributed.get_rank() * len(queries)
        excluded = known.contains(queries[:, None], documents.reshape(1, -1))
        excluded[rows, rows + own] = False
        return excluded

    def _similarity(self, queries: Tensor, documents: Tensor) -> Tensor:
        scores = dot_score(queries, documents)
        return scores if self._excluded is None else scores.masked_fill(self._excluded, -torch.inf)


class BatchKLDivLoss(nn.Module):
    """KL divergence over all documents of the batch: ``T^2 * KL(softmax(t / T) || softmax(s / T))``.

    ``SparseDistillKLDivLoss`` with the batch's documents as the candidates of every query.

    Args:
        temperature: ``T``.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """The mean over the queries; ``labels`` is ``[B, B * (1 + n)]``."""
        scores = embeddings[0] @ torch.cat(embeddings[1:]).T
        log_probabilities = torch.log_softmax(scores / self.temperature, dim=1)
        targets = torch.softmax(labels / self.temperature, dim=1)
        loss = nn.functional.kl_div(log_probabilities, targets, reduction="batchmean")
        return loss * self.temperature**2


class Objective(nn.Module):
    """What the encoder learns, without the penalties: distillation and InfoNCE, weighted.

    Args:
        model: The encoder.
        losses: Which, and their weights.
        known: Pairs of query and positive, over all of the data.
    """

    def __init__(self, model: SparseEncoder, losses: Sequence[AnyLoss], known: KnownPairs | None) -> None:
        super().__init__()
        self.distillation: Distillation | None = None
        self.contrastive: InfoNCE | None = None
        self._weights: dict[str, float] = {}
        for part in losses:
            if isinstance(part, InfoNceConfig):
                self.contrastive = InfoNCE(model, 1 / part.temperature, known)
                self._weights["contrastive"] = part.weight
            else:
                self.distillation = _distillation(model, part)
                over = part.temperature if isinstance(part, KlConfig) and not part.t_squared else 1.0
                self._weights["distillation"] = part.weight / over**2

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Targets) -> dict[str, Tensor]:
        """Each part, weighted, by its name."""
        parts: dict[str, Tensor] = {}
        if self.distillation is not None:
            loss = self.distillation.compute_loss_from_embeddings(embeddings, labels["label"])
            parts["distillation"] = self._weights["distillation"] * loss
        if self.contrastive is not None:
            loss = self.contrastive.compute_loss_from_embeddings(embeddings, labels)
            parts["contrastive"] = self._weights["contrastive"] * loss
        return parts


Distillation = SparseMarginMSELoss | SparseDistillKLDivLoss | BatchKLDivLoss


def _distillation(model: SparseEncoder, part: KlConfig | MarginMseConfig) -> Distillation:
    if isinstance(part, MarginMseConfig):
        return SparseMarginMSELoss(model)
    if part.candidates == "batch":
        return BatchKLDivLoss(part.temperature)
    return SparseDistillKLDivLoss(model, temperature=part.temperature)


@torch.no_grad()
def batch_facts(queries: Tensor, documents: Tensor) -> Tensor:
    """Mean active dimensions of vectors ``[B, vocabulary]`` and ``[B * (1 + n), vocabulary]``; their FLOPS.

    One tensor of three numbers, left on the device until they are read; FLOPS are the expected products of a
    query and a document, as in :mod:`oskit.evaluation.offline.sparsity`.
    """
    asked, there = (queries > 0).float().mean(0), (documents > 0).float().mean(0)
    return torch.stack([asked.sum(), there.sum(), asked @ there])


class TrainingLoss(CachedLossMixin, SpladeLoss):
    """All parts of the loss; with or without a gradient cache.

    Args:
        model: The encoder.
        losses: What it learns.
        sparsity: The penalties; ``SpladeRegularizerWeightSchedulerCallback`` ramps their weights up. That on
            queries is left out where queries are a table of weights that stays as it is.
        idf: IDF of each token, ``[vocabulary]``; needed for ``idf_flops``.
        known: Pairs of query and positive that InfoNCE must not take for negatives.

    Attributes:
        mini_batch_size: Texts that are computed at once, with a gradient cache; None for all, without one.
        labels_whole_batch: Whether teachers score all documents of a batch for each of its queries.
        uses_batch_negatives: Whether a query's loss depends on other queries' documents.
        facts: :func:`batch_facts` of the last batch.
    """

    weight_mask: Tensor
    mini_batch_size: int | None  # type: ignore[assignment]
    loss: Objective
    document_regularizer: FlopsLoss
    query_regularizer: FlopsLoss
    document_regularizer_weight: float
    query_regularizer_weight: float

    def __init__(
        self,
        model: NeuralSparseEncoder,
        losses: Sequence[AnyLoss],
        sparsity: SparsityPart,
        *,
        idf: NDArray[np.float32] | None = None,
        known: KnownPairs | None = None,
    ) -> None:
        queries = None if _is_fixed_table(model) else sparsity.queries
        SpladeLoss.__init__(
            self,
            model,
            Objective(model, losses, known),
            document_regularizer_weight=sparsity.documents.weight or 0.0,
            # None would make SpladeLoss warn of what is meant; at 0 the part is left out below.
            query_regularizer_weight=0.0 if queries is None else queries.weight or 0.0,
            document_regularizer=_penalty(model, sparsity.documents, idf),
            query_regularizer=_penalty(model, queries or sparsity.documents, idf),
        )
        self._penalises_queries = queries is not None
        self.mini_batch_size = None
        distillation = [part for part in losses if not isinstance(part, InfoNceConfig)]
        self.labels_whole_batch = any(part.candidates == "batch" for part in distillation)
        self.uses_batch_negatives = len(distillation) < len(losses) or self.labels_whole_batch
        self.facts: Tensor | None = None
        self._values: dict[str, Tensor] = {}
        mask = torch.as_tensor(model.vocabulary.weight_mask(), dtype=torch.float32)
        self.register_buffer("weight_mask", mask, persistent=False)

    def parts(self, embeddings: list[Tensor], labels: Targets) -> dict[str, Tensor]:
        """Each part of the loss of columns ``[B, vocabulary]``; their sum is minimised."""
        vectors = [self._as_on_the_cluster(embedding) for embedding in embeddings]
        documents = torch.cat(vectors[1:])
        self.facts = batch_facts(vectors[0], documents)
        losses = self.loss.compute_loss_from_embeddings(vectors, labels)
        penalty = self.document_regularizer.compute_loss_from_embeddings(documents)
        losses["document_penalty"] = self.document_regularizer_weight * penalty
        if self._penalises_queries:
            penalty = self.query_regularizer.compute_loss_from_embeddings(vectors[0])
            losses["query_penalty"] = self.query_regularizer_weight * penalty
        return losses

    def forward(  # type: ignore[override]
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Targets
    ) -> dict[str, Tensor]:
        """Each part of the loss of a batch, by its name."""
        if self.mini_batch_size is None:
            return self.parts(embed_columns(self.model, sentence_features), labels)
        total = self.forward_cached(sentence_features, labels)  # type: ignore[arg-type]
        # Only the total carries a gradient, so the first part is what the others leave of it.
        first, *others = self._values
        return {first: total - sum(self._values[name] for name in others)} | {
            name: self._values[name] for name in others
        }

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False
    ) -> Tensor:
        """The total of micro batches' vectors, for the gradient cache."""
        parts = self.parts([torch.cat(column) for column in reps], labels)
        self._values = {name: value.detach() for name, value in parts.items()}
        total = torch.stack(list(parts.values())).sum()
        if with_backward:
            total.backward()  # type: ignore[no-untyped-call]
            total = total.detach()
        return total

    def _as_on_the_cluster(self, embedding: Tensor) -> Tensor:
        """Vectors ``[B, vocabulary]`` in float32 without special tokens and without negative weights."""
        width = embedding.shape[1]
        vectors = (embedding.float() * self.weight_mask[:width]).relu()
        # A table of query weights is as wide as the tokenizer, an encoder's output may be padded.
        missing = len(self.weight_mask) - width
        return nn.functional.pad(vectors, (0, missing)) if missing else vectors


def _is_fixed_table(model: NeuralSparseEncoder) -> bool:
    table = model.anatomy.queries
    return table is not None and not table.weight.requires_grad


def _penalty(model: SparseEncoder, part: PenaltyPart, idf: NDArray[np.float32] | None) -> FlopsLoss:
    if part.kind == "flops":
        return FlopsLoss(model, threshold=part.threshold)
    assert idf is not None, "idf_flops needs the IDF of the corpus"
    return IdfFlopsLoss(model, idf_costs(idf), threshold=part.threshold)
