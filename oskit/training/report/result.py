"""What a training run gives back, and keeps as ``report.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from oskit.archive.manifest import short_name
from oskit.data.atomic import write_whole
from oskit.errors import DataError
from oskit.evaluation.offline.significance import Significance
from oskit.training.data.facts import DataFacts, Target
from oskit.training.report.choice import Choice
from oskit.training.report.figures import MEASURES, Figures, Measure
from oskit.training.report.lengths import Lengths
from oskit.training.report.verdict import limits, verdict

if TYPE_CHECKING:
    from oskit.encoder.model import NeuralSparseEncoder

REPORT = "report.json"
BEST = "best"


@dataclass(frozen=True)
class StageResult:
    """What one stage did.

    Attributes:
        name: ``stage-1`` and so on, or the recipe's name where it has no stages.
        folder: Where it keeps its things.
        best: Folder of its best encoder.
        steps: Optimizer steps.
        choice: Which checkpoint is the best encoder, and by what.
        before: Figures of the encoder that it started from.
        after: Figures of the best encoder, on the whole evaluation collection.
        gain: Significance of the difference, over queries: by pooled judgements if there are some.
        own_gain: The same by held-out queries' own answers alone, where ``gain`` knows more.
        data: What became of the training data.
        seconds: Of training, evaluations in it included; of the last run only, if it was resumed.
        lengths: What the encoder reads of a text, and what was cut off the texts of the last run.
        targets: What became of the targets of sparsity, by side.
        warnings: What one should know.
    """

    name: str
    folder: Path
    best: Path
    steps: int
    choice: Choice
    before: Figures
    after: Figures
    gain: Significance
    data: DataFacts
    seconds: float
    lengths: Lengths
    targets: dict[str, Target] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    own_gain: Significance | None = None

    @property
    def verdict(self) -> str:
        """Whether it is better than before, by which judgements and at which cost."""
        held_out = self.data.held_out > 0
        return verdict(self.before, self.after, self.gain, self.own_gain, held_out=held_out)

    @property
    def limits(self) -> list[str]:
        """What held-out queries cannot tell; nothing of a collection that was given."""
        return limits(self.data.pooling, self.gain) if self.data.held_out else []

    def to_dict(self) -> dict[str, Any]:
        """As JSON can carry it."""
        return {
            **asdict(self),
            **{name: getattr(self, name).to_dict() for name in ("before", "after", "gain", "lengths")},
            "own_gain": self.own_gain and self.own_gain.to_dict(),
            "folder": str(self.folder),
            "best": str(self.best),
            "seconds": round(self.seconds, 1),
            "verdict": self.verdict,
            "limits": self.limits,
        }

    def write(self, path: Path) -> None:
        """Write all of it, figures of each query included, whole or not at all."""
        write_whole(path, json.dumps({**asdict(self), "folder": "", "best": self.best.name}))

    @classmethod
    def read(cls, path: Path) -> StageResult:
        """What :meth:`write` wrote; the folder may have been moved since.

        Raises:
            DataError: It is not that.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            places = {"folder": path.parent, "best": path.parent / values["best"]}
            return TypeAdapter(cls).validate_python({**values, **places})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path} cannot be read: {error}", hint="Remove it to train the stage anew."
            ) from error


@dataclass(frozen=True)
class TrainingResult:
    """What a run did.

    Attributes:
        folder: The run's folder.
        encoder: Folder of the best encoder of the last stage.
        stages: The stages.
        gain: What the last stage brought beside the one before, over queries, if both were measured on the
            same collection; None for a single stage.
    """

    folder: Path
    encoder: Path
    stages: list[StageResult]
    gain: Significance | None = None

    def load(self) -> NeuralSparseEncoder:
        """The best encoder of the last stage."""
        from oskit.encoder.model import NeuralSparseEncoder

        return NeuralSparseEncoder.from_pretrained(self.encoder, fallback=False)

    @property
    def name(self) -> str:
        """What the encoder is called: like the run's folder, as by ``oskit export``."""
        return short_name(str(self.encoder))

    @property
    def before(self) -> Figures:
        """Figures of the encoder that the run started from."""
        return self.stages[0].before

    @property
    def after(self) -> Figures:
        """Figures of the encoder that it ended with."""
        return self.stages[-1].after

    @property
    def measured(self) -> dict[str, Figures]:
        """Before, and after each stage: columns of a table."""
        return {"before": self.before, **{f"after {stage.name}": stage.after for stage in self.stages}}

    @property
    def measures(self) -> list[Measure]:
        """Those that all of them have; a stage may be measured on another collection."""
        found = self.measured.values()
        return [one for one in MEASURES if all(one in figures.measures for figures in found)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can carry it."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "encoder": str(self.encoder),
            "stages": [stage.to_dict() for stage in self.stages],
            "gain_of_last_stage": self.gain and self.gain.to_dict(),
        }

    def write(self) -> None:
        """Write ``report.json`` into the run's folder."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        write_whole(self.folder / REPORT, text + "\n")
