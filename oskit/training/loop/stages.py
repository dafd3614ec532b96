"""One stage of a run: from its recipe to its best encoder and what that is worth."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from oskit.data.atomic import write_whole
from oskit.data.duplicates import SeenTexts
from oskit.encoder.loader.quiet import quiet_libraries
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import OskitError, TrainingError, TrainingInterrupted, first_line
from oskit.memory import available_memory
from oskit.training.data.arrow import candidate_rows, column_of
from oskit.training.data.leakage import find_leakage
from oskit.training.loop.arguments import passing_on, rate_of, training_arguments
from oskit.training.loop.callbacks import Watch
from oskit.training.loop.events import Listener
from oskit.training.loop.folder import CHECKPOINTS, DATA, FACTS, RESULT, is_done
from oskit.training.loop.guards import Guards
from oskit.training.loop.prepare import Prepared, open_prepared, prepare, trained_queries
from oskit.training.loop.student import (
    Average,
    clear_negative_weights,
    finish_student,
    head_parameters,
    kept_share,
    load_student,
    plain_attention,
)
from oskit.training.loop.trainer import OskitTrainer
from oskit.training.objective.batches import ROUTES, DrawnExamples, ExampleCollator, KnownPairs
from oskit.training.objective.objective import TrainingLoss
from oskit.training.objective.sparsity import SparsityWeights
from oskit.training.ranks import is_first, processes_here, share_of, wait_for, world_size
from oskit.training.recipe.known_problems import risks
from oskit.training.recipe.recipe import Recipe, SchedulePart
from oskit.training.report.choice import Choice, Rule
from oskit.training.report.curves import write_curves
from oskit.training.report.figures import Figures
from oskit.training.report.lengths import Lengths
from oskit.training.report.result import BEST, StageResult
from oskit.training.report.yardstick import RetrievalEvaluator

_BEFORE = "before.json"

KEPT_BYTES = 68
"""That a transformer's layer keeps of a token for the gradients, for each hidden dimension: what goes into
its matrices, norms and activation, in float32 (after Korthikanti et al. 2022, arXiv 2205.05198)."""


def train_stage(
    recipe: Recipe, folder: Path, *, name: str, listener: Listener, earlier: Sequence[Path] = ()
) -> StageResult:
    """Train one stage, or go on with it, or read what it did if it is done.

    ``earlier`` are folders of stages that its encoder has learned from, itself or by a teacher.

    Raises:
        DataError: Data cannot be read, or the folder not be written.
        EncoderError: The encoder cannot be loaded.
        TrainingError: Training cannot start or cannot go on.
        TrainingInterrupted: It was stopped, and a checkpoint saved.
    """
    if not is_done(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _Stage(recipe, folder, name, listener, earlier).run()
        wait_for(folder / RESULT)
    return StageResult.read(folder / RESULT)


@dataclass
class _Stage:
    """The steps of :func:`train_stage`, with what they share."""

    recipe: Recipe
    folder: Path
    name: str
    listener: Listener
    earlier: Sequence[Path]
    warnings: list[str] = field(default_factory=list)

    def run(self) -> None:
        recipe, listener = self.recipe, self.listener
        # What the trainer refuses is told now, not after what may take hours.
        training_arguments(recipe, self.folder, 1, rates={}, routes={})
        if world_size() == 1 and (gpus := torch.cuda.device_count()) > 1:
            all_of_them = f"torchrun --standalone --nproc-per-node {gpus} -m oskit train"
            self._warn(f"one of {gpus} GPUs is used; for all of them: {all_of_them}")
        for risk in risks(recipe):
            self._warn(risk)
        listener.doing("loading the encoder")
        part = recipe.encoder
        encoder = load_student(part, seed=recipe.seed)
        if part.keep > (share := kept_share(encoder, part)):
            self._warn(f"encoder.keep is left aside: {part.name} cannot search yet, nothing is to be kept")
        if (part.architecture or encoder.architecture) == "symmetric":
            rate = SchedulePart.model_fields["query_learning_rate"].default
            idle = {
                "encoder.idf": part.idf is not None,
                "encoder.train_query_weights": part.train_query_weights,
                "schedule.query_learning_rate": recipe.schedule.query_learning_rate != rate,
            }
            for key in (key for key, given in idle.items() if given):
                self._warn(f"{key} changes nothing: a symmetric encoder has no query weights")
        length = encoder.max_length
        self.lengths = Lengths.of(length, encoder.own_max_length or length, recipe)
        if self.lengths.warning:
            self._warn(self.lengths.warning)
        if is_first():
            prepare(recipe, self.folder / DATA, encoder.vocabulary, listener)
        wait_for(self.folder / DATA / FACTS)
        prepared = open_prepared(recipe, self.folder / DATA)
        encoder = finish_student(encoder, part, passages=prepared.corpus, idf=prepared.idf, seed=recipe.seed)
        encoder.precision = "auto"  # measured alike before, while and after it is trained
        if is_first():
            self._tell_leaks(prepared)
        before = self._before(encoder, prepared) if is_first() else None
        wait_for(self.folder / _BEFORE)
        known = json.loads((self.folder / _BEFORE).read_text(encoding="utf-8"))
        longest = known.get("longest") or self.lengths.trained
        self._warn_of_memory(encoder, longest, prepared.facts.negatives)
        plain_attention(encoder, longest)
        self._average = Average(encoder, share)
        started = time.monotonic()
        trainer = self._trainer(encoder, prepared)
        self._train(trainer)
        if before is not None:
            self._finish(trainer, prepared, before, time.monotonic() - started)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.listener.warning(text)

    def _warn_of_memory(self, encoder: NeuralSparseEncoder, longest: int, negatives: int) -> None:
        """On a CPU: where memory does not suffice, the system ends the process without a word."""
        schedule, free = self.recipe.schedule, available_memory()
        spared = schedule.micro_batch_size is not None or schedule.gradient_checkpointing
        if free is None or spared or encoder.device.type != "cpu":
            return
        text = longest * encoder.anatomy.layers * encoder.anatomy.hidden_size * KEPT_BYTES
        texts = share_of(schedule.batch_size) * (1 + negatives)
        if text * texts * processes_here() > free:
            fit = max(1, free // (2 * text * processes_here()))
            self._warn(
                f"a step may take {text * texts / 1e9:.0f} GB of memory ({texts:,} texts of up to {longest:,}"
                f" tokens), and {free / 1e9:.0f} GB are free: schedule.micro_batch_size: {fit}, or a smaller "
                "schedule.max_length, takes less"
            )

    def _tell_leaks(self, prepared: Prepared) -> None:
        """Stages may have other data, or hold out another share of it."""
        asked = prepared.yardstick.collection
        for stage in dict.fromkeys(self.earlier):
            if leaked := find_leakage(trained_queries(stage / DATA), asked).leaked_queries:
                self._warn(
                    f"{leaked:,} of {len(asked.queries):,} evaluation queries were trained on in "
                    f"{stage.name}: the figures are too good; give all stages the same data.train and "
                    "data.hold_out, or an evaluation.collection"
                )

    def _before(self, encoder: NeuralSparseEncoder, prepared: Prepared) -> Figures:
        """Figures of the encoder as training finds it, by what the one that it makes is measured by too.

        What all processes need to know of the texts is written with them.
        """
        self.lengths = self._measured(self.lengths, encoder, prepared)
        path, yardstick = self.folder / _BEFORE, prepared.yardstick.digest()
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # none, or a damaged one
            known = json.loads(path.read_text(encoding="utf-8"))
        if known.get("yardstick") != yardstick:
            if "yardstick" in known:
                self._warn(
                    "the evaluation collection is another than when the run began: the encoder before "
                    "training is measured anew, checkpoints from then were by the former one"
                )
            self.listener.doing("measuring the encoder before training")
            figures = asdict(prepared.yardstick.measure(encoder))
            known = {"yardstick": yardstick, "longest": self.lengths.longest, "figures": figures}
            write_whole(path, json.dumps(known))
        return Figures(**known["figures"])

    def _trainer(self, encoder: NeuralSparseEncoder, prepared: Prepared) -> OskitTrainer:
        recipe, schedule, table = self.recipe, self.recipe.schedule, encoder.anatomy.queries
        drawn = DrawnExamples(
            prepared.examples,
            prepared.corpus,
            negatives=prepared.facts.negatives,
            top=recipe.data.sampling.best,
            seed=recipe.seed,
        )
        if schedule.steps is None and len(drawn) < schedule.batch_size and world_size() > 1:
            raise TrainingError(
                f"{len(drawn)} examples are fewer than a batch of {schedule.batch_size}",
                hint="Lower schedule.batch_size, or use one process.",
            )
        total = schedule.steps_of(len(drawn))
        contrasts = any(loss.kind == "info_nce" for loss in recipe.loss)
        loss = TrainingLoss(
            encoder,
            recipe.loss,
            recipe.sparsity,
            idf=prepared.idf,
            known=KnownPairs(prepared.examples, prepared.corpus) if contrasts else None,
            teachers=prepared.teachers,
        )
        rates: dict[str, float] = {}
        if schedule.head_learning_rate is not None:
            rates |= rate_of(loss, head_parameters(encoder), schedule.head_learning_rate)
        if table is not None and table.weight.requires_grad:
            rates |= rate_of(loss, [table.weight], schedule.query_learning_rate)
        routes = ROUTES if table is not None else {}
        self._watch = Watch(self.folder, self.listener)
        sparsity = SparsityWeights(recipe.sparsity.ramp, total, loss.penalties)
        self._rule = Rule(sparsity.ramp.end, recipe.evaluation.max_flops)
        with passing_on(recipe), quiet_libraries():
            return OskitTrainer(
                guards=Guards(recipe, vocabulary=encoder.vocabulary.size, ramp_end=sparsity.ramp.end),
                sparsity=sparsity,
                average=self._average,
                micro_batch_size=schedule.micro_batch_size,
                on_note=self._warn,
                model=encoder,
                args=training_arguments(recipe, self.folder, total, rates=rates, routes=routes),
                train_dataset=drawn,
                loss=loss,
                evaluator=RetrievalEvaluator(prepared.yardstick, self._rule, self.listener.evaluated),
                data_collator=ExampleCollator(
                    preprocess_fn=encoder.preprocess,
                    max_length=self.lengths.trained,
                    router_mapping=routes,
                    teachers=prepared.teachers,
                ),
                callbacks=[self._watch],
            )

    def _measured(self, lengths: Lengths, encoder: NeuralSparseEncoder, prepared: Prepared) -> Lengths:
        """With the texts of the examples, each of which counts once, however often it is read."""
        examples, corpus = prepared.examples, prepared.corpus
        # The table of an inference-free encoder tokenizes queries by itself and truncates none.
        asked = [] if encoder.anatomy.queries is not None else column_of(examples, "query")
        texts = chain(asked, column_of(corpus, "text", candidate_rows(examples, corpus)))
        with closing(SeenTexts()) as seen:
            new = filter(seen.add, texts)
            return lengths.with_texts(new, lambda block: encoder.anatomy.tokenize(block, lengths.trained))

    def _train(self, trainer: OskitTrainer) -> None:
        checkpoint = self._last_checkpoint()
        done = _step_of(checkpoint) if checkpoint else 0
        self.listener.training_started(trainer.args.max_steps, done)
        passing = passing_on(self.recipe, unless=lambda: checkpoint is not None or self._watch.began)
        try:
            with passing, self._watch.signals(), quiet_libraries():
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        except TrainingError as error:
            kept = self._last_checkpoint()
            where = f" The last good checkpoint is {kept}." if kept else ""
            raise TrainingError(error.message, hint=f"{error.hint or ''}{where}") from error
        except OskitError:
            raise
        except Exception as error:  # whatever the trainer, the optimizer, torch and json raise
            if checkpoint is None or self._watch.began:
                raise
            raise TrainingError(
                f"the checkpoint {checkpoint} cannot be read: {first_line(error)}",
                hint="Remove it to go on from the one before, or to train anew.",
            ) from error
        if self._watch.interrupted:
            raise TrainingInterrupted(
                f"interrupted at step {trainer.state.global_step} of {trainer.args.max_steps}; "
                f"a checkpoint is in {self.folder / CHECKPOINTS}",
                hint="Go on with the same command and --resume.",
            )

    def _last_checkpoint(self) -> Path | None:
        """The last checkpoint that was written whole: the trainer's state is the last of its files."""
        whole = (self.folder / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")
        return max((path.parent for path in whole), key=_step_of, default=None)

    def _finish(self, trainer: OskitTrainer, prepared: Prepared, before: Figures, seconds: float) -> None:
        """Save the best encoder and measure it as whoever opens it would."""
        self._average.apply(trainer.model)
        clear_negative_weights(trainer.model)
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


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
