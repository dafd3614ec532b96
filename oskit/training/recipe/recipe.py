"""What a recipe says: every choice of a training run, validated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from oskit.archive.text_encoder import Activation, Architecture
from oskit.encoder.loader.tiers import DEFAULT_BASE
from oskit.training.recipe.part import Part
from oskit.training.recipe.sources import DataSource
from oskit.training.recipe.teachers import TeachersConfig

Ratio = Annotated[float, Field(ge=0, le=1)]


class EncoderPart(Part):
    """The encoder that is trained."""

    name: str
    """A folder or a repository on the Hub, as ``NeuralSparseEncoder.from_pretrained`` takes it."""
    base: str = DEFAULT_BASE
    """The encoder of the last tier."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    architecture: Architecture | None = None
    """``symmetric``, ``inference-free``, or None for what the encoder is. An inference-free one is made of a
    symmetric one with the IDF of the training corpus as weights of query tokens."""
    idf: Path | None = None
    """An ``idf.json`` to take instead of the training corpus's."""
    train_query_weights: bool = False
    """Whether the query table of an inference-free encoder is trained as well."""
    activation: Activation | None = None
    """``relu`` or ``log1p_relu`` (one more log1p); None for what the encoder says."""
    max_length: PositiveInt | None = None
    """Tokens that a text is truncated to, in training and afterwards; None for its own."""
    layers: PositiveInt | None = None
    """Keep the first layers of the transformer only; None for all. The head is then fitted to understand
    them."""
    dropout: Ratio | None = None
    """Share of activations that training drops; None for what the configuration says. At 0 a short
    distillation learns faster, and a step on a CPU takes less time."""
    head: Literal["random", "lexical"] = "random"
    """``random``: a projection to the vocabulary that the base does not have gets random weights; a head that
    it has stays as it is. ``lexical``: either is fitted to the training texts, so that a text weighs its own
    tokens, for bases that were not trained for retrieval; an encoder that sentence-transformers or oskit
    saved keeps its head."""


def _sources(value: Any) -> Any:
    """One source may stand alone, and a path for a source."""
    listed = value if isinstance(value, (list, tuple)) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in listed]


class MiningConfig(Part):
    """The ``mining`` part of a recipe."""

    ranker: Literal["teacher", "bm25"] = "teacher"
    """Who finds candidates: the dense teacher by exact search, or BM25."""
    per_query: PositiveInt = 4
    """Negatives that each example gets. Those that the data has come first and count."""
    depth: PositiveInt = 100
    """How many of the best documents are looked at."""
    skip_top: NonNegativeInt = 0
    """How many of these are left out, as likely answers that nobody marked."""
    margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Drop candidates that the dense teacher scores above the positive minus this."""
    positive_share: float | None = Field(default=0.95, gt=0, le=1)
    """Drop candidates that it scores above this share of the positive's score; 0.95 is ``TopK-PercPos`` of
    NV-Retriever (arXiv 2407.15831, section 3.2). None for no such limit. A negative score of the positive is
    lowered by as much instead."""
    sampling: Literal["top", "random"] = "top"
    """``top``: the hardest that remain. ``random``: any of those that remain."""
    seed: int = 0
    """Of what is drawn."""


class DataPart(Part):
    """What it is trained on."""

    train: Annotated[tuple[DataSource, ...], BeforeValidator(_sources)] = Field(min_length=1)
    """Sources of pairs, triples, judgements or documents; a path may stand for a source."""
    hold_out: Ratio = 0.1
    """Share of the queries that is kept for evaluation where no collection is given."""
    leakage: Literal["drop", "report", "error"] = "drop"
    """What happens to training queries that the evaluation asks as well."""
    negatives: MiningConfig | None = None
    """How hard negatives are mined; None for those that the data has, and in-batch ones."""


class DistillationPart(Part):
    """Learning the teachers' scores."""

    kind: Literal["kl", "margin_mse"] = "kl"
    """``kl``: the distribution over a query's candidates. ``margin_mse``: differences to the positive."""
    weight: PositiveFloat = 1.0
    """Of this loss in the sum."""
    temperature: PositiveFloat = 2.0
    """Divides the student's scores and the labels before the softmax, in ``kl``."""
    candidates: Literal["own", "batch"] = "own"
    """``own``: a query's positive and negatives. ``batch``: all documents of the batch, which needs no
    negatives; in ``kl`` only."""

    @model_validator(mode="after")
    def _batch_is_for_kl(self) -> DistillationPart:
        if self.candidates == "batch" and self.kind != "kl":
            raise ValueError(f"{self.kind} has own candidates only; give candidates: own, or kind: kl")
        return self


