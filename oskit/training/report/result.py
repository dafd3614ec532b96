"""What a training run gives back, and keeps as ``report.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from oskit.archive.manifest import short_name
from oskit.data.atomic import write_whole
from oskit.errors import DataError
from oskit.evaluation.offline.significance import Significance, paired_bootstrap
from oskit.training.data.facts import DataFacts, Target
from oskit.training.report.choice import Choice
from oskit.training.report.figures import MEASURES, Figures, Measure
from oskit.training.report.lengths import Lengths

if TYPE_CHECKING:
    from oskit.encoder.model import NeuralSparseEncoder

REPORT = "report.json"
BEST = "best"


_WORDS = {
    "better": "better than before",
    "worse": "WORSE than before",
    "no difference": "not to be told from before",
}
_ON_HELD_OUT = {**_WORDS, "worse": "behind what it was"}


@dataclass(frozen=True)
class StageResult:
    """What one stage did."""

    name: str  # `stage-1` and so on, or the recipe's name where it has no stages
    folder: Path  # where it keeps its things
    best: Path  # folder of its best encoder
    steps: int  # optimizer steps
    choice: Choice  # which checkpoint is the best encoder, and by what
    before: Figures  # of the encoder that it started from
    after: Figures  # of the best encoder, on the whole evaluation collection
    data: DataFacts  # what became of the training data
    seconds: float  # of training, evaluations in it included; of the last run only, if it was resumed
    lengths: Lengths  # what the encoder reads of a text, and what was cut off the texts of the last run
    targets: dict[str, Target] = field(default_factory=dict)  # what became of those of sparsity, by side
    warnings: list[str] = field(default_factory=list)  # what one should know

    @cached_property
    def gain(self) -> Significance:
        """Significance of the difference, over queries: by pooled judgements if there are some."""
        before, after = self.before.quality_per_query, self.after.quality_per_query
        return paired_bootstrap(after, before, name="before training")

    @cached_property
    def own_gain(self) -> Significance | None:
        """The same by held-out queries' own answers alone, where ``gain`` knows more."""
        if self.after.pooled is None:
            return None
        return paired_bootstrap(self.after.per_query, self.before.per_query, name="before training")

    @property
    def verdict(self) -> str:
        """By which judgements the encoder is better or worse than it was, and at which cost, in one line.

        Held-out queries say how their own kind is found, which repeats the words of its answers: an encoder
        that they place behind may be the better one for users (benchmarks/README.md), so they are no verdict.
        """
        held_out = self.data.held_out > 0
        words = _ON_HELD_OUT if held_out else _WORDS
        told, own = words[self.gain.verdict], self.own_gain
        if own is not None and own.verdict == self.gain.verdict:
            told += ", by pooled judgements and by own answers alone"
        elif own is not None:
            told += f" by pooled judgements; by own answers alone it is {words[own.verdict]}"
        before, after = self.before, self.after
        return (
            f"{'on held-out queries ' if held_out else ''}the encoder is {told}, at FLOPS {after.flops:.2f} "
            f"in place of {before.flops:.2f} and {after.document_active:.0f} tokens a document in place of "
            f"{before.document_active:.0f}"
        )

    @property
    def limits(self) -> list[str]:
        """What held-out queries know and cannot tell; nothing of a collection that was given."""
        if not self.data.held_out:
            return []
        half, pooling = (self.gain.high - self.gain.low) / 2, self.data.pooling
        cannot = f"they cannot tell differences below {half:.3f}, and how other people ask"
        if pooling is None:
            return [f"held-out queries know their own answers alone; {cannot}"]
        taught = pooling["taught"]
        more = "" if taught is None else f", {taught:.1f} that the teachers place high"
        return [
            f"held-out queries have {pooling['own']:.1f} answers of their own; pooled judgements add "
            f"{pooling['same']:.1f} texts nearly the same, {pooling['subject']:.1f} of the same "
            f"subject{more}",
            f"{cannot}: their own answers repeat {pooling['overlap']:.0%} of their words; judged queries of "
            "users can (evaluation.collection)",
        ]

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
    """What a run did."""

    folder: Path  # the run's
    encoder: Path  # folder of the best encoder of the last stage
    stages: list[StageResult]
    # what the last stage brought beside the one before, over queries, if both were measured on the same
    # collection; None for a single stage
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
