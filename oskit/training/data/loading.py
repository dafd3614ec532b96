"""Reads the sources of training data into tables."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from oskit.data.documents import Refusal
from oskit.data.duplicates import SeenTexts
from oskit.data.values import clean_text
from oskit.training.data.arrow import CORPUS, EXAMPLES, DataFolder, RowWriter, open_rows
from oskit.training.data.merging import RecordKeys, merge_records
from oskit.training.data.normalising import key_of, query_keys, same_key
from oskit.training.data.reader import read_source
from oskit.training.data.records import Example, Parsed, error_of
from oskit.training.data.training_data import SourceFacts, TrainingData, text_id
from oskit.training.recipe.sources import DataSource, Kind

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

SHOWN_REFUSALS = 20
"""Refusals that the facts carry; the file of refusals has them all."""


class Loader:
    """Writes what sources give into a corpus and examples, in two passes: records, then queries.

    Args:
        sources: What to read.
        folder: Where the tables are written; None for a temporary one.
        seed: Of what is random.
        progress: Told the number of records since the last call.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        folder: str | Path | None,
        seed: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._sources = sources
        self._place = DataFolder(folder)
        self._seed = seed
        self._progress = progress or (lambda _count: None)
        self._keys = RecordKeys()

    def load(self) -> TrainingData:
        """The data; without examples if there are none."""
        folder = self._place.path
        raw, examples, corpus = (folder / f"{name}.arrow" for name in ("records", "examples", "corpus"))
        with closing(_Corpus(corpus)) as self._corpus:
            try:
                with self._corpus.writer, RowWriter(raw, EXAMPLES) as self._records:
                    facts = [self._read(number, source) for number, source in enumerate(self._sources)]
                records = open_rows(raw)
                kept, facts = _without_generic(records, self._keys, self._sources, facts)
                with RowWriter(examples, EXAMPLES) as writer:
                    counts = merge_records(
                        records, self._keys, kept, self._corpus.row_of, self._corpus.said, writer
                    )
            except BaseException:
                corpus.unlink(missing_ok=True)
                raise
            finally:
                raw.unlink(missing_ok=True)
        facts = [_with_counts(fact, count) for fact, count in zip(facts, counts, strict=False)]
        return TrainingData(open_rows(examples), open_rows(corpus), tuple(facts), keep_alive=self._place)

    def _read(self, number: int, source: DataSource) -> SourceFacts:
        told: list[tuple[Kind, str]] = []
        ignored: list[str] = []
        counts: Counter[str] = Counter()
        refusals = _Refusals(self._place.path / f"refused-{number + 1}.jsonl", source)
        with closing(refusals):
            items = read_source(
                source,
                lambda kind, layout: told.append((kind, layout)),
                seed=self._seed,
                ignored=ignored.append,
            )
            for item in items:
                counts["read"] += 1
                self._progress(1)
                if isinstance(item, Refusal):
                    refusals.add(item)
                else:
                    self._keep(number, item, counts)
                if counts["kept"] == source.limit:
                    break
        kind = told[0][0] if told else "pairs" if source.kind == "auto" else source.kind
        layout = "; ".join(dict.fromkeys(layout for _, layout in told)) or "no records"
        return SourceFacts(
            source.name,
            kind,
            layout,
            **counts,
            refused=refusals.count,
            ignored=tuple(ignored),
            refusals=tuple(refusals.first),
            reasons=dict(refusals.reasons.most_common()),
            refusals_file=refusals.path if refusals.count else None,
        )

    def _keep(self, number: int, item: Parsed, counts: Counter[str]) -> None:
        before = len(self._corpus)
        counts["kept"] += 1
        counts["without_examples"] += not item.examples
        counts["dropped_negatives"] += item.dropped
        for passage in item.passages:
            self._corpus.add(passage)
        for example in item.examples:
            self._add(number, example)
        counts["passages"] += len(self._corpus) - before

    def _add(self, number: int, example: Example) -> None:
        query = clean_text(example.query)
        rows = self._corpus.rows(example)
        itself = self._corpus.add(example.itself) if example.itself else -1
        # Scores of different sources are on different scales; those of no source are on none.
        scale = str(number) if example.scores else ""
        apart = (str(rows[0]),) if example.apart else ()
        self._keys.add(number, scale, query, *apart)
        self._records.add(query, rows, example.positives, list(example.scores), itself)


class _Corpus:
    """The texts, each once, and their rows."""

    def __init__(self, path: Path) -> None:
        self.writer = RowWriter(path, CORPUS)
        self._seen = SeenTexts()
        self.said = array("Q")  # of each text a number that near-identical ones share
        self._known: dict[int, NDArray[np.int32]] = {}

    def __len__(self) -> int:
        return len(self.said)

    def add(self, text: str) -> int:
        """The row of a text, which is added if it is new."""
        text = clean_text(text)
        if self._seen.add(text, content=len(self).to_bytes(4, "little")):
            self.writer.add(text_id(text), text)
            self.said.append(key_of(same_key(text)))
            return len(self) - 1
        return self.row_of(text)

    def row_of(self, text: str) -> int:
        """The row of a text; -1 if it is not there."""
        content = self._seen.content_of(text)
        return -1 if content is None else int.from_bytes(content, "little")

    def rows(self, example: Example) -> list[int]:
        """The rows of an example's candidates."""
        if example.known is None:
            return [self.add(str(text)) for text in example.documents]
        known = self._known.setdefault(id(example.known), np.full(len(example.known), -1, dtype=np.int32))
        numbers = np.array(example.documents, dtype=np.int64)
        new = numbers[known[numbers] < 0]
        for number, text in zip(new.tolist(), example.known.texts(new.tolist()), strict=True):
            known[number] = self.add(text)
        return [int(row) for row in known[numbers]]

    def close(self) -> None:
        self._seen.close()


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
            raise error_of(refusal)
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


def _without_generic(
    records: Dataset, keys: RecordKeys, sources: Sequence[DataSource], facts: Sequence[SourceFacts]
) -> tuple[NDArray[np.bool_], list[SourceFacts]]:
    """Which records are left without queries that more documents would have than the settings allow."""
    kept = np.ones(len(records), dtype=bool)
    found = list(facts)
    numbers = np.frombuffer(keys.sources, dtype=np.uint16)
    for number, (source, fact) in enumerate(zip(sources, facts, strict=True)):
        if fact.kind == "documents":
            rows = np.flatnonzero(numbers == number)
            _, inverse, count = np.unique(query_keys(records, rows), return_inverse=True, return_counts=True)
            kept[rows] = count[inverse] <= source.queries.max_documents
            found[number] = replace(fact, generic=int((~kept[rows]).sum()))
    return kept, found


def _with_counts(fact: SourceFacts, counts: Counter[str]) -> SourceFacts:
    numbers: dict[str, Any] = dict(counts)
    numbers["dropped_negatives"] = fact.dropped_negatives + counts["dropped_negatives"]
    return replace(fact, **numbers)
