"""What happens beside the steps: they are logged and told, and SIGINT, SIGTERM or SIGHUP ends them."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from oskit.data.atomic import write_whole
from oskit.training.loop.events import Listener
from oskit.training.ranks import world_size

LOG = "log.jsonl"


class Watch(TrainerCallback):
    """Tells the listener of steps and logs, and keeps ``log.jsonl`` in the folder.

    Once a signal has come, training ends after the current step with a checkpoint; a second one ends it at
    once.

    Attributes:
        interrupted: Whether training was ended.
        began: Whether there was a step in this process.
    """

    def __init__(self, folder: Path, listener: Listener) -> None:
        self._path, self._listener = folder / LOG, listener
        self.interrupted = self.began = self._asked = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Of a run that goes on, the best checkpoint is kept where the folder is now."""
        if (best := state.best_model_checkpoint) is not None:
            state.best_model_checkpoint = str(Path(args.output_dir, Path(best).name))

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What the trainer is made of is whole, and what it goes on from could be read."""
        self.began = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell a step without logs, and stop where a signal has come to any of the processes."""
        if state.is_world_process_zero and not control.should_log:
            self._listener.step(state.global_step, state.max_steps, {})
        asked = self._asked
        if world_size() > 1:
            flag = torch.tensor(int(asked), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.interrupted = control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """What the trainer logged; of a run that goes on, nothing from after its checkpoint."""
        if state.is_world_process_zero and logs:
            write_whole(self._path, "".join(json.dumps(entry) + "\n" for entry in state.log_history))
            if "loss" in logs:
                self._listener.step(state.global_step, state.max_steps, logs)

    @contextmanager
    def signals(self) -> Iterator[None]:
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
