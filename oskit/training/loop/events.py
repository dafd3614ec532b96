"""What a training run tells while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oskit.training.report.figures import Figures
    from oskit.training.report.result import StageResult


class Listener:
    """Told what happens; overridden by those who show it. With several processes only the first one tells."""

    def stage_started(self, name: str, number: int, stages: int) -> None:
        """A stage begins; ``number`` counts from 1."""

    def doing(self, what: str) -> None:
        """Something that takes a while begins: reading, mining, labelling, measuring."""

    def advance(self, what: str, count: int) -> None:
        """So many records, documents or queries were done since the last call; ``what`` says which."""

    def training_started(self, steps: int, done: int) -> None:
        """The trainer begins; ``done`` of ``steps`` were trained before the run was interrupted."""

    def step(self, step: int, steps: int, logs: Mapping[str, float]) -> None:
        """An optimizer step was done; ``logs`` is empty where nothing was logged."""

    def evaluated(self, step: int, figures: Figures) -> None:
        """The encoder was measured in training."""

    def warning(self, message: str) -> None:
        """Something that one should know; the run goes on."""

    def stage_finished(self, result: StageResult) -> None:
        """A stage is done."""
