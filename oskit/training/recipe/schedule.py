"""The ``schedule`` of a recipe: how long, how fast, on what."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from oskit.training.recipe.part import Part, Ratio


class SchedulePart(Part):
    """How long, how fast, on what."""

    epochs: PositiveFloat = 1.0
    """Passes over the examples; not used with ``steps``."""
    steps: PositiveInt | None = None
    """Optimizer steps."""
    max_length: PositiveInt | None = None
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
