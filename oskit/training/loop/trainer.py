"""``SparseEncoderTrainer`` for our batches: guards, less memory where it does not suffice, interruption."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError
from sentence_transformers import SparseEncoderTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerState

from oskit.encoder.loader.failures import out_of_memory
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import DataError, TrainingError, first_line
from oskit.training.internals import overriding
from oskit.training.loop.guards import Guards, check_finite
from oskit.training.loop.student import Average, clear_negative_weights
from oskit.training.objective.batches import DrawnBatches
from oskit.training.objective.objective import FACTS, TARGETS, TEACHER, TrainingLoss, add_up
from oskit.training.objective.sparsity import SparsityWeights

IDLE_STEPS = 10
"""First steps without a loss after which it is told."""

_TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"


@overriding(
    *("add_model_card_callback", "collect_features", "training_step", "log", "get_train_dataloader", "train"),
    *("_clip_grad_norm", "_load_best_model", "_load_from_checkpoint", "_save_checkpoint"),
)
class OskitTrainer(SparseEncoderTrainer):
    """Trains an encoder by a :class:`TrainingLoss`.

    A batch of the data loader is one optimizer step. Where it is computed in micro batches, gradients are
    cached at the vectors, so that the loss is that of the whole batch. Where memory does not suffice for a
    step, the micro batch is halved and the step done again.

    Args:
        guards: Looks at every step.
        sparsity: The weights of the penalties.
        micro_batch_size: Texts that are computed at once; None for the whole batch.
        on_note: Told in one line when the micro batch was halved.
        average: With the encoder as it was, of which evaluations are; None for the encoder itself.
        kwargs: Of ``SparseEncoderTrainer``.
    """

    loss: TrainingLoss  # type: ignore[assignment]
    model: NeuralSparseEncoder

    def __init__(
        self,
        *,
        guards: Guards,
        sparsity: SparsityWeights,
        micro_batch_size: int | None,
        on_note: Callable[[str], object],
        average: Average | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self.add_callback(sparsity)
        self.sparsity = sparsity
        self._guards, self._note, self._average = guards, on_note, average
        self._unlogged: list[list[float]] = []  # the facts of each step
        self._idle = 0  # steps whose losses were 0
        self.loss.mini_batch_size = micro_batch_size

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: the card is ours, and the base class would encode examples and ask the Hub for its own."""
        self.model.model_card_data.generate_widget_examples = False
        self.model.model_card_data.local_files_only = True

    def collect_features(  # type: ignore[override]
        self, inputs: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """The features of queries and of documents, and what the loss needs beside them."""
        targets = {name: inputs[name] for name in inputs if name in TARGETS or name.startswith(TEACHER)}
        features = [
            {name.removeprefix(side): inputs[name] for name in inputs if name.startswith(side)}
            for side in ("query_", "document_")
        ]
        return features, targets

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class, but for training that is done, which it would go on with for a step.

        Tokenizers may use threads here, and say nothing of workers, which have none. Only for so long: a
        process that is forked by somebody else, without a word to its tokenizers, would wait for ever for
        threads that it does not have.
        """
        checkpoint = kwargs.get("resume_from_checkpoint")
        if checkpoint is not None:
            kept = TrainerState.load_from_json(str(Path(checkpoint, "trainer_state.json")))
            if kept.global_step >= self.args.max_steps:
                self.state = kept
                self.sparsity.on_train_begin(self.args, self.state, self.control)
                return self._load_best_model()
        if not self.args.dataloader_num_workers or _TOKENIZER_THREADS in os.environ:
            return super().train(*args, **kwargs)
        os.environ[_TOKENIZER_THREADS] = "true"
        try:
            return super().train(*args, **kwargs)
        finally:
            del os.environ[_TOKENIZER_THREADS]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the base class, of the encoder that would be saved."""
        with nullcontext() if self._average is None else self._average.applied(self.model):
            return super().evaluate(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One step, done again with less at once while memory does not suffice."""
        self.loss.weights = self.sparsity.at(self.state.global_step)
        clear_negative_weights(self.model)
        while True:
            try:
                with self.accelerator.no_sync(model):
                    loss = super().training_step(model, inputs, num_items_in_batch)
                break
            except RuntimeError as error:
                if out_of_memory(error, "a batch") is None:
                    raise
                reason = str(error)
            self._shrink(reason)
        add_up(self.model.parameters())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base class, with active dimensions and FLOPS (means of the steps since the last line)."""
        if "loss" in logs and self._unlogged:
            means = map(fmean, zip(*self._unlogged, strict=True))
            logs |= zip(("query_dims", "document_dims", "batch_flops"), means, strict=True)
            logs |= {f"{side}_weight": weight for side, weight in self.loss.weights.items()}
            logs |= self.sparsity.paths()
            self._unlogged = []
        super().log(logs, start_time)

    def _shrink(self, reason: str) -> None:
        """Halve the micro batch."""
        size = self.loss.mini_batch_size or self.args.per_device_train_batch_size
        several, what = self.args.world_size > 1, f"out of memory at step {self.state.global_step + 1}"
        if size == 1 or several:
            hint = "Lower schedule.max_length, or set schedule.gradient_checkpointing: true."
            if several:  # they wait for this step's vectors, which cannot be computed again alone
                hint = f"Set schedule.micro_batch_size: {max(1, size // 2)}, or less."
            at_once = "one text" if size == 1 else f"{size} texts"
            raise TrainingError(f"{what} with {at_once} at once: {reason}", hint=hint)
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.loss.mini_batch_size = size // 2
        self._note(
            f"{what}: {size // 2} texts at once from here on; the batch stays {self.args.train_batch_size} "
            "(gradients are cached)"
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """As the base class; also where a step is looked at, before it reaches the weights.

        Raises:
            TrainingError: Loss or gradients are no numbers, or the encoder collapsed.
        """
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        step, rate = self.state.global_step + 1, self.args.learning_rate
        # Everything that is to be known of a step, in one question to the GPU.
        names, values = zip(*self.loss.values.items(), strict=True)
        numbers = torch.stack([torch.as_tensor(norm, device=values[0].device), *values]).tolist()
        found = dict(zip(names, numbers[1:], strict=True))
        # fp16's step of an infinite gradient is left out, and its scale, which is too large, halved.
        scaler = self.accelerator.scaler
        skipped = scaler is not None and scaler.get_scale() > 1 and not math.isfinite(numbers[0])
        parts = {name: found[name] for name in self.loss.part_names}
        check_finite(parts, 0.0 if skipped else numbers[0], step, rate)
        self._unlogged.append([found[name] for name in FACTS])
        self._guards.check(step, found)
        losses = sum(found[name] for name in self.loss.losses)
        self._idle += losses == 0
        if self._idle == step == min(IDLE_STEPS, self.args.max_steps):
            self._note(
                f"there is nothing to learn so far, the losses of {step} steps are 0: their batches have no "
                "text that does not answer; give a larger schedule.batch_size, data.negatives, or other data"
            )
        self.sparsity.observe(step, found | {"losses": losses})
        return norm

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the base class; torch tells of a full disk what only its authors understand."""
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise DataError(
                f"a checkpoint cannot be written into {self.args.output_dir}: {first_line(error)}",
                hint="Is the disk full? Make room and go on from the checkpoint before: --resume.",
            ) from error

    def _load_best_model(self) -> None:
        """The best checkpoint; the base class would go on with the last weights where it cannot be loaded."""
        assert self.state.best_model_checkpoint is not None
        # The folder may have been moved since.
        best = str(Path(self.args.output_dir or "", Path(self.state.best_model_checkpoint).name))
        if not Path(best).is_dir():  # what is no folder would be looked for on the Hub
            raise TrainingError(f"the best checkpoint {best} is gone", hint="Train again from the last one.")
        try:
            self._load_from_checkpoint(best)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise TrainingError(
                f"the best checkpoint {best} cannot be loaded: {error}",
                hint="Is the disk full? Train again from the last checkpoint.",
            ) from error

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of documents of similar length; of each this process computes its share."""
        drawn: Any = self.train_dataset
        args = self.args
        size = args.train_batch_size * args.world_size
        sampler = DrawnBatches(
            drawn,
            size,
            args.dataloader_drop_last and len(drawn) >= size,
            rank=args.process_index,
            processes=args.world_size,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )
        self.add_callback(sampler)
        return DataLoader(
            drawn,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=_without_threads,
        )


def _without_threads(worker: int) -> None:
    os.environ[_TOKENIZER_THREADS] = "false"
