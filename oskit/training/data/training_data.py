"""Training data from any number of sources, as memory-mapped tables of examples and of passages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from oskit.data.documents import Refusal
from oskit.data.duplicates import SeenTexts, digest_of
from oskit.data.values import clean_text
from oskit.errors import DataError, UsageError
from oskit.training.data.arrow import CORPUS, EXAMPLES, DataFolder, RowWriter, column_of, open_rows
from oskit.training.data.normalising import query_keys
from oskit.training.data.reader import Parsed, read_source
from oskit.training.recipe.sources import DataSource, Kind, as_source

if TYPE_CHECKING:
    from datasets import Dataset

SHOWN_REFUSALS = 20
"""Refusals that the facts carry; the file of refusals has them all."""


@dataclass(frozen=True)
class SourceFacts:
    """What was read of one source; ``read == kept + refused``.

    Attributes:
        name: The source.
        kind: What it was taken for.
        layout: Which columns (or judgements) were taken for what.
        read: Records: lines, rows, documents, judged queries.
        kept: Records that were right.
        refused: Records that were not.
        examples: Training examples that came of them.
        duplicates: Examples dropped because the same query and positive came before.
        generic: Examples dropped because too many documents would have the same query.
        without_examples: Records that were right and gave no example: documents too short for a query or only
            there to be found, queries without a relevant document.
        passages: Texts new to the corpus.
        dropped_negatives: Negatives that were the positive itself, or that the corpus lacks.
        refusals: The first refusals, each with file, line and reason.
        reasons: How often each reason occurred.
        refusals_file: All refusals as JSON lines; None if there are none.
    """

    name: str
    kind: Kind
    layout: str
    read: int = 0
    kept: int = 0
    refused: int = 0
    examples: int = 0
    duplicates: int = 0
    generic: int = 0
    without_examples: int = 0
    passages: int = 0
    dropped_negatives: int = 0
    refusals: tuple[str, ...] = ()
    reasons: dict[str, int] = field(default_factory=dict)
    refusals_file: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can carry it."""
        file = self.refusals_file
        return {**asdict(self), "refusals_file": None if file is None else str(file)}

    def __str__(self) -> str:
        parts = [
            (self.refused, "records refused"),
            (self.duplicates, "duplicates dropped"),
            (self.generic, "with a query of too many documents dropped"),
            (self.without_examples, "records without a query"),
            (self.dropped_negatives, "negatives dropped"),
        ]
        told = "".join(f", {count:,} {what}" for count, what in parts if count)
        return f"{self.name}: {self.layout}; {self.read:,} records, {self.examples:,} examples{told}"


@dataclass(frozen=True)
class TrainingData:
    """Training examples, the corpus behind them, and where they come from.

    Attributes:
        examples: ``query: str``, ``positive: str``, ``negatives: list[str]`` (may be empty); after labelling
            also ``label: list[float]``, the teacher's score of the positive and then of each negative.
        corpus: ``id: str``, ``text: str``: every document that is known (positives, negatives, documents of
            folders), each content once; ``id`` is a digest of the text.
        sources: What was read, one entry a source.
        keep_alive: The temporary folder behind the tables; it goes when the data does.
    """

    examples: Dataset
    corpus: Dataset | None = None
    sources: tuple[SourceFacts, ...] = ()
    keep_alive: object = field(default=None, repr=False, compare=False)

    def with_examples(self, examples: Dataset) -> TrainingData:
        """The same data with other examples."""
        return replace(self, examples=examples)

    def passages(self) -> Iterator[str]:
        """The corpus; where there is none, the positives."""
        if self.corpus is not None:
            return column_of(self.corpus, "text")
        return column_of(self.examples, "positive")

    def __len__(self) -> int:
        return len(self.examples)


def text_id(text: str) -> str:
    """The corpus's id of a text, 32 hexadecimal digits."""
    return digest_of(text).hex()


