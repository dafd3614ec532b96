"""Losses and sparsity penalties of a batch in one module, each part logged.

The batch is that of all processes, gathered once, so every part is the same number, with the same gradient,
on one, two or eight of them; and in micro batches, for their gradients are cached at the vectors
(sentence-transformers' ``CachedLossMixin``). Weights of special tokens count for nothing, as on the cluster:
scores here are scores there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import util
from torch import Tensor, distributed, nn

from oskit.training.internals import CachedLossMixin
from oskit.training.objective.losses import Batch, idf_costs, largest, loss_of, penalty_of
from oskit.training.recipe.objective import AnyLoss, PenaltyPart, SparsityPart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.training.objective.batches import KnownPairs
    from oskit.training.teachers.batch import BatchTeachers

Targets = Mapping[str, Tensor]
"""What a batch brings beside its texts, each with the batch as first dimension: ``query_ids`` int64 ``[B]``,
``document_ids`` int64 ``[B, C]``, ``positives`` bool ``[B, C]``, perhaps ``labels`` float ``[B, C]``, and
what the teachers of whole batches ask for, by names with :data:`TEACHER`."""

TARGETS, TEACHER = ("query_ids", "document_ids", "positives", "labels"), "teacher_"

FACTS = ("query_dims", "document_dims", "flops")
"""Of a batch: mean active dimensions of both sides, and the expected products of a query and a document, as
:mod:`oskit.evaluation.offline.sparsity` has them."""

OF_THE_WHOLE = ("lengths", "token_rows")
"""Features that say where a batch's tokens are; a micro batch counts its own."""


