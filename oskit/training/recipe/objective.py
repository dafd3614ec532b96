"""The ``loss`` and ``sparsity`` of a recipe: what is minimised."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from oskit.training.recipe.part import Kind, Part

Candidates = Literal["own", "batch"]


class LossConfig(Kind):
    """A loss."""

    weight: PositiveFloat = 1.0
    """Of this loss in the sum."""


class KlConfig(LossConfig):
    """KL divergence between the teachers' distribution over the candidates and the student's."""

    kind: Literal["kl"] = "kl"
    temperature: PositiveFloat = 2.0
    """T: divides the student's scores and the labels before the softmax."""
    t_squared: bool = True
    """Whether the loss is multiplied by T², so that its gradients keep their size whatever T is."""
    candidates: Candidates = "own"
    """``own``: a query's own candidates. ``batch``: all documents of the batch, which needs no negatives."""


class MarginMseConfig(LossConfig):
    """Squared error of the differences between two candidates' scores."""

    kind: Literal["margin_mse"] = "margin_mse"
    pairs: Literal["positive", "all"] = "positive"
    """``positive``: the first candidate with each other. ``all``: every two, as SPLADE-v3 was trained."""
    candidates: Candidates = "own"
    """``own``: a query's own candidates. ``batch``: all documents of the batch."""

    @model_validator(mode="after")
    def _all_pairs_are_few(self) -> Self:
        if self.pairs == "all" and self.candidates == "batch":
            raise ValueError("pairs: all is for candidates: own; the batch has too many")
        return self


class InfoNceConfig(LossConfig):
    """Cross-entropy of the known positive among the candidates; needs no teacher."""

    kind: Literal["info_nce"] = "info_nce"
    temperature: PositiveFloat = 1.0
    """Divides scores before the softmax."""
    candidates: Candidates = "batch"
    """``own``: a query's own candidates. ``batch``: all documents of the batch, but those that are known to
    answer the query too."""


AnyLoss = Annotated[KlConfig | MarginMseConfig | InfoNceConfig, Field(discriminator="kind")]

Losses = tuple[AnyLoss, ...]


class PenaltyPart(Part):
    """The penalty on the vectors of one side: of a ``weight``, or of one that is found for a ``target``."""

    kind: Literal["flops", "idf_flops", "l1"] = "flops"
    """``flops``: the sum over tokens of the squared mean weight. ``idf_flops``: the same where rare tokens
    are cheaper. ``l1``: the mean sum of weights."""
    weight: NonNegativeFloat | None = None
    """λ at the end of the ramp; beside a target where the search for it begins."""
    target: PositiveFloat | None = None
    """Active dimensions that a vector may have in the mean; the weight is found in training."""
    threshold: NonNegativeInt | None = None
    """Only vectors with more active dimensions than this are penalised (the L0 mask)."""
    top_k: PositiveInt | None = None
    """In training keep this many of a vector's largest weights; None for all."""

    @property
    def aim(self) -> tuple[str, float]:
        """The key that decides how sparse vectors become, and its value."""
        aims = {name: getattr(self, name, None) for name in ("target", "target_flops", "weight")}
        return next((name, float(value)) for name, value in aims.items() if value is not None)

    @model_validator(mode="after")
    def _one_aim(self) -> Self:
        target, flops = self.target, getattr(self, "target_flops", None)
        if target is not None and flops is not None:
            raise ValueError("give one of target and target_flops")
        if self.weight is None and target is None and flops is None:
            raise ValueError("give a weight or a target")
        if target is not None and self.top_k is not None and self.top_k <= target:
            raise ValueError(
                f"top_k keeps {self.top_k} dimensions, so a target of {target:g} changes nothing"
            )
        return self


class DocumentPenaltyPart(PenaltyPart):
    """The penalty on documents: of a ``weight``, or of one that is found for a target."""

    target_flops: PositiveFloat | None = None
    """Products of a query and a document that scoring may cost in the mean; the weight is found in
    training."""
    over: Literal["batch", "slot"] = "batch"
    """Of ``flops`` and ``idf_flops``, what the mean is taken over: all documents of the batch, or the
    first documents of all queries, then their second ones, and so on, whose penalties are added up (as
    OpenSearch's trainings do)."""

    @model_validator(mode="after")
    def _slots_matter(self) -> Self:
        if self.kind == "l1" and self.over == "slot":
            raise ValueError("over: slot changes nothing in l1, which is the same over slots and batch")
        return self


class RampPart(Part):
    """How the weights of the penalties rise from 0; a plain number is the ``share``."""

    shape: Literal["quadratic", "linear"] = "quadratic"
    """Of the rise."""
    share: float = Field(default=1 / 3, gt=0, le=1)
    """Share of the steps in which they rise."""
    delay: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps before they rise."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.end > 1 + 1e-9:
            raise ValueError(f"delay and share are {self.end:g} of the steps together, more than all of them")
        return self

    @property
    def end(self) -> float:
        """Share of the steps after which the weights are whole."""
        return self.delay + self.share


def _ramp(value: Any) -> Any:
    return {"share": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class SparsityPart(Part):
    """How sparse the vectors become."""

    documents: DocumentPenaltyPart = DocumentPenaltyPart(weight=3e-3)
    """The penalty on documents."""
    queries: PenaltyPart | None = PenaltyPart(weight=5e-3)
    """The penalty on queries; of no use for an inference-free encoder."""
    ramp: Annotated[RampPart, BeforeValidator(_ramp)] = RampPart()
    """How the weights of the penalties rise."""
