"""``SparseEncoderTrainer`` for our batches: guards, less memory where it does not suffice, interruption."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError
from sentence_transformers.sparse_encoder.trainer import SparseEncoderTrainer
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState

from oskit.encoder.loader.failures import out_of_memory
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import TrainingError
from oskit.training.loop.guards import Guards, StepFacts, check_gradient, check_loss
from oskit.training.objective.batches import LengthBatchSampler
from oskit.training.objective.losses import TrainingLoss

_TARGETS = ("label", "query_ids", "document_ids")

Note = Callable[[str], object]
"""Told in one line what a person should know."""


class _EpochOfBatches(TrainerCallback):
    """Tells the sampler the epoch; behind accelerate's wrappers the trainer does not always reach it."""

    def __init__(self) -> None:
        self.sampler: LengthBatchSampler | None = None

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.sampler is not None:
            # In the middle of an epoch it is a fraction, and a sum of fractions may miss a whole number.
            self.sampler.set_epoch(int((state.epoch or 0) + 1e-6))


class OskitTrainer(SparseEncoderTrainer):
    """Trains an encoder by a :class:`TrainingLoss`.

    A batch of the data loader is one optimizer step. Where it is computed in micro batches, either gradients
    are cached at the embeddings, so that the loss is that of the whole batch; or gradients of micro batches
    are added up, each with its own negatives alone. Where memory does not suffice for a step, the micro batch
    is halved and the step done again, with the cache if other queries' documents are negatives.

    Args:
        guards: Looks at every step.
        micro_batch_size: Rows (of a column of texts) that are computed at once; None for the whole batch.
        gradient_cache: How micro batches become one step.
        on_note: Told when the micro batch was halved.
        kwargs: Of ``SparseEncoderTrainer``.

    Attributes:
        facts: Of the last step.
        micro_batch_size: As it is now.
    """

    loss: TrainingLoss  # type: ignore[assignment]
    model: NeuralSparseEncoder

    def __init__(
        self,
        *,
        guards: Guards,
        micro_batch_size: int | None,
        gradient_cache: bool,
        on_note: Note,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self._epochs = _EpochOfBatches()
        self.add_callback(self._epochs)
        self._guards = guards
        # Labels over the whole batch cannot be cut into micro batches.
        self._gradient_cache = gradient_cache or self.loss.labels_whole_batch
        self._note = on_note
        self.facts: StepFacts | None = None
        self._unlogged: list[StepFacts] = []
        self.micro_batch_size: int | None = None
        size = self.args.per_device_train_batch_size
        self._use_micro_batches(
            None if micro_batch_size is None or micro_batch_size >= size else micro_batch_size
        )

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: the card is ours, and the base class would encode examples and ask the Hub for its own."""
        self.model.model_card_data.generate_widget_examples = False
        self.model.model_card_data.local_files_only = True

    def collect_features(  # type: ignore[override]
        self, inputs: dict[str, Any]
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Columns of a batch, and what the loss needs beside them."""
        features, _ = super().collect_features(inputs)
        return features, {name: inputs[name] for name in _TARGETS if name in inputs}

    def track_loss_components(self, loss: dict[str, Tensor]) -> None:
        """Called with the parts of each loss, before their gradients are computed."""
        check_loss(loss, self.state.global_step + 1, self.args.learning_rate)
        super().track_loss_components(loss)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One step, done again with less at once while memory does not suffice.

        Raises:
            TrainingError: The encoder collapsed, or one text alone does not fit.
        """
        while True:
            try:
                loss = self._step(model, inputs, num_items_in_batch)
                break
            except RuntimeError as error:
                if out_of_memory(error, "a batch") is None:
                    raise
                reason = str(error)
            self._shrink(reason)
        assert self.loss.facts is not None
        self.facts = StepFacts(self.state.global_step + 1, *self.loss.facts.tolist())
        self._unlogged.append(self.facts)
        self._guards.check(self.facts)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base class, with active dimensions and FLOPS (means of the steps since the last line)."""
        if "loss" in logs and self._unlogged:
            steps, self._unlogged = self._unlogged, []
            logs["query_dims"] = fmean(facts.query_dims for facts in steps)
            logs["document_dims"] = fmean(facts.document_dims for facts in steps)
            logs["batch_flops"] = fmean(facts.flops for facts in steps)
            logs["document_weight"] = self.loss.document_regularizer_weight
            logs["query_weight"] = self.loss.query_regularizer_weight
        super().log(logs, start_time)

    def _step(self, model: nn.Module, inputs: dict[str, Any], items: Any) -> Tensor:
        if self.micro_batch_size is None or self._gradient_cache:
            return super().training_step(model, inputs, items)
        chunks = list(_chunks(inputs, self.micro_batch_size))
        known = self.current_gradient_accumulation_steps
        self.current_gradient_accumulation_steps = known * len(chunks)
        try:
            losses = []
            for number, chunk in enumerate(chunks, start=1):
                last = number == len(chunks)
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    losses.append(super().training_step(model, chunk, items))
            return torch.stack(losses).sum()
        finally:
            self.current_gradient_accumulation_steps = known

    def _shrink(self, reason: str) -> None:
        """Halve the micro batch."""
        size = self.micro_batch_size or self.args.per_device_train_batch_size
        if self.args.world_size > 1:
            # The other processes wait for this step's gradients, which cannot be done again alone.
            raise TrainingError(
                f"out of memory at step {self.state.global_step + 1} with {size} texts at once: {reason}",
                hint=f"Set schedule.micro_batch_size: {max(1, size // 2)}, or less.",
            )
        if size == 1:
            raise TrainingError(
                f"out of memory at step {self.state.global_step + 1} with one text at once: {reason}",
                hint="Lower encoder.max_length, or set schedule.gradient_checkpointing: true.",
            )
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        # Added up, gradients of micro batches would know fewer negatives than before.
        self._gradient_cache = self._gradient_cache or self.loss.uses_batch_negatives
        self._use_micro_batches(size // 2)
        how = "gradients are cached" if self._gradient_cache else "gradients are added up"
        self._note(
            f"out of memory at step {self.state.global_step + 1}: {size // 2} texts at once from here on; "
            f"the batch stays {self.args.train_batch_size} ({how})"
        )

    def _use_micro_batches(self, size: int | None) -> None:
        self.micro_batch_size = size
        self.loss.mini_batch_size = size if self._gradient_cache else None

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """As the base class; also the place to see gradients that are no numbers."""
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        value = None if norm is None else float(norm)
        check_gradient(value, self.state.global_step + 1, self.args.learning_rate)
        return norm

    def _load_best_model(self) -> None:
        """The best checkpoint; the base class would go on with the last weights where it cannot be loaded."""
        best = self.state.best_model_checkpoint
        assert best is not None
        if not Path(best).is_dir():  # what is no folder would be looked for on the Hub
            raise TrainingError(f"the best checkpoint {best} is gone", hint="Train again from the last one.")
        try:
            self._load_from_checkpoint(best)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise TrainingError(
                f"the best checkpoint {best} cannot be loaded: {error}",
                hint="Is the disk full? Train again from the last checkpoint.",
            ) from error

    def get_batch_sampler(self, dataset: Any, **kwargs: Any) -> LengthBatchSampler:  # type: ignore[override]
        """Batches of documents of similar length."""
        self._epochs.sampler = LengthBatchSampler(dataset, **kwargs)
        return self._epochs.sampler


def _chunks(inputs: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """Rows of a batch in parts of nearly equal size, ``size`` at most."""
    rows = len(inputs["query_ids"])
    parts = -(-rows // size)
    bounds = [rows * number // parts for number in range(parts + 1)]
    for start, end in pairwise(bounds):
        yield {
            name: value[start:end] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value
            for name, value in inputs.items()
        }
