"""What a recipe says: every choice of a training run, validated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from oskit.archive.text_encoder import Activation, Architecture
from oskit.encoder.loader.tiers import DEFAULT_BASE
from oskit.training.recipe.mining import MiningConfig
from oskit.training.recipe.sources import DataSource
from oskit.training.recipe.teachers import TeachersConfig

Ratio = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A part of a recipe: no unknown keys, not changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderPart(Part):
    """The encoder that is trained.

    Attributes:
        name: A folder or a repository on the Hub, as ``NeuralSparseEncoder.from_pretrained`` takes it.
        base: The encoder of the last tier.
        revision: Branch, tag or commit on the Hub.
        architecture: ``symmetric``, ``inference-free``, or None for what the encoder is. An inference-free
            one is made of a symmetric one with the IDF of the training corpus as weights of query tokens.
        idf: An ``idf.json`` to take instead of the training corpus's.
        train_query_weights: Whether the query table of an inference-free encoder is trained as well.
        activation: ``relu`` or ``log1p_relu`` (one more log1p); None for what the encoder says.
        max_length: Tokens that a text is truncated to, in training and afterwards; None for its own.
        layers: Keep the first layers of the transformer only; None for all. The head is then fitted to
            understand them.
        dropout: Share of activations that training drops; None for what the configuration says. At 0
            a short distillation learns faster, and a step on a CPU takes less time.
        head: ``random``: a projection to the vocabulary that the base does not have gets random weights;
            a head that it has stays as it is. ``lexical``: either is fitted to the training texts, so that a
            text weighs its own tokens, for bases that were not trained for retrieval; an encoder that
            sentence-transformers or oskit saved keeps its head.
    """

    name: str
    base: str = DEFAULT_BASE
    revision: str | None = None
    architecture: Architecture | None = None
    idf: Path | None = None
    train_query_weights: bool = False
    activation: Activation | None = None
    max_length: PositiveInt | None = None
    layers: PositiveInt | None = None
    dropout: Ratio | None = None
    head: Literal["random", "lexical"] = "random"


def _sources(value: Any) -> Any:
    """One source may stand alone, and a path for a source."""
    listed = value if isinstance(value, (list, tuple)) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in listed]


class DataPart(Part):
    """What it is trained on.

    Attributes:
        train: Sources of pairs, triples, judgements or documents; a path may stand for a source.
        hold_out: Share of the queries that is kept for evaluation where no collection is given.
        leakage: What happens to training queries that the evaluation asks as well.
        negatives: How hard negatives are mined; None for those that the data has, and in-batch ones.
    """

    train: Annotated[tuple[DataSource, ...], BeforeValidator(_sources)] = Field(min_length=1)
    hold_out: Ratio = 0.1
    leakage: Literal["drop", "report", "error"] = "drop"
    negatives: MiningConfig | None = None


class DistillationPart(Part):
    """Learning the teachers' scores.

    Attributes:
        kind: ``kl``: the distribution over a query's candidates. ``margin_mse``: differences to the positive.
        weight: Of this loss in the sum.
        temperature: Divides the student's scores and the labels before the softmax, in ``kl``.
        candidates: ``own``: a query's positive and negatives. ``batch``: all documents of the batch, which
            needs no negatives; in ``kl`` only.
    """

    kind: Literal["kl", "margin_mse"] = "kl"
    weight: PositiveFloat = 1.0
    temperature: PositiveFloat = 2.0
    candidates: Literal["own", "batch"] = "own"

    @model_validator(mode="after")
    def _batch_is_for_kl(self) -> DistillationPart:
        if self.candidates == "batch" and self.kind != "kl":
            raise ValueError(f"{self.kind} has own candidates only; give candidates: own, or kind: kl")
        return self


class ContrastivePart(Part):
    """InfoNCE over the positive, the negatives, and the other examples' documents in the batch.

    Attributes:
        weight: Of this loss in the sum.
        scale: Multiplies scores before the softmax: 1 / temperature.
    """

    weight: PositiveFloat = 1.0
    scale: PositiveFloat = 1.0


class LossPart(Part):
    """What is minimised, besides the sparsity penalties; at least one of the two."""

    distillation: DistillationPart | None = DistillationPart()
    contrastive: ContrastivePart | None = None

    @model_validator(mode="after")
    def _something(self) -> LossPart:
        if self.distillation is None and self.contrastive is None:
            raise ValueError("give a distillation or a contrastive loss")
        return self


class PenaltyPart(Part):
    """The penalty on the vectors of one side.

    Attributes:
        weight: λ at the end of the ramp.
        kind: ``flops``, or ``idf_flops`` where rare tokens are cheaper.
        threshold: Only vectors with more active dimensions than this are penalised (the L0 mask).
    """

    weight: NonNegativeFloat
    kind: Literal["flops", "idf_flops"] = "flops"
    threshold: NonNegativeInt | None = None


class SparsityPart(Part):
    """How sparse the vectors become.

    Attributes:
        documents: The penalty on documents.
        queries: The penalty on queries; of no use for an inference-free encoder.
        ramp: Share of the steps in which the weights rise from 0, quadratically.
    """

    documents: PenaltyPart = PenaltyPart(weight=3e-3)
    queries: PenaltyPart | None = PenaltyPart(weight=5e-3)
    ramp: Annotated[float, Field(gt=0, le=1)] = 1 / 3


class SchedulePart(Part):
    """How long, how fast, on what.

    Attributes:
        epochs: Passes over the examples; not used with ``steps``.
        steps: Optimizer steps.
        batch_size: Examples of one optimizer step over all processes, whatever the hardware.
        micro_batch_size: Examples that fit into memory at once; None for all of a process's share.
        gradient_cache: Compute the batch's loss over all its examples though they pass in micro batches
            (in-batch negatives stay those of the whole batch).
        gradient_checkpointing: Compute activations twice instead of keeping them.
        learning_rate: Of the transformer.
        head_learning_rate: Of the projection to the vocabulary; None for ``learning_rate``.
        query_learning_rate: Of a trained table of query weights.
        warmup: Share of the steps in which the learning rate rises from 0.
        scheduler: How it falls afterwards.
        weight_decay: AdamW's.
        max_grad_norm: Gradients are clipped to this norm.
        precision: ``auto``: bf16 where the GPU can, else float32.
        evaluate_every: Steps from one evaluation (and checkpoint) to the next; None for ten in the run.
        keep_checkpoints: Checkpoints that are kept, beside the best one.
    """

    epochs: PositiveFloat = 1.0
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt | None = None
    gradient_cache: bool = False
    gradient_checkpointing: bool = False
    learning_rate: PositiveFloat = 2e-5
    head_learning_rate: PositiveFloat | None = None
    query_learning_rate: PositiveFloat = 1e-3
    warmup: Ratio = 0.1
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    evaluate_every: PositiveInt | None = None
    keep_checkpoints: PositiveInt = 2


class EvaluationPart(Part):
    """What the encoder is measured on.

    Attributes:
        collection: A folder in BEIR's layout; None for the held-out queries of the training data.
        split: Its judgements.
        queries: Of a large collection measure on this many, in training; None for all.
        corpus: Of a large collection take this many documents, the judged ones first, in training.
    """

    collection: Path | None = None
    split: str = "test"
    queries: PositiveInt | None = None
    corpus: PositiveInt | None = None


class GuardsPart(Part):
    """When training is stopped because the encoder collapses.

    Attributes:
        patience: Steps in a row with empty vectors on one side after which it is dead.
        max_active_dims: Mean active dimensions of a document that are too many once the ramp has ended and
            they fall no longer; None for a tenth of the vocabulary, but at least 2,000.
    """

    patience: PositiveInt = 10
    max_active_dims: PositiveInt | None = None


class Recipe(Part):
    """A training run from the base encoder to the saved one.

    Attributes:
        name: What the run is called; also the name of its folder.
        description: What it is good for.
        seed: Of all that is drawn.
        stages: For training in several stages: what each changes in this recipe, as a part of a recipe. The
            encoder of a stage can be used by the next ones as ``{stage:1}`` (its folder), for example as
            sparse teacher.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: NonNegativeInt = 0
    encoder: EncoderPart
    data: DataPart
    teachers: TeachersConfig = TeachersConfig()
    loss: LossPart = LossPart()
    sparsity: SparsityPart = SparsityPart()
    schedule: SchedulePart = SchedulePart()
    evaluation: EvaluationPart = EvaluationPart()
    guards: GuardsPart = GuardsPart()
    stages: tuple[dict[str, object], ...] = ()

    @model_validator(mode="after")
    def _cross_encoder_has_candidates(self) -> Recipe:
        distillation = self.loss.distillation
        batch = distillation is not None and distillation.candidates == "batch"
        if batch and self.teachers.cross_encoder.weight > 0:
            raise ValueError(
                "loss.distillation.candidates: a cross-encoder would score every pair of a batch; give own"
            )
        return self
