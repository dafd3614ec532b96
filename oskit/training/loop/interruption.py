"""SIGINT, SIGTERM and SIGHUP in training: the step is finished, a checkpoint saved, the run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from oskit.training.ranks import world_size

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption(TrainerCallback):
    """Ends training after the current step once a signal has come; a second one ends it at once.

    Attributes:
        happened: Whether training was ended.
    """

    def __init__(self) -> None:
        self.happened = False
        self._asked = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen to signals, but to none that is ignored (``nohup``); outside the main thread to none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._on_signal)
            for number in _SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
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
            self.happened = True
            control.should_save = True
            control.should_training_stop = True