def load_training_data(
    sources: Sequence[DataSource | str | Path],
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> TrainingData:
    """Read training data; memory stays bounded however large the sources are.

    Every record is kept or refused; see :class:`DataSource` for what is done then. An example is dropped, and
    counted, when its query and positive came before and it has no negatives that are new.

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
        MissingDependencyError: ``datasets`` or ``pyarrow`` is not installed.
    """
    if not sources:
        raise UsageError("there is no training data", hint="Name at least one source")
    place = DataFolder(folder)
    paths = place.path / "examples.arrow", place.path / "corpus.arrow"
    described = [as_source(source) for source in sources]
    with (
        RowWriter(paths[0], EXAMPLES) as examples,
        RowWriter(paths[1], CORPUS) as corpus,
        closing(SeenTexts()) as seen,
    ):
        loader = _Loader(examples, corpus, seen, place.path, seed, progress or (lambda _count: None))
        facts = [loader.load(number, source) for number, source in enumerate(described, start=1)]
    data = TrainingData(open_rows(paths[0]), open_rows(paths[1]), tuple(facts), place)
    data = _without_generic(data, described)
    if not len(data):
        raise DataError(
            f"no training examples in {', '.join(fact.name for fact in facts)}: {facts[0]}",
            hint="Training needs pairs of query and text, or documents long enough to make queries of",
        )
    return data


@dataclass
class _Loader:
    """Writes what sources give into the tables."""

    examples: RowWriter
    corpus: RowWriter
    seen: SeenTexts
    folder: Path
    seed: int
    progress: Callable[[int], None]

    def load(self, number: int, source: DataSource) -> SourceFacts:
        told: list[tuple[Kind, str]] = []
        counts: Counter[str] = Counter()
        refusals = _Refusals(self.folder / f"refused-{number}.jsonl", source)
        with closing(refusals):
            items = read_source(source, lambda kind, layout: told.append((kind, layout)), seed=self.seed)
            for item in items:
                counts["read"] += 1
                self.progress(1)
                if isinstance(item, Refusal):
                    refusals.add(item)
                else:
                    self._keep(item, counts)
                if counts["kept"] == source.limit:
                    break
        kind, layout = told[0] if told else ("pairs" if source.kind == "auto" else source.kind, "no records")
        return SourceFacts(
            source.name,
            kind,
            layout,
            **counts,
            refused=refusals.count,
            refusals=tuple(refusals.first),
            reasons=dict(refusals.reasons.most_common()),
            refusals_file=refusals.path if refusals.count else None,
        )

    def _keep(self, item: Parsed, counts: Counter[str]) -> None:
        counts["kept"] += 1
        counts["without_examples"] += not item.examples
        counts["dropped_negatives"] += item.dropped
        for passage in item.passages:
            counts["passages"] += self._add_to_corpus(clean_text(passage))
        for example in item.examples:
            query, positive = clean_text(example.query), clean_text(example.positive)
            negatives = [clean_text(text) for text in example.negatives]
            for text in (positive, *negatives):
                counts["passages"] += self._add_to_corpus(text)
            if self._is_new(query, positive, negatives):
                self.examples.add(query, positive, negatives)
                counts["examples"] += 1
            else:
                counts["duplicates"] += 1

    def _add_to_corpus(self, text: str) -> bool:
        if not self.seen.add(text):
            return False
        self.corpus.add(text_id(text), text)
        return True

    def _is_new(self, query: str, positive: str, negatives: list[str]) -> bool:
        """Whether the pair is new, or at least the pair with these negatives."""
        is_new = self.seen.add("pair", query, positive)
        if negatives:
            is_new |= self.seen.add("triple", query, positive, *sorted(negatives))
        return is_new


class _Refusals:
    """Counts and lists what was refused, or makes the first one an error."""

    def __init__(self, path: Path, source: DataSource) -> None:
        self.path = path
        self.count = 0
        self.first: list[str] = []
        self.reasons: Counter[str] = Counter()
        self._source = source
        self._file: TextIO | None = None

    def add(self, refusal: Refusal) -> None:
        if self._source.broken == "error":
            raise DataError(
                f"{refusal.where}: {refusal.reason}",
                hint="Correct it, or leave such records out with broken: skip",
            )
        self.count += 1
        self.reasons[refusal.reason] += 1
        if len(self.first) < SHOWN_REFUSALS:
            self.first.append(f"{refusal.where}: {refusal.reason}")
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8", newline="\n")
        line = {"where": refusal.where, "reason": refusal.reason, "raw": refusal.raw}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _without_generic(data: TrainingData, sources: Sequence[DataSource]) -> TrainingData:
    """Drop queries that more documents of a source would have than its settings allow."""
    start, kept, facts = 0, [], []
    for source, fact in zip(sources, data.sources, strict=True):
        rows = np.arange(start, start + fact.examples)
        start += fact.examples
        if fact.kind == "documents":
            keys = query_keys(data.examples, rows)
            _, inverse, count = np.unique(keys, return_inverse=True, return_counts=True)
            rows = rows[count[inverse] <= source.queries.max_documents]
        kept.append(rows)
        facts.append(replace(fact, generic=fact.examples - len(rows), examples=len(rows)))
    chosen = np.concatenate(kept)
    examples = data.examples if len(chosen) == len(data) else data.examples.select(chosen)
    return replace(data, examples=examples, sources=tuple(facts))
