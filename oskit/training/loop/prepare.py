"""From a recipe's sources to what the trainer reads: once, on disk, for all processes and resumed runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.data.atomic import write_whole
from oskit.data.collection import QRELS, Collection, read_qrels, write_qrels
from oskit.encoder.document_frequencies import corpus_idf
from oskit.errors import DataError, TrainingError
from oskit.training.data.arrow import (
    EXAMPLES,
    RowWriter,
    candidate_blocks,
    candidate_counts,
    column_of,
    numbers_of,
    open_rows,
)
from oskit.training.data.facts import DataFacts
from oskit.training.data.holdout import hold_out
from oskit.training.data.leakage import drop_leaking, find_leakage
from oskit.training.data.training_data import TrainingData, load_training_data
from oskit.training.loop.events import Listener
from oskit.training.loop.folder import FACTS
from oskit.training.loop.preflight import no_negatives
from oskit.training.mining.miner import mine_negatives
from oskit.training.recipe.recipe import Recipe, SamplingPart
from oskit.training.recipe.sources import QuerySettings
from oskit.training.report.pooling import LARGEST, POOLED, pool
from oskit.training.report.yardstick import Yardstick, capped
from oskit.training.teachers.batch import BatchTeachers
from oskit.training.teachers.ensemble import EnsembleTeacher

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from oskit.archive.vocabulary import Vocabulary

_EXAMPLES = "ready.arrow"
_HELD_OUT = "held-out"
_IDF = "idf.npy"
_TEACHERS = "batch-teachers"


@dataclass(frozen=True)
class Prepared:
    """What the trainer needs."""

    # as :data:`oskit.training.data.arrow.EXAMPLES` says, and `labels` where the teachers gave some
    examples: Dataset
    corpus: Dataset  # the training corpus, columns `id` and `text`
    yardstick: Yardstick  # what is evaluated on
    teachers: BatchTeachers | None  # those that label whole batches; None where there are none
    # IDF of the training corpus, float32 `[vocabulary]`; None where nothing needs it
    idf: NDArray[np.float32] | None
    facts: DataFacts  # what became of the data


def prepare(recipe: Recipe, folder: Path, vocabulary: Vocabulary, listener: Listener) -> None:
    """Read, hold out, look for leakage, mine, label, and write all of it into ``folder``.

    Nothing is done if it is all there, which is how a resumed run finds it. Teachers' scores have a cache of
    their own, so a run that was interrupted here does not compute them again either.

    Raises:
        DataError: A source or the collection cannot be read, or nothing is left to train on.
        TrainingError: No teacher is left, negatives are needed and there are none, or training queries leak
            and the recipe calls that an error.
    """
    if not (folder / FACTS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        facts = _Maker(recipe, folder, listener).make(vocabulary)
        # Last of all: its presence says that the rest is whole.
        write_whole(folder / FACTS, json.dumps(asdict(facts), indent=1) + "\n")


def open_prepared(recipe: Recipe, folder: Path) -> Prepared:
    """Open what :func:`prepare` wrote, memory-mapped.

    Raises:
        DataError: A file is missing.
    """
    try:
        facts = DataFacts(**json.loads((folder / FACTS).read_text(encoding="utf-8")))
        examples, corpus = open_rows(folder / _EXAMPLES), open_rows(folder / "corpus.arrow")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"the prepared data in {folder} cannot be read: {error}",
            hint="Remove the folder to prepare it anew.",
        ) from error
    idf = np.load(folder / _IDF) if (folder / _IDF).exists() else None
    teachers = BatchTeachers(folder / _TEACHERS) if "batch" in recipe.labelled else None
    return Prepared(examples, corpus, _yardstick(recipe, folder), teachers, idf, facts)


def trained_queries(folder: Path) -> list[str]:
    """The queries that are trained on, of what :func:`prepare` wrote."""
    return list(column_of(open_rows(folder / _EXAMPLES), "query"))


def _yardstick(recipe: Recipe, folder: Path) -> Yardstick:
    """The same before, in and after training: a part of the collection where the recipe says so."""
    evaluation, pooled = recipe.evaluation, folder / _HELD_OUT / QRELS / f"{POOLED}.tsv"
    if evaluation.collection is not None:
        whole = Collection.open(evaluation.collection, evaluation.split)
    else:
        whole = Collection.open(folder / _HELD_OUT)
    part = capped(whole, queries=evaluation.queries, corpus=evaluation.corpus)
    return Yardstick(part, read_qrels(pooled) if evaluation.collection is None and pooled.exists() else None)


@dataclass
class _Maker:
    """The steps of :func:`prepare`, with what they share."""

    recipe: Recipe
    folder: Path
    listener: Listener
    notes: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)  # some of the facts

    def make(self, vocabulary: Vocabulary) -> DataFacts:
        recipe, listener = self.recipe, self.listener
        listener.doing("reading training data")
        whole = load_training_data(
            recipe.data.train,
            folder=self.folder,
            seed=recipe.seed,
            progress=lambda count: listener.advance("records", count),
        )
        for number, source in enumerate(whole.sources):
            given, kind = recipe.data.train[number], source.kind
            idle = {
                "queries": kind != "documents" and given.queries != QuerySettings(),
                "min_relevance": kind not in ("beir", "candidates") and given.min_relevance != 1,
                "judged_negatives": kind not in ("beir", "candidates") and not given.judged_negatives,
            }
            for key in (key for key, without_effect in idle.items() if without_effect):
                self._note(f"data.train.{number}.{key} changes nothing: {source.name} has {kind}")
            if source.ignored:
                self._note(f"{source.name}: not understood and not used: {', '.join(source.ignored)}")
        scored = any(source.scored for source in whole.sources)
        kinds = {teacher.kind for teacher in recipe.labelling}
        if scored and "stored" not in kinds:
            self._note("the data has scores that nobody reads; a teacher {kind: stored} learns them")
        if not scored and kinds == {"stored"}:
            raise DataError(  # not after mining for an hour
                "the data has no scores, and the recipe has no other teacher",
                hint="Name another teacher, or data with a column of scores.",
            )
        data = self._separate(whole)
        for note in data.notes:
            self._note(note)
        self._write_idf(data, vocabulary)
        teachers = None
        if recipe.labelling or recipe.miner is not None:
            teachers = EnsembleTeacher.from_recipe(recipe)
        if recipe.data.negatives is not None:
            listener.doing("mining negatives")
            data, report = mine_negatives(
                data,
                recipe.data.negatives,
                teachers=teachers,
                folder=self.folder,
                progress=listener.advance,
            )
            self.found["mining"] = asdict(report)
            listener.doing(str(report))
        data = self._ready(data, teachers)
        if self.found.get("held_out") and recipe.evaluation.judgements == "pooled":
            self._pool(whole, teachers)
        return DataFacts(
            examples=len(data),
            visits=data.visits,
            negatives=self._negatives(data.examples),
            sources=[source.to_dict() for source in data.sources],
            teachers=None if teachers is None else asdict(teachers.report),
            notes=self.notes,
            **self.found,
        )

    def _ready(self, data: TrainingData, teachers: EnsembleTeacher | None) -> TrainingData:
        """The examples that can be trained on, labelled, as they stay on disk."""
        recipe, progress = self.recipe, self.listener.advance
        data = data.with_examples(self._usable(data.examples))
        if "own" in recipe.labelled:
            assert teachers is not None
            if not self._negatives(data.examples):
                raise no_negatives()
            self.listener.doing("asking the teachers")
            teachers.label(data, folder=self.folder, progress=progress)
            (self.folder / "labelled.arrow").replace(self.folder / _EXAMPLES)
        else:
            with RowWriter(self.folder / _EXAMPLES, EXAMPLES) as writer:
                for block in candidate_blocks(data.examples):
                    writer.add_table(block.table)
        data = data.with_examples(open_rows(self.folder / _EXAMPLES))
        if teachers is not None:
            if "batch" in recipe.labelled:
                self.listener.doing("asking the teachers")
                BatchTeachers.write(teachers, data, self.folder / _TEACHERS, progress=progress)
            report = teachers.report
            if report.unknown:
                self._note(f"{report.unknown:,} of {report.candidates:,} candidates are known to no teacher")
            if report.alike:
                self._note(
                    f"{report.alike:,} of {len(data):,} queries have candidates that the teachers score all "
                    "alike: from these is learned that none is better than another"
                )
            teachers.release()
        for name in ("examples.arrow", "mined.arrow"):  # of no use any more
            (self.folder / name).unlink(missing_ok=True)
        return data

    def _usable(self, examples: Dataset) -> Dataset:
        """Those that have something to learn from: a known positive, or two candidates to be ranked."""
        usable = (numbers_of(examples, "positives") > 0) | (candidate_counts(examples) > 1)
        if useless := int((~usable).sum()):
            self._note(
                f"{useless:,} queries without a known positive have one candidate alone, and are left out"
            )
            examples = examples.select(np.flatnonzero(usable))
        if not len(examples):
            raise DataError("nothing is left to train on", hint="Use other training data.")
        return examples

    def _negatives(self, examples: Dataset) -> int:
        """How many documents are read beside the first one: what most have, up to what is asked for."""
        counts = candidate_counts(examples) - np.maximum(numbers_of(examples, "positives"), 1)
        most = int(np.median(counts[counts > 0])) if (counts > 0).any() else 0
        sampling = self.recipe.data.sampling
        number = min(sampling.negatives, most)
        if not most and sampling != SamplingPart():
            self._note("data.sampling changes nothing: no query has candidates beside a positive")
        if short := int((counts < number).sum()):
            self._note(
                f"{short:,} queries have fewer than {number} candidates beside a positive; others' fill up"
            )
        return number

    def _separate(self, data: TrainingData) -> TrainingData:
        """Keep evaluation out of the training data."""
        evaluation, leakage = self.recipe.evaluation, self.recipe.data.leakage
        if evaluation.collection is None:
            # Not the recipe's seed: runs with other seeds are measured on the same queries.
            share, place = self.recipe.data.hold_out, self.folder / _HELD_OUT
            data, held = hold_out(data, fraction=share, seed=0, folder=place)
            self.found["held_out"] = len(held.queries)
            return data
        self.listener.doing("looking for leakage")
        report = find_leakage(data, Collection.open(evaluation.collection, evaluation.split))
        self.found["leakage"] = report.to_dict()
        if not report.leaks:
            return data
        if leakage == "error":
            raise TrainingError(str(report), hint="Drop them with data.leakage: drop.")
        if leakage == "report":
            self.listener.warning(f"{report}; they are trained on (data.leakage: report)")
            return data
        self.listener.warning(f"{report}; dropped from training")
        self.found["dropped_leaks"] = len(report.leaks)
        kept = drop_leaking(data, report)
        if not len(kept):
            raise DataError("every training query is an evaluation query", hint="Use other training data.")
        return kept

    def _pool(self, whole: TrainingData, teachers: EnsembleTeacher | None) -> None:
        """Judge the held-out queries: what is relevant besides their own answers.

        The teachers judge, but those that know no other text or that judge by what is to be judged.
        """
        self.listener.doing("pooling judgements of held-out queries")
        held = _yardstick(self.recipe, self.folder).collection
        lost = [one.config for one in teachers.members if one.reason] if teachers is not None else []
        labelling = [one for one in self.recipe.labelling if one not in lost]
        judges = [one for one in labelling if one.kind not in ("stored", "itself")]

        def label(asked: TrainingData) -> TrainingData:
            ensemble = EnsembleTeacher(judges, self.recipe.labels)
            labelled = ensemble.label(asked, progress=self.listener.advance)
            ensemble.release()
            return labelled

        found = pool(whole, held, label if judges else None, self.folder)
        if found is None:
            self._note(
                "held-out queries are measured by their own answers alone: there are more than "
                f"{LARGEST:,} texts; evaluation.corpus makes them fewer"
            )
            return
        qrels, facts = found
        self.found["pooling"] = asdict(facts)
        write_qrels(self.folder / _HELD_OUT / QRELS / f"{POOLED}.tsv", qrels)

    def _write_idf(self, data: TrainingData, vocabulary: Vocabulary) -> None:
        """IDF of the training corpus, where something of the recipe needs it."""
        encoder, sparsity = self.recipe.encoder, self.recipe.sparsity
        penalties = (sparsity.documents, sparsity.queries)
        for_queries = encoder.architecture == "inference-free" and encoder.idf is None
        if for_queries or any(part is not None and part.kind == "idf_flops" for part in penalties):
            self.listener.doing("counting tokens")
            idf = corpus_idf(
                data.passages(), vocabulary, progress=lambda n: self.listener.advance("texts", n)
            )
            np.save(self.folder / _IDF, idf)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.listener.warning(text)
