"""What a recipe says: every choice of a training run, validated."""

from __future__ import annotations

import math
from pathlib import Path
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

from oskit.archive.text_encoder import Activation, Architecture
from oskit.encoder.loader.tiers import DEFAULT_BASE
from oskit.training.recipe.objective import (
    Candidates,
    InfoNceConfig,
    KlConfig,
    Losses,
    MarginMseConfig,
    SparsityPart,
)
from oskit.training.recipe.part import Part, Ratio
from oskit.training.recipe.sources import DataSource
from oskit.training.recipe.teachers import AnyTeacher, DenseTeacherConfig, LabelsPart, Teachers

Length = Annotated[int, Field(ge=3)]
"""Tokens of a text, with the two around it: fewer leave no room for it."""


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
    max_length: Length | None = None
    """Tokens that the trained encoder reads of a text; None for as many as it did. What a training step reads
    is ``schedule.max_length``."""
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the encoder as it was in the average of weights that is measured and saved (WiSE-FT, arXiv
    2109.01903): at .3 to .5 an adapted encoder keeps most of what it could do on other texts. Of one that
    cannot search yet nothing is kept."""
    layers: PositiveInt | None = None
    """Keep the first layers of the transformer only; None for all. The head is then fitted to understand
    them."""
    dropout: Ratio | None = None
    """Share of activations that training drops; None for what the configuration says. At 0 a short
    distillation learns faster, and a step on a CPU takes less time."""
    head: Literal["random", "lexical", "dense"] = "random"
    """``random``: a projection to the vocabulary that the base does not have gets random weights; a head that
    it has stays as it is. ``lexical``: either is fitted to the training texts, so that a text weighs its own
    tokens, for bases that were not trained for retrieval; an encoder that sentence-transformers or oskit
    saved keeps its head. ``dense``: a projection gets directions along which vectors compare as the base's
    mean states do, for dense models: they retrieve as well as before, but by tokens that mean nothing."""


def _listed(value: Any) -> Any:
    """One source may stand alone."""
    return value if isinstance(value, (list, tuple)) else [value]


class MiningConfig(Part):
    """The ``mining`` part of a recipe."""

    ranker: Literal["dense", "bm25"] = "dense"
    """Who finds candidates: the first dense teacher by exact search, or BM25."""
    per_query: PositiveInt = 20
    """Candidates that are added to those that a query has; ``data.sampling`` draws of all of them."""
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
    """``top``: the hardest that remain are added. ``random``: any of those that remain."""
    seed: NonNegativeInt = 0
    """Of what is drawn."""


class SamplingPart(Part):
    """What is drawn of a query's candidates, fresh in each epoch."""

    negatives: NonNegativeInt = 7
    """Documents beside the first one, at most; 0 for the first one alone."""
    top: NonNegativeInt | None = None
    """How many of them are the best scored; the others are any of the rest. None for half of them, rounded
    up."""

    @model_validator(mode="after")
    def _top_of_them(self) -> Self:
        if self.top is not None and self.top > self.negatives:
            raise ValueError(f"top is {self.top}, more than the {self.negatives} negatives that are drawn")
        return self

    @property
    def best(self) -> int:
        """How many of the best scored are drawn."""
        return -(-self.negatives // 2) if self.top is None else self.top


class DataPart(Part):
    """What it is trained on."""

    train: Annotated[tuple[DataSource, ...], BeforeValidator(_listed)] = Field(min_length=1)
    """Sources of pairs, triples, judgements or documents; a path may stand for a source."""
    hold_out: Ratio = 0.1
    """Share of the queries that is kept for evaluation where no collection is given."""
    leakage: Literal["drop", "report", "error"] = "drop"
    """What happens to training queries that the evaluation asks as well."""
    negatives: MiningConfig | None = None
    """How hard negatives are mined; None for those that the data has, and in-batch ones."""
    sampling: SamplingPart = SamplingPart()
    """What is drawn of a query's candidates."""


class SchedulePart(Part):
    """How long, how fast, on what."""

    epochs: PositiveFloat = 1.0
    """Passes over the examples; not used with ``steps``."""
    steps: PositiveInt | None = None
    """Optimizer steps."""
    max_length: Length | None = None
    """Tokens that a training step reads of a text, at most; None for as many as the encoder reads."""
    batch_size: PositiveInt = 32
    """Examples of one optimizer step over all processes, whatever the hardware."""
    micro_batch_size: PositiveInt | None = None
    """Texts that fit into memory at once; None for all of a process's share. The loss stays that of the whole
    batch: texts are computed twice, as gradients are cached at their vectors."""
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
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are clipped to this norm; None leaves them as they are."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """``auto``: bf16 where the GPU can, else float32."""
    evaluate_every: PositiveInt | None = None
    """Steps from one evaluation (and checkpoint) to the next; None for ten in the run."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints that are kept, beside the best one."""
    arguments: dict[str, Any] = {}  # noqa: RUF012  (frozen)
    """Anything else of sentence-transformers' ``SparseEncoderTrainingArguments``, by its name there, such as
    ``{optim: adafactor, adam_beta2: 0.98}``. What other keys of a recipe set is refused."""

    def steps_of(self, examples: int) -> int:
        """Optimizer steps of a stage; what is left of an epoch beside whole batches is left out."""
        return self.steps or max(1, math.ceil(self.epochs * max(1, examples // self.batch_size)))


class EvaluationPart(Part):
    """What the encoder is measured on."""

    collection: Path | None = None
    """A folder in BEIR's layout; None for the held-out queries of the training data."""
    split: str = "test"
    """Its judgements."""
    queries: PositiveInt | None = None
    """Of a large collection measure on this many, drawn once; None for all."""
    corpus: PositiveInt | None = None
    """Of a large collection take this many documents, the judged ones first."""
    judgements: Literal["pooled", "own"] = "pooled"
    """What is relevant to held-out queries. ``pooled``: their own answers, texts nearly the same, answers of
    queries that ask nearly the same, what teachers and BM25 place high. ``own``: their own answers alone."""
    max_flops: PositiveFloat | None = None
    """Take the best of the checkpoints that cost no more FLOPS than this; None for the best of those from the
    end of the sparsity's ramp on."""


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
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of all that is drawn."""
    encoder: EncoderPart
    data: DataPart
    teachers: Teachers = (DenseTeacherConfig(),)
    """Who labels the examples: each teacher's scores of a query's candidates are normalised, and averaged by
    weight."""
    labels: LabelsPart = LabelsPart()
    loss: Losses = (KlConfig(),)
    """What is minimised, besides the sparsity penalties: the weighted sum of these."""
    sparsity: SparsityPart = SparsityPart()
    schedule: SchedulePart = SchedulePart()
    evaluation: EvaluationPart = EvaluationPart()
    guards: GuardsPart = GuardsPart()
    stages: tuple[dict[str, object], ...] = ()
    """For training in several stages: what each changes in this recipe, as a part of a recipe. The encoder of
    a stage can be used by the next ones as ``{stage:1}`` (its folder), for example as sparse teacher."""

    @property
    def distillation(self) -> tuple[KlConfig | MarginMseConfig, ...]:
        """The losses that learn the teachers' scores."""
        return tuple(loss for loss in self.loss if not isinstance(loss, InfoNceConfig))

    @property
    def labelled(self) -> frozenset[Candidates]:
        """Which candidates need labels: ``own`` ones have theirs in advance, a ``batch`` gets its own."""
        return frozenset(loss.candidates for loss in self.distillation)

    @property
    def labelling(self) -> tuple[AnyTeacher, ...]:
        """The teachers that label: those with a weight, where a loss learns their scores."""
        return tuple(teacher for teacher in self.teachers if teacher.weight > 0) if self.distillation else ()

    @property
    def miner(self) -> DenseTeacherConfig | None:
        """The dense teacher that mines; None where none is named, or none is needed."""
        mining = self.data.negatives
        if mining is None or mining.ranker != "dense":
            return None
        return next((one for one in self.teachers if isinstance(one, DenseTeacherConfig)), None)

    @model_validator(mode="after")
    def _teachers_fit_losses(self) -> Self:
        if not self.loss:
            raise ValueError("loss: give at least one")
        if self.distillation and not self.labelling:
            raise ValueError(f"loss: {self.distillation[0].kind} needs a teacher with a weight")
        if "batch" in self.labelled:
            for teacher in self.labelling:
                if teacher.kind in _OWN_CANDIDATES_ONLY:
                    kind = next(loss.kind for loss in self.distillation if loss.candidates == "batch")
                    raise ValueError(
                        f"loss: {kind} over the batch cannot have the {teacher.kind} teacher, "
                        f"{_OWN_CANDIDATES_ONLY[teacher.kind]}; give candidates: own"
                    )
        mining = self.data.negatives
        if mining is not None and mining.ranker == "dense" and self.miner is None:
            raise ValueError(
                "data.negatives are mined with a dense teacher, and there is none: give one, with "
                "weight: 0 if it shall not label, or ranker: bm25"
            )
        return self


_OWN_CANDIDATES_ONLY = {
    "cross-encoder": "which would read every pair of a batch",
    "stored": "which knows a query's own candidates alone",
}