class ContrastivePart(Part):
    """InfoNCE over the positive, the negatives, and the other examples' documents in the batch."""

    weight: PositiveFloat = 1.0
    """Of this loss in the sum."""
    scale: PositiveFloat = 1.0
    """Multiplies scores before the softmax: 1 / temperature."""


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
    """The penalty on the vectors of one side."""

    weight: NonNegativeFloat
    """λ at the end of the ramp."""
    kind: Literal["flops", "idf_flops"] = "flops"
    """``flops``, or ``idf_flops`` where rare tokens are cheaper."""
    threshold: NonNegativeInt | None = None
    """Only vectors with more active dimensions than this are penalised (the L0 mask)."""


class SparsityPart(Part):
    """How sparse the vectors become."""

    documents: PenaltyPart = PenaltyPart(weight=3e-3)
    """The penalty on documents."""
    queries: PenaltyPart | None = PenaltyPart(weight=5e-3)
    """The penalty on queries; of no use for an inference-free encoder."""
    ramp: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    """Share of the steps in which the weights rise from 0, quadratically."""


class SchedulePart(Part):
    """How long, how fast, on what."""

    epochs: PositiveFloat = 1.0
    """Passes over the examples; not used with ``steps``."""
    steps: PositiveInt | None = None
    """Optimizer steps."""
    batch_size: PositiveInt = 32
    """Examples of one optimizer step over all processes, whatever the hardware."""
    micro_batch_size: PositiveInt | None = None
    """Examples that fit into memory at once; None for all of a process's share."""
    gradient_cache: bool = False
    """Compute the batch's loss over all its examples though they pass in micro batches (in-batch negatives
    stay those of the whole batch)."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    learning_rate: PositiveFloat = 2e-5
    """Of the transformer."""
    head_learning_rate: PositiveFloat | None = None
    """Of the projection to the vocabulary; None for ``learning_rate``."""
    query_learning_rate: PositiveFloat = 1e-3
    """Of a trained table of query weights."""
    warmup: Ratio = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How it falls afterwards."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """``auto``: bf16 where the GPU can, else float32."""
    evaluate_every: PositiveInt | None = None
    """Steps from one evaluation (and checkpoint) to the next; None for ten in the run."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints that are kept, beside the best one."""


class EvaluationPart(Part):
    """What the encoder is measured on."""

    collection: Path | None = None
    """A folder in BEIR's layout; None for the held-out queries of the training data."""
    split: str = "test"
    """Its judgements."""
    queries: PositiveInt | None = None
    """Of a large collection measure on this many, in training; None for all."""
    corpus: PositiveInt | None = None
    """Of a large collection take this many documents, the judged ones first, in training."""


class GuardsPart(Part):
    """When training is stopped because the encoder collapses."""

    patience: PositiveInt = 10
    """Steps in a row with empty vectors on one side after which it is dead."""
    max_active_dims: PositiveInt | None = None
    """Mean active dimensions of a document that are too many once the ramp has ended and they fall no longer;
    None for a tenth of the vocabulary, but at least 2,000."""


class Recipe(Part):
    """A training run from the base encoder to the saved one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What the run is called; also the name of its folder."""
    description: str = ""
    """What it is good for."""
    seed: NonNegativeInt = 0
    """Of all that is drawn."""
    encoder: EncoderPart
    data: DataPart
    teachers: TeachersConfig = TeachersConfig()
    loss: LossPart = LossPart()
    sparsity: SparsityPart = SparsityPart()
    schedule: SchedulePart = SchedulePart()
    evaluation: EvaluationPart = EvaluationPart()
    guards: GuardsPart = GuardsPart()
    stages: tuple[dict[str, object], ...] = ()
    """For training in several stages: what each changes in this recipe, as a part of a recipe. The encoder of
    a stage can be used by the next ones as ``{stage:1}`` (its folder), for example as sparse teacher."""

    @model_validator(mode="after")
    def _cross_encoder_has_candidates(self) -> Recipe:
        distillation = self.loss.distillation
        batch = distillation is not None and distillation.candidates == "batch"
        if batch and self.teachers.cross_encoder.weight > 0:
            raise ValueError(
                "loss.distillation.candidates: a cross-encoder would score every pair of a batch; give own"
            )
        return self
