"""The ``schedule`` of a recipe: how long, how fast, on what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, NonNegativeFloat, PositiveFloat, PositiveInt

from oskit.training.recipe.part import Part, Ratio

OURS = {
    "output_dir": "the run's folder",
    **dict.fromkeys(("max_steps", "num_train_epochs"), "schedule.steps or schedule.epochs"),
    **dict.fromkeys(
        ("per_device_train_batch_size", "auto_find_batch_size", "gradient_accumulation_steps"),
        "schedule.batch_size and schedule.micro_batch_size",
    ),
    **dict.fromkeys(
        ("gradient_checkpointing", "activation_checkpointing"), "schedule.gradient_checkpointing"
    ),
    "learning_rate": "schedule.learning_rate",
    "learning_rate_mapping": "schedule.head_learning_rate and schedule.query_learning_rate",
    "lr_scheduler_type": "schedule.scheduler",
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "schedule.warmup"),
    "weight_decay": "schedule.weight_decay",
    "max_grad_norm": "schedule.max_grad_norm",
    **dict.fromkeys(("bf16", "fp16", "use_cpu"), "schedule.precision"),
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps", "logging_steps"),
        "schedule.evaluate_every",
    ),
    "save_total_limit": "schedule.keep_checkpoints",
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), "the choice of the best"
    ),
    **dict.fromkeys(("seed", "data_seed"), "seed"),
    **dict.fromkeys(
        ("prompts", "router_mapping", "batch_sampler", "multi_dataset_batch_sampler", "dataloader_drop_last"),
        "the data",
    ),
    **dict.fromkeys(("disable_tqdm", "report_to", "logging_nan_inf_filter"), "what a run tells"),
    **dict.fromkeys(("resume_from_checkpoint", "do_train", "do_eval", "do_predict"), "oskit train"),
}
"""Arguments of the trainer that oskit gives itself, and what decides about them."""


def _not_ours(arguments: dict[str, Any]) -> dict[str, Any]:
    for name in arguments:
        if name in OURS:
            raise ValueError(f"{name} is set by {OURS[name]}")
    return arguments


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
    """Examples that fit into memory at once; None for all of a process's share."""
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
    arguments: Annotated[dict[str, Any], AfterValidator(_not_ours)] = {}  # noqa: RUF012  (frozen)
    """Anything else of sentence-transformers' ``SparseEncoderTrainingArguments``, by its name there, such as
    ``{optim: adafactor, adam_beta2: 0.98}``. What other keys of a recipe set is refused."""
