"""One stage of a run: from its recipe to its best encoder and what that is worth."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from oskit.archive.truncation import Truncation
from oskit.data.atomic import write_whole
from oskit.data.duplicates import SeenTexts
from oskit.encoder.loader.quiet import quiet_libraries
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.cut import biases, cut
from oskit.errors import TrainingError, TrainingInterrupted
from oskit.training.data.arrow import candidate_rows, column_of
from oskit.training.loop.arguments import rate_of, total_steps, training_arguments
from oskit.training.loop.average import Average
from oskit.training.loop.event_log import Telling
from oskit.training.loop.events import Listener
from oskit.training.loop.folder import CHECKPOINTS, DATA, FACTS, RESULT
from oskit.training.loop.guards import Guards
from oskit.training.loop.interruption import Interruption
from oskit.training.loop.prepare import Prepared, open_prepared, prepare
from oskit.training.loop.student import (
    clear_negative_weights,
    finish_student,
    head_parameters,
    kept_share,
    load_student,
    plain_attention,
    some_passages,
)
from oskit.training.loop.trainer import OskitTrainer
from oskit.training.objective.batches import ROUTES, DrawnExamples, ExampleCollator, KnownPairs
from oskit.training.objective.objective import TrainingLoss
from oskit.training.objective.sparsity import SparsityWeights
from oskit.training.ranks import is_first, wait_for, world_size
from oskit.training.recipe.known_problems import risks
from oskit.training.recipe.recipe import Recipe
from oskit.training.report.choice import Choice, Rule
from oskit.training.report.curves import write_curves
from oskit.training.report.figures import Figures
from oskit.training.report.lengths import Lengths, truncation_of
from oskit.training.report.result import BEST, StageResult
from oskit.training.report.yardstick import RetrievalEvaluator

if TYPE_CHECKING:
    from datasets import Dataset

_BEFORE = "before.json"


def train_stage(recipe: Recipe, folder: Path, *, name: str, listener: Listener) -> StageResult:
    """Train one stage, or go on with it, or read what it did if it is done.

    Raises:
        DataError: Data cannot be read, or the folder not be written.
        EncoderError: The encoder cannot be loaded.
        TrainingError: Training cannot start or cannot go on.
        TrainingInterrupted: It was stopped, and a checkpoint saved.
    """
    if (folder / RESULT).exists():
        return StageResult.read(folder / RESULT)
    folder.mkdir(parents=True, exist_ok=True)
    return _Stage(recipe, folder, name, listener).run()


@dataclass
class _Stage:
    """The steps of :func:`train_stage`, with what they share."""

    recipe: Recipe
    folder: Path
    name: str
    listener: Listener
    warnings: list[str] = field(default_factory=list)
    lengths: Lengths = field(init=False)

    def run(self) -> StageResult:
        listener = self.listener
        # What the trainer refuses is told now, not after what may take hours.
        training_arguments(self.recipe, self.folder, 1, rates={}, routes={})
        if world_size() == 1 and (gpus := torch.cuda.device_count()) > 1:
            all_of_them = f"torchrun --standalone --nproc-per-node {gpus} -m oskit train"
            self._warn(f"one of {gpus} GPUs is used; for all of them: {all_of_them}")
        for risk in risks(self.recipe):
            self._warn(risk)
        listener.doing("loading the encoder")
        encoder = load_student(self.recipe.encoder, seed=self.recipe.seed)
        part = self.recipe.encoder
        if part.keep > (share := kept_share(encoder, part)):
            self._warn(f"encoder.keep is left aside: {part.name} cannot search yet, nothing is to be kept")
        own = encoder.own_max_length or encoder.max_length
        length, trained = encoder.max_length, self.recipe.schedule.max_length
        self.lengths = Lengths(length, own if length < own else None, min(trained or length, length))
        if self.lengths.warning:
            self._warn(self.lengths.warning)
        if is_first():
            prepare(self.recipe, self.folder / DATA, encoder.vocabulary, listener)
        else:
            wait_for(self.folder / DATA / FACTS)
        prepared = open_prepared(self.recipe, self.folder / DATA)
        encoder = finish_student(
            encoder, self.recipe.encoder, passages=prepared.corpus, idf=prepared.idf, seed=self.recipe.seed
        )
        if self.recipe.sparsity.cut is not None:
            biases(encoder)  # not after what may take hours
        encoder.precision = "auto"  # measured alike before, while and after it is trained
        if is_first():
            self.lengths = replace(
                self.lengths, truncation=self._counted(encoder, prepared.examples, prepared.corpus)
            )
        before = self._before(encoder, prepared)
        plain_attention(encoder, self.lengths.trained)
        self._average = Average(encoder, share)
        started = time.monotonic()
        trainer = self._trainer(encoder, prepared)
        self._train(trainer)
        seconds = time.monotonic() - started
        if is_first():
            self._finish(trainer, prepared, before, seconds)
        else:
            wait_for(self.folder / RESULT)
        return StageResult.read(self.folder / RESULT)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.listener.warning(text)

    def _before(self, encoder: NeuralSparseEncoder, prepared: Prepared) -> Figures:
        path = self.folder / _BEFORE
        if is_first() and not path.exists():
            self.listener.doing("measuring the encoder before training")
            write_whole(path, json.dumps(asdict(prepared.yardstick.measure(encoder))))
        wait_for(path)
        return Figures(**json.loads(path.read_text(encoding="utf-8")))

    def _trainer(self, encoder: NeuralSparseEncoder, prepared: Prepared) -> OskitTrainer:
        recipe, schedule = self.recipe, self.recipe.schedule
        drawn = DrawnExamples(
            prepared.examples,
            prepared.corpus,
            negatives=prepared.facts.negatives,
            top=recipe.data.sampling.best,
            seed=recipe.seed,
        )
        total = total_steps(schedule, len(drawn))
        contrasts = any(loss.kind == "info_nce" for loss in recipe.loss)
        loss = TrainingLoss(
            encoder,
            recipe.loss,
            recipe.sparsity,
            idf=prepared.idf,
            known=KnownPairs(prepared.examples, prepared.corpus) if contrasts else None,
            teachers=prepared.teachers,
        )
        mapping = ROUTES if encoder.anatomy.queries is not None else {}
        self._telling = Telling(self.folder, self.listener)
        self._interruption = Interruption()
        sparsity = SparsityWeights(recipe.sparsity.ramp, total, loss.penalties)
        self._rule = Rule(sparsity.ramp.end, recipe.evaluation.max_flops)
        with quiet_libraries():
            return OskitTrainer(
                guards=Guards(recipe, vocabulary=encoder.vocabulary.size, ramp_end=sparsity.ramp.end),
                sparsity=sparsity,
                average=self._average,
                micro_batch_size=schedule.micro_batch_size,
                on_note=self._warn,
                model=encoder,
                args=training_arguments(
                    recipe, self.folder, total, rates=self._rates(loss, encoder), routes=mapping
                ),
                train_dataset=drawn,
                loss=loss,
                evaluator=RetrievalEvaluator(prepared.yardstick, self._rule, self.listener.evaluated),
                data_collator=ExampleCollator(
                    preprocess_fn=encoder.preprocess,
                    max_length=self.lengths.trained,
                    router_mapping=mapping,
                    teachers=prepared.teachers,
                ),
                callbacks=[self._telling, self._interruption],
            )

    def _counted(self, encoder: NeuralSparseEncoder, examples: Dataset, corpus: Dataset) -> Truncation | None:
        """What is cut off the texts of the examples, each of which counts once, however often it is read."""
        # The table of an inference-free encoder tokenizes queries by itself and truncates none.
        asked = [] if encoder.anatomy.queries is not None else column_of(examples, "query")
        texts = chain(asked, column_of(corpus, "text", candidate_rows(examples, corpus)))
        length = self.lengths.trained
        with closing(SeenTexts()) as seen:
            new = filter(seen.add, texts)
            return truncation_of(new, length, lambda block: encoder.anatomy.tokenize(block, length))

    def _rates(self, loss: TrainingLoss, encoder: NeuralSparseEncoder) -> dict[str, float]:
        schedule, table = self.recipe.schedule, encoder.anatomy.queries
        rates: dict[str, float] = {}
        if schedule.head_learning_rate is not None:
            rate_of(rates, loss, head_parameters(encoder), schedule.head_learning_rate)
        if table is not None and table.weight.requires_grad:
            rate_of(rates, loss, [table.weight], schedule.query_learning_rate)
        return rates

    def _train(self, trainer: OskitTrainer) -> None:
        checkpoint = self._last_checkpoint()
        done = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
        self.listener.training_started(trainer.args.max_steps, done)
        try:
            with self._interruption.watching(), quiet_libraries():
                trainer.train(resume_from_checkpoint=checkpoint)
        except TrainingError as error:
            kept = self._last_checkpoint()
            where = f" The last good checkpoint is {kept}." if kept else ""
            raise TrainingError(error.message, hint=f"{error.hint or ''}{where}") from error
        if self._interruption.happened:
            raise TrainingInterrupted(
                f"interrupted at step {trainer.state.global_step} of {trainer.args.max_steps}; "
                f"a checkpoint is in {self.folder / CHECKPOINTS}",
                hint="Go on with the same command and --resume.",
            )

    def _last_checkpoint(self) -> str | None:
        """The last checkpoint that was written whole: the trainer's state is the last of its files."""
        root = self.folder / CHECKPOINTS
        if not root.is_dir():
            return None
        numbered = sorted(
            (int(path.name.rsplit("-", 1)[1]), path)
            for path in root.glob("checkpoint-*")
            if (path / "trainer_state.json").is_file()
        )
        return str(numbered[-1][1]) if numbered else None

    def _finish(self, trainer: OskitTrainer, prepared: Prepared, before: Figures, seconds: float) -> None:
        """Save the best encoder and measure it as whoever opens it would."""
        self._average.apply(trainer.model)
        clear_negative_weights(trainer.model)
        if (active := self.recipe.sparsity.cut) is not None:
            cut(trainer.model, some_passages(prepared.corpus, self.recipe.seed), active)
        best = self.folder / BEST
        with quiet_libraries():
            trainer.model.save_pretrained(str(best), create_model_card=False)
        self.listener.doing("measuring the best encoder")
        encoder = NeuralSparseEncoder.from_pretrained(best, fallback=False)
        encoder.precision = "auto"
        after = prepared.yardstick.measure(encoder)
        result = StageResult(
            name=self.name,
            folder=self.folder,
            best=best,
            steps=trainer.state.global_step,
            choice=Choice.of(self._rule, trainer.state.log_history, after.quality_logged),
            before=before,
            after=after,
            data=prepared.facts,
            seconds=seconds,
            lengths=self.lengths,
            targets=trainer.sparsity.outcome(after.logs()),
            warnings=self.warnings,
        )
        if result.gain.verdict == "worse":
            self._warn(result.verdict)
        for missed in filter(None, (target.missed for target in result.targets.values())):
            self._warn(missed)
        start = {"step": 0, **{f"eval_{key}": value for key, value in before.logs().items()}}
        write_curves([start, *trainer.state.log_history], self.folder, self.name)
        result.write(self.folder / RESULT)
