"""Training data from any number of sources, as memory-mapped tables of examples and of passages."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from datasets import Dataset

from oskit.data.values import clean_value
from oskit.errors import DataError, UsageError
from oskit.training.data.arrow import column_of, numbers_of
from oskit.training.recipe.sources import DataSource, Kind


@dataclass
class SourceFacts:
    """What was read of one source; ``read == kept + refused``."""

    name: str
    kind: Kind  # what it was taken for
    layout: str  # which columns (or judgements) were taken for what
    read: int = 0  # records: lines, rows, documents, judged queries
    kept: int = 0  # records that were right
    refused: int = 0  # records that were not
    examples: int = 0  # training examples that came of them: queries that no source before had
    positives: int = 0  # known positives of these
    scored: int = 0  # candidates of these that came with a score
    duplicates: int = 0  # pairs and records that brought nothing new: they came before
    generic: int = 0  # made queries dropped because too many documents would have them
    # records that were right and gave no example: documents too short for a query or only there to be found,
    # queries without a relevant document
    without_examples: int = 0
    unanswered: int = 0  # queries dropped because nothing is known but what does not answer them
    undrawn: int = 0  # queries that `share` left out
    passages: int = 0  # texts new to the corpus
    # negatives that say what a positive says or are the query itself, or that the corpus lacks
    dropped_negatives: int = 0
    ignored: tuple[str, ...] = ()  # columns that were not understood, and not used
    refusals: tuple[str, ...] = ()  # the first refusals, each with file, line and reason
    reasons: dict[str, int] = field(default_factory=dict)  # how often each reason occurred
    refusals_file: Path | None = None  # all refusals as JSON lines; None if there are none

    def to_dict(self) -> dict[str, Any]:
        """As JSON can carry it."""
        return {**asdict(self), "refusals_file": self.refusals_file and str(self.refusals_file)}

    def __str__(self) -> str:
        parts = [
            (self.refused, "records refused"),
            (self.duplicates, "duplicates dropped"),
            (self.generic, "with a query of too many documents dropped"),
            (self.without_examples, "records without a query"),
            (self.unanswered, "queries without a positive or scores dropped"),
            (self.undrawn, "queries not drawn"),
            (self.dropped_negatives, "negatives dropped"),
        ]
        told = "".join(f", {count:,} {what}" for count, what in parts if count)
        found = f"{self.examples:,} queries with {self.positives:,} positives"
        found += f" and {self.scored:,} scores" if self.scored else ""
        ignored = f"; not used: {', '.join(self.ignored)}" if self.ignored else ""
        return f"{self.name}: {self.layout}{ignored}; {self.read:,} records, {found}{told}"


@dataclass(frozen=True)
class TrainingData:
    """Training examples, the corpus behind them, and where they come from.

    Attributes:
        examples: ``query: str``, ``candidates: list[int]`` (rows of the corpus, known positives first),
            ``positives: int``, ``scores: list[float]``, ``itself: int``; after labelling also
            ``labels: list[float]``. See :data:`oskit.training.data.arrow.EXAMPLES`.
        corpus: ``id: str``, ``text: str``: every document that is known (candidates, documents of folders),
            each content once; ``id`` is a digest of the text.
        sources: What was read, one entry a source.
        notes: What else happened to examples, in words.
        keep_alive: The temporary folder behind the tables; it goes when the data does.
    """

    examples: Dataset
    corpus: Dataset
    sources: tuple[SourceFacts, ...] = ()
    notes: tuple[str, ...] = ()
    keep_alive: object = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], **options: Any) -> Self:
        """Data of records in memory, in any layout of a file.

        Args:
            records: Such as ``{"query": "…", "positive": "…", "negatives": ["…"], "scores": [9.1, 3.2]}``.
            options: Keys of :class:`DataSource`.

        Raises:
            DataError: A record is broken, or there are no examples.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records.jsonl"
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(clean_value(record)) + "\n" for record in records)
            return cls(**vars(load_training_data([DataSource(path=str(path), **options)])))

    def with_examples(self, examples: Dataset, *notes: str, keep_alive: object = None) -> TrainingData:
        """The same data with other examples, what is to be said of it, and what these lie in."""
        kept = self.keep_alive if keep_alive is None else (self.keep_alive, keep_alive)
        return replace(self, examples=examples, notes=(*self.notes, *notes), keep_alive=kept)

    def passages(self) -> Iterator[str]:
        """The corpus."""
        return column_of(self.corpus, "text")

    def texts_of(self, rows: Sequence[int]) -> list[str]:
        """The texts of rows of the corpus."""
        found: list[str] = self.corpus[list(rows)]["text"] if len(rows) else []
        return found

    @property
    def visits(self) -> int:
        """What an epoch reads: every known positive once, and every query without one."""
        return int(np.maximum(numbers_of(self.examples, "positives"), 1).sum())

    def __len__(self) -> int:
        return len(self.examples)


def load_training_data(
    sources: Sequence[DataSource | str | Path],
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> TrainingData:
    """Read training data; memory stays bounded however large the sources are.

    Every record is kept or refused; see :class:`DataSource` for what is done then. Records of one query
    become one example, over all sources unless they have scores; one that brings nothing new is counted.

    Args:
        sources: What to read, in this order; a path alone stands for a source of any kind.
        folder: Where ``examples.arrow`` and ``corpus.arrow`` are written and stay; without it a temporary
            folder that goes with the data. One process at a time may write a folder.
        seed: Of what is random: which sentences of documents become queries.
        progress: Called with the number of records read since the last call.

    Raises:
        DataError: A source cannot be read, a record is broken (unless the source says ``skip``), or there
            are no examples.
        UsageError: There are no sources, or one is of a kind that cannot be.
    """
    if not sources:
        raise UsageError("there is no training data", hint="Name at least one source")
    from oskit.training.data.loading import read_sources

    data = read_sources(
        [DataSource.model_validate(source) for source in sources], folder, seed, progress or (lambda _: None)
    )
    if not len(data):
        raise DataError(
            f"no training examples in {', '.join(fact.name for fact in data.sources)}: {data.sources[0]}",
            hint="Training needs pairs of query and text, or documents long enough to make queries of",
        )
    return data
