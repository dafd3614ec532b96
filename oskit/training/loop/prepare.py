"""From a recipe's sources to what the trainer reads: once, on disk, for all processes and resumed runs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.data.atomic import write_whole
from oskit.data.collection import Collection
from oskit.encoder.document_frequencies import corpus_idf
from oskit.errors import DataError, TrainingError
from oskit.training.data.arrow import EXAMPLES, RowWriter, blocks_of, column_of, open_rows
from oskit.training.data.facts import DataFacts
from oskit.training.data.holdout import hold_out
from oskit.training.data.leakage import drop_leaking, find_leakage
from oskit.training.data.training_data import TrainingData, load_training_data
from oskit.training.loop.events import Listener
from oskit.training.loop.folder import FACTS
from oskit.training.loop.preflight import no_negatives
from oskit.training.mining.miner import mine_negatives
from oskit.training.recipe.recipe import Recipe
from oskit.training.teachers.ensemble import LABEL, EnsembleTeacher

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from oskit.archive.vocabulary import Vocabulary

_EXAMPLES = "ready.arrow"
_HELD_OUT = "held-out"
_IDF = "idf.npy"


@dataclass(frozen=True)
class Prepared:
    """What the trainer needs.

    Attributes:
        examples: Columns ``query``, ``positive``, ``negatives`` (the same number in each row), and ``label``
            where the teachers labelled them.
        corpus: The training corpus, columns ``id`` and ``text``.
        collection: What is evaluated on.
        idf: IDF of the training corpus, float32 ``[vocabulary]``; None where nothing needs it.
        facts: What became of the data.
    """

    examples: Dataset
    corpus: Dataset
    collection: Collection
    idf: NDArray[np.float32] | None
    facts: DataFacts


def prepare(recipe: Recipe, folder: Path, vocabulary: Vocabulary, listener: Listener) -> None:
    """Read, hold out, look for leakage, mine, label, and write all of it into ``folder``.

    Nothing is done if it is all there, which is how a resumed run finds it. Teachers' scores have a cache of
    their own, so a run that was interrupted here does not compute them again either.

    Raises:
        DataError: A source or the collection cannot be read, or nothing is left to train on.
        TrainingError: No teacher is left, negatives are needed and there are none, or training queries leak
            and the recipe calls that an error.
    """
    if (folder / FACTS).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    maker = _Maker(recipe, folder, vocabulary, listener)
    facts = maker.make()
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
    return Prepared(examples, corpus, _collection(recipe, folder), idf, facts)


def _collection(recipe: Recipe, folder: Path) -> Collection:
    given = recipe.evaluation.collection
    if given is not None:
        return Collection.open(given, recipe.evaluation.split)
    return Collection.open(folder / _HELD_OUT)


class _Maker:
    """The steps of :func:`prepare`, with what they share."""

    def __init__(self, recipe: Recipe, folder: Path, vocabulary: Vocabulary, listener: Listener) -> None:
        self._recipe = recipe
        self._folder = folder
        self._vocabulary = vocabulary
        self._listener = listener
        self._notes: list[str] = []
        self._leakage: dict[str, Any] | None = None
        self._dropped = 0
        self._held_out = 0

    def make(self) -> DataFacts:
        recipe = self._recipe
        self._listener.doing("reading training data")
        data = load_training_data(
            recipe.data.train,
            folder=self._folder,
            seed=recipe.seed,
            progress=lambda count: self._listener.advance("records", count),
        )
        data = self._separate(data)
        self._write_idf(data)
        teacher = self._teacher()
        mining = None
        if recipe.data.negatives is not None:
            self._listener.doing("mining negatives")
            data, report = mine_negatives(
                data,
                recipe.data.negatives,
                teacher=teacher,
                folder=self._folder,
                progress=self._listener.advance,
            )
            mining = report.to_dict()
            self._listener.doing(str(report))
        examples, negatives = self._same_number(data.examples)
        if _labels_in_advance(recipe):
            assert teacher is not None
            self._listener.doing("asking the teachers")
            examples = teacher.scores(examples, progress=self._listener.advance)
        if teacher is not None:
            for dropped in teacher.report.dropped:
                self._listener.warning(str(dropped))
            teacher.release()
        self._write(examples, negatives)
        return DataFacts(
            examples=len(examples),
            negatives=negatives,
            sources=[source.to_dict() for source in data.sources],
            held_out=self._held_out,
            leakage=self._leakage,
            dropped_leaks=self._dropped,
            mining=mining,
            teachers=None if teacher is None else teacher.report.to_dict(),
            notes=self._notes,
        )

    def _separate(self, data: TrainingData) -> TrainingData:
        """Keep evaluation out of the training data."""
        recipe = self._recipe
        if recipe.evaluation.collection is None:
            # Not the recipe's seed: runs with other seeds are measured on the same queries.
            data, collection = hold_out(
                data, fraction=recipe.data.hold_out, seed=0, folder=self._folder / _HELD_OUT
            )
            self._held_out = len(collection.queries)
            return data
        self._listener.doing("looking for leakage")
        collection = Collection.open(recipe.evaluation.collection, recipe.evaluation.split)
        report = find_leakage(data, collection)
        self._leakage = report.to_dict()
        if not report.rows:
            return data
        if recipe.data.leakage == "error":
            raise TrainingError(str(report), hint="Drop them with data.leakage: drop.")
        if recipe.data.leakage == "report":
            self._listener.warning(f"{report}; they are trained on (data.leakage: report)")
            return data
        self._listener.warning(f"{report}; dropped from training")
        self._dropped = len(report.rows)
        kept = drop_leaking(data, report)
        if not len(kept):
            raise DataError("every training query is an evaluation query", hint="Use other training data.")
        return kept

    def _write_idf(self, data: TrainingData) -> None:
        """IDF of the training corpus, where something of the recipe needs it."""
        encoder, sparsity = self._recipe.encoder, self._recipe.sparsity
        penalties = [sparsity.documents, *([sparsity.queries] if sparsity.queries else [])]
        for_queries = encoder.architecture == "inference-free" and encoder.idf is None
        if not for_queries and all(part.kind != "idf_flops" for part in penalties):
            return
        self._listener.doing("counting tokens")
        idf = corpus_idf(
            data.passages(), self._vocabulary, progress=lambda n: self._listener.advance("texts", n)
        )
        np.save(self._folder / _IDF, idf)

    def _teacher(self) -> EnsembleTeacher | None:
        recipe = self._recipe
        if recipe.labelling or recipe.miner is not None:
            return EnsembleTeacher(recipe.teachers, recipe.labels)
        return None

    def _same_number(self, examples: Dataset) -> tuple[Dataset, int]:
        """Examples with the same number of negatives, the most common one, for batches are columns.

        Examples with none are left out if the others have some; of too many the last ones are not used; too
        few are repeated.
        """
        counts = np.fromiter((len(row or []) for row in column_of(examples, "negatives")), dtype=np.int64)
        mining = self._recipe.data.negatives
        if mining is not None and (counts >= mining.per_query).any():
            number = mining.per_query
        else:
            number, _ = Counter(counts[counts > 0].tolist()).most_common(1)[0] if counts.any() else (0, 0)
        if number == 0 and _labels_in_advance(self._recipe):
            raise no_negatives()
        if number and (without := int((counts == 0).sum())):
            self._note(f"{without:,} examples without negatives are left out")
            examples = examples.select(np.flatnonzero(counts > 0))
            counts = counts[counts > 0]
        if repeated := int((counts < number).sum()):
            self._note(f"{repeated:,} examples have fewer than {number} negatives, which are repeated")
        if cut := int((counts > number).sum()):
            self._note(f"{cut:,} examples have more than {number} negatives; the last ones are not used")
        return examples, number

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._listener.warning(text)

    def _write(self, examples: Dataset, negatives: int) -> None:
        """The examples as the trainer reads them."""
        columns = {**EXAMPLES, LABEL: "numbers"} if LABEL in examples.column_names else EXAMPLES
        with RowWriter(self._folder / _EXAMPLES, columns) as writer:
            for rows in blocks_of(examples):
                filled = _filled(rows, negatives)
                for row in zip(*(filled[name] for name in columns), strict=True):
                    writer.add(*row)


def _labels_in_advance(recipe: Recipe) -> bool:
    """Whether each example has its teachers' scores; else there are none, or each batch asks for its own."""
    return "own" in recipe.labelled


def _filled(rows: dict[str, list[Any]], negatives: int) -> dict[str, list[Any]]:
    """The same number of negatives in each row, with their labels; lists that are too short start again."""
    filled = dict(rows)
    filled["negatives"] = [
        [row[number % len(row)] for number in range(negatives)] if row else [] for row in rows["negatives"]
    ]
    if LABEL in rows:
        filled[LABEL] = [
            [label[0], *(label[1 + number % len(row)] for number in range(negatives))]
            for label, row in zip(rows[LABEL], rows["negatives"], strict=True)
        ]
    return filled
