"""Train and measure each variant once for each seed; what is done already is not done again."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.models import minilm
from benchmarks.quality.data import DEV, Workspace, passages, staged
from benchmarks.quality.measure import (
    Measured,
    measure_bm25,
    measure_dense,
    measure_encoder,
)
from benchmarks.quality.variants import VARIANTS, Recipe, Scale, Variant
from oskit.encoder.loader.report import UntrainedProjectionWarning
from oskit.errors import TrainingError, TrainingInterrupted
from oskit.training.auto.look import fast_bfloat16
from oskit.training.recipe.tree import merge

if TYPE_CHECKING:
    from oskit.encoder.model import NeuralSparseEncoder

BM25, DENSE = "BM25", "dense teacher"

FITTED_TEXTS = 1000
"""Passages that a closed-form head is fitted to."""


@dataclass(frozen=True)
class Result:
    """One variant with one seed.

    Attributes:
        variant: Name.
        seed: Of the training, or of the random head.
        measured: By collection.
        train_seconds: None where nothing is trained.
        failure: Why the training ended early, in which case nothing was measured.
    """

    variant: str
    seed: int
    measured: dict[str, Measured]
    train_seconds: float | None = None
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All attributes, for JSON."""
        measured = {name: values.to_dict() for name, values in self.measured.items()}
        return {**vars(self), "measured": measured}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """What :meth:`to_dict` gave."""
        measured = {name: Measured.from_dict(found) for name, found in values["measured"].items()}
        return cls(**{**values, "measured": measured})


class Runner:
    """Makes results, or finds them in the working folder.

    Args:
        work: Data and working folder.
        scale: How much is computed.
        tell: Shows a line of progress.
    """

    def __init__(self, work: Workspace, scale: Scale, tell: Callable[[str], None]) -> None:
        self._work = work
        self._scale = scale
        self._tell = tell
        self._results = work.work / f"{scale.name}-{work.on}"

    def measured_on(self, collections: Sequence[str]) -> list[str]:
        """Those of some collections that there are: only some have a development set."""
        return [name for name in collections if self._work.on == "test" or name in DEV]

    def reference(self, name: str, collection: str) -> Result:
        """BM25 or the dense teacher on a collection."""

        def make() -> Result:
            self._tell(f"{name}: measuring on {collection}")
            found = self._work.collection(collection)
            if name == BM25:
                return Result(name, 0, {collection: measure_bm25(found)})
            measured = measure_dense(str(minilm()), found)
            return Result(name, 0, {collection: measured})

        key = {
            "corpus": self._work.corpus,
            "queries": self._work.queries,
        }
        return self._kept(f"{name.replace(' ', '-')}-{collection}", key, make)

    def result(self, name: str, seed: int) -> Result:
        """A variant with a seed."""
        variant = VARIANTS[name]
        seed = seed if variant.seeded else 0
        recipe = self._recipe(variant, seed)
        key = {
            "recipe": recipe,
            "collections": variant.collections,
            "corpus": self._work.corpus,
            "scale": asdict(self._scale),
            "rules": variant.rules,
        }
        return self._kept(f"{name}-{seed}", key, lambda: self._make(variant, seed, recipe))

    def _recipe(self, variant: Variant, seed: int) -> Recipe | None:
        if variant.recipe is None:
            return None
        changes = {"name": variant.name, "seed": seed}
        recipe = merge(variant.recipe(self._work, self._scale), changes)
        if fast_bfloat16():
            narrow = [
                {**teacher, "precision": "bfloat16"} if teacher["kind"] == "dense" else teacher
                for teacher in recipe["teachers"]
            ]
            recipe = merge(recipe, {"schedule": {"precision": "bf16"}, "teachers": narrow})
        return recipe

    def _make(self, variant: Variant, seed: int, recipe: Recipe | None) -> Result:
        seconds = None
        if recipe is None:
            assert variant.base is not None
            encoder = self._untrained(variant, variant.base(self._scale), seed)
        else:
            try:
                encoder, seconds = self._trained(recipe)
            except TrainingInterrupted:
                raise  # no failure: the next call goes on from the checkpoint
            except TrainingError as error:
                return Result(variant.name, seed, {}, failure=error.message)
        measured = {}
        for name in self.measured_on(variant.collections):
            self._tell(f"{variant.name}, seed {seed}: measuring on {name}")
            measured[name] = measure_encoder(encoder, self._work.collection(name), variant.rules)
        return Result(variant.name, seed, measured, seconds)

    def _untrained(self, variant: Variant, folder: Path, seed: int) -> NeuralSparseEncoder:
        from oskit.encoder.model import NeuralSparseEncoder
        from oskit.encoder.surgery.dense_head import fit_dense_head
        from oskit.encoder.surgery.lexical_head import fit_lexical_head

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrainedProjectionWarning)
            encoder = NeuralSparseEncoder.from_pretrained(folder, seed=seed)
        if variant.head == "lexical":
            texts = passages(self._work.pairs_file())
            step = max(1, len(texts) // FITTED_TEXTS)
            fit_lexical_head(encoder, texts[seed::step])
        if variant.head == "dense":
            documents = self._work.collection(variant.collections[0]).documents()
            fit_dense_head(encoder, [document.passage for document in documents], seed=seed)
        return encoder

    def _trained(self, recipe: Recipe) -> tuple[NeuralSparseEncoder, float]:
        """The trained encoder, and the seconds of training alone."""
        from oskit.training.loop.folder import CHECKPOINTS
        from oskit.training.loop.run import train

        self._tell(f"{recipe['name']}, seed {recipe['seed']}: training")
        folder = self._folder(recipe)
        result = train(recipe, folder, resume=folder.exists())
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # three times the encoder's size
        return result.load(), sum(stage.seconds for stage in result.stages)

    def _folder(self, recipe: Recipe | None) -> Path:
        """Of a run: another recipe has another one, so that an interrupted run can go on."""
        assert recipe is not None
        name = f"{recipe['name']}-{recipe['seed']}-{_digest(recipe)[:8]}"
        return self._results / "runs" / name

    def _kept(self, name: str, key: dict[str, Any], make: Callable[[], Result]) -> Result:
        path = self._results / "results" / f"{name}.json"
        digest = _digest(key)
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["key"] == digest:
                return Result.from_dict(kept["result"])
        result = make()
        with staged(path) as staging:
            staging.write_text(json.dumps({"key": digest, "result": result.to_dict()}), encoding="utf-8")
        return result


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