class TrainingLoss(CachedLossMixin, nn.Module):
    """All parts of the loss; with or without a gradient cache.

    Args:
        model: The encoder.
        losses: What it learns.
        sparsity: The penalties. That on queries is left out where queries are a table that stays as it is.
        idf: IDF of each token, ``[vocabulary]``; needed for ``idf_flops``.
        known: Pairs of query and positive that InfoNCE must not take for negatives.
        teachers: Label the documents of a batch, for losses with ``candidates: batch``.

    Attributes:
        mini_batch_size: Texts that are computed at once, with a gradient cache; None for all, without one.
        weights: Of the penalties, by side; :class:`oskit.training.objective.sparsity.SparsityWeights`.
        values: Of the last batch, on its device: each part, weighted, the penalties without their weights
            (``document``, ``query``), and :data:`FACTS`.
    """

    weight_mask: Tensor
    costs: Tensor | None
    mini_batch_size: int | None  # type: ignore[assignment]

    def __init__(
        self,
        model: NeuralSparseEncoder,
        losses: Sequence[AnyLoss],
        sparsity: SparsityPart,
        *,
        idf: NDArray[np.float32] | None = None,
        known: KnownPairs | None = None,
        teachers: BatchTeachers | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.mini_batch_size = None
        self.losses: dict[str, AnyLoss] = {}  # by kind; a second one of a kind has a number
        for part in losses:
            same = sum(other.kind == part.kind for other in self.losses.values())
            self.losses[f"{part.kind}_{same + 1}" if same else part.kind] = part
        self.penalties: dict[str, PenaltyPart] = {"document": sparsity.documents}
        table = model.anatomy.queries
        if sparsity.queries is not None and (table is None or table.weight.requires_grad):
            self.penalties["query"] = sparsity.queries
        self.weights = {side: part.weight or 0.0 for side, part in self.penalties.items()}
        self.values: dict[str, Tensor] = {}
        self._known, self._teachers = known, teachers
        mask = torch.as_tensor(model.vocabulary.weight_mask(), dtype=torch.float32)
        self.register_buffer("weight_mask", mask, persistent=False)
        self.register_buffer("costs", None if idf is None else idf_costs(idf), persistent=False)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Targets) -> dict[str, Tensor]:
        """Each part of the loss of a batch by its name: features of queries and of their documents."""
        features = list(sentence_features)
        if self.mini_batch_size is None:
            queries, documents = (self.model(column)["sentence_embedding"] for column in features)
            return self.parts(queries, documents, labels)
        features = [
            {name: value for name, value in column.items() if name not in OF_THE_WHOLE} for column in features
        ]
        total = self.forward_cached(features, labels)  # type: ignore[arg-type]
        # Only the total carries a gradient, so the first part is what the others leave of it.
        rest = {name: self.values[name] for name in self.part_names[1:]}
        return {self.part_names[0]: total - sum(rest.values()), **rest}

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False
    ) -> Tensor:
        """The total of micro batches' vectors, for the gradient cache."""
        queries, documents = (torch.cat(column) for column in reps)
        total = torch.stack(list(self.parts(queries, documents, labels).values())).sum()
        if with_backward:
            total.backward()  # type: ignore[no-untyped-call]
            total = total.detach()
        return total

    @property
    def part_names(self) -> list[str]:
        """The parts, in their order."""
        return [*self.losses, *(f"{side}_penalty" for side in self.penalties)]

    def parts(self, queries: Tensor, documents: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Each part of the loss of this process's vectors; their sum is minimised.

        Args:
            queries: ``[B, vocabulary]``.
            documents: ``[C * B, vocabulary]``: the first documents of all queries, then all second ones, …
            targets: Of this process.
        """
        batch = self._batch(queries, documents, targets)
        vectors = {"document": batch.documents, "query": batch.queries[None]}
        parts = {name: part.weight * loss_of(part, batch) for name, part in self.losses.items()}
        asked, there = (batch.queries > 0).float().mean(0), (batch.documents > 0).float().mean((0, 1))
        facts = dict(zip(FACTS, (asked.sum(), there.sum(), asked @ there), strict=True))
        for side, part in self.penalties.items():
            penalty = penalty_of(part, vectors[side], self.costs)
            parts[f"{side}_penalty"] = self.weights[side] * penalty
            facts[side] = penalty
        self.values = {name: value.detach() for name, value in (parts | facts).items()}
        return parts

    def _batch(self, queries: Tensor, documents: Tensor, targets: Targets) -> Batch:
        """The vectors of all processes, as the cluster has them, and what is known of them."""
        asked = self._as_on_the_cluster(queries, "query")
        there = self._as_on_the_cluster(documents, "document")
        there = torch.unflatten(there, 0, (-1, len(asked))).transpose(0, 1)  # [B, C, vocabulary]
        known = {name: _of_all(values) for name, values in targets.items()}
        return Batch(
            queries=_of_all(asked),
            documents=_of_all(there).transpose(0, 1),
            query_ids=known["query_ids"],
            document_ids=known["document_ids"],
            positives=known["positives"],
            labels=known.get("labels"),
            batch_labels=None if self._teachers is None else self._teachers.labels(known),
            known=self._known,
        )

    def _as_on_the_cluster(self, vectors: Tensor, side: str) -> Tensor:
        """Vectors ``[n, vocabulary]`` in float32 without special tokens and without negative weights."""
        width = vectors.shape[1]
        # Not ReLU, which has no gradient at 0: a learned query weight that has come there may leave it again.
        vectors = vectors.float() * self.weight_mask[:width]
        vectors = vectors * (vectors >= 0)
        # A table of query weights is as wide as the tokenizer, an encoder's output may be padded.
        missing = len(self.weight_mask) - width
        vectors = nn.functional.pad(vectors, (0, missing)) if missing else vectors
        part = self.penalties.get(side)
        return vectors if part is None or part.top_k is None else largest(vectors, part.top_k)


def _of_all(rows: Tensor) -> Tensor:
    """The rows of all processes, which have as many each, in their order.

    The gradient is that of this process's own rows. Each process computes the whole batch's loss from what it
    gathered, so nothing has to be exchanged backwards: :func:`add_up` of the weights' gradients makes them
    those of that one loss.
    """
    return rows if util.get_world_size() == 1 else util.all_gather(rows.contiguous())


@torch.no_grad()
def add_up(parameters: Iterable[nn.Parameter]) -> None:
    """Make each gradient the sum of all processes' ones.

    Not left to ``DistributedDataParallel``: of a step with several forward passes it takes parameters that
    only some of them use, such as a table of query weights, for done too early.
    """
    if util.get_world_size() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.contiguous()
                distributed.all_reduce(parameter.grad)
