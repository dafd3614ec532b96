"""What happens beside the steps: they are logged and told, and SIGINT, SIGTERM or SIGHUP ends them.

The step is finished then, and a checkpoint saved.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from oskit.training.loop.events import Listener
from oskit.training.ranks import world_size

LOG = "log.jsonl"


class Telling(TrainerCallback):
    """Tells the listener of steps and logs, and writes ``log.jsonl`` in the folder while training goes on."""

    def __init__(self, folder: Path, listener: Listener) -> None:
        self._path, self._listener = folder / LOG, listener

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What was logged after the checkpoint that training goes on from is logged anew."""
        if state.is_world_process_zero:
            self._write("w", state.log_history)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A step without logs; one with logs is told by :meth:`on_log`."""
        if state.is_world_process_zero and not control.should_log:
            self._listener.step(state.global_step, state.max_steps, {})

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """What the trainer logged."""
        if state.is_world_process_zero and logs:
            self._write("a", state.log_history[-1:])
            if "loss" in logs:
                self._listener.step(state.global_step, state.max_steps, logs)

    def _write(self, mode: str, entries: list[dict[str, float]]) -> None:
        with self._path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)


class Interruption(TrainerCallback):
    """Ends training after the current step once a signal has come; a second one ends it at once.

    Attributes:
        happened: Whether training was ended.
    """

    def __init__(self) -> None:
        self.happened = self._asked = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen to signals, but to none that is ignored (``nohup``); outside the main thread to none."""
        may = threading.current_thread() is threading.main_thread()
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if may and signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop where a signal has come to any of the processes."""
        asked = self._asked
        if world_size() > 1:
            flag = torch.tensor(int(asked), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.happened = control.should_save = control.should_training_stop = True
