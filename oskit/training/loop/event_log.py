"""From the trainer's events to the listener's, and to ``log.jsonl`` while training goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from oskit.training.loop.events import Listener

LOG = "log.jsonl"


class Telling(TrainerCallback):
    """Tells steps and logs.

    Args:
        folder: Where ``log.jsonl`` is written.
        listener: Told each step.
    """

    def __init__(self, folder: Path, listener: Listener) -> None:
        self._path = folder / LOG
        self._listener = listener

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What was logged after the checkpoint that training goes on from is logged anew."""
        if state.is_world_process_zero:
            self._write("w", state.log_history)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step without logs; one with logs is told by :meth:`on_log`."""
        if state.is_world_process_zero and not control.should_log:
            self._listener.step(state.global_step, state.max_steps, {})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """What the trainer logged."""
        if not state.is_world_process_zero or not logs:
            return
        self._write("a", state.log_history[-1:])
        if "loss" in logs:
            self._listener.step(state.global_step, state.max_steps, logs)

    def _write(self, mode: str, entries: list[dict[str, float]]) -> None:
        with self._path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
