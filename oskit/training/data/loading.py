"""Reads the sources of training data into tables."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.data.documents import Refusal
from oskit.data.duplicates import SeenTexts
from oskit.data.values import clean_text
from oskit.training.data.arrow import CORPUS, EXAMPLES, DataFolder, RowWriter, column_of, open_rows
from oskit.training.data.merging import merge_records
from oskit.training.data.normalising import key_of, keys_of, normalise, same_key
from oskit.training.data.reader import read_source
from oskit.training.data.records import Example, error_of
from oskit.training.data.training_data import SourceFacts, TrainingData, text_id
from oskit.training.recipe.sources import DataSource, Kind

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

SHOWN_REFUSALS = 20
"""Refusals that the facts carry; the file of refusals has them all."""


def read_sources(
    sources: Sequence[DataSource], folder: str | Path | None, seed: int, progress: Callable[[int], object]
) -> TrainingData:
    """Write what sources give into a corpus and examples, in two passes: records, then queries.

    Args:
        sources: What to read.
        folder: Where the tables are written; None for a temporary one.
        seed: Of what is random.
        progress: Told the number of records since the last call.

    Returns:
        The data; without examples if there are none.
    """
    place = DataFolder(folder)
    raw, examples, corpus = (place.path / f"{name}.arrow" for name in ("records", "examples", "corpus"))
    with closing(_Corpus(corpus)) as texts:
        try:
            with texts.writer, RowWriter(raw, EXAMPLES) as writer:
                records = _Records(writer, texts)
                facts = [
                    records.read(number, source, place.path, seed, progress)
                    for number, source in enumerate(sources)
                ]
            rows = open_rows(raw)
            groups = np.frombuffer(records.keys, dtype=np.uint64)
            of_source = np.frombuffer(records.sources, dtype=np.uint16)
            kept = np.ones(len(rows), dtype=bool)
            for number, source in enumerate(sources):
                if facts[number].kind == "documents":
                    facts[number] = _drop_generic(
                        rows, np.flatnonzero(of_source == number), source, facts[number], kept
                    )
            with RowWriter(examples, EXAMPLES) as writer:
                merged = merge_records(rows, groups, of_source, kept, texts.row_of, texts.said, writer)
        except BaseException:
            corpus.unlink(missing_ok=True)
            raise
        finally:
            raw.unlink(missing_ok=True)
    for number, counts in enumerate(merged):
        counts["dropped_negatives"] += facts[number].dropped_negatives
        facts[number] = replace(facts[number], **dict[str, Any](counts))
    return TrainingData(open_rows(examples), open_rows(corpus), tuple(facts), keep_alive=place)


class _Records:
    """Writes a row for each example of a record; keeps, in 10 bytes, which belong together."""

    def __init__(self, writer: RowWriter, corpus: _Corpus) -> None:
        self._writer, self._corpus = writer, corpus
        self.keys, self.sources = array("Q"), array("H")

    def read(
        self, number: int, source: DataSource, folder: Path, seed: int, progress: Callable[[int], object]
    ) -> SourceFacts:
        told: dict[str, Kind] = {}
        ignored: dict[str, None] = {}
        counts, reasons = Counter[str](), Counter[str]()
        first: list[str] = []
        refusals = folder / f"refused-{number + 1}.jsonl"
        refusals.unlink(missing_ok=True)

        def tell(kind: Kind, layout: str, unused: Sequence[str]) -> None:
            told.setdefault(layout, kind)
            ignored.update(dict.fromkeys(unused))

        before = len(self._corpus)
        for item in read_source(source, tell, self._corpus.add, seed=seed):
            counts["read"] += 1
            progress(1)
            if isinstance(item, Refusal):
                if source.broken == "error":
                    raise error_of(item)
                reasons[item.reason] += 1
                if counts["read"] - counts["kept"] <= SHOWN_REFUSALS:
                    first.append(f"{item.where}: {item.reason}")
                with refusals.open("a", encoding="utf-8", newline="\n") as file:
                    line = {"where": item.where, "reason": item.reason, "raw": item.raw}
                    file.write(json.dumps(line) + "\n")
                continue
            for example in item.examples:
                self._add(number, example)
            counts.update(kept=1, without_examples=not item.examples, dropped_negatives=item.dropped)
            if counts["kept"] == source.limit:
                break
        refused = counts["read"] - counts["kept"]
        return SourceFacts(
            source.name,
            next(iter(told.values()), "pairs" if source.kind == "auto" else source.kind),
            "; ".join(told) or "no records",
            **counts,
            refused=refused,
            passages=len(self._corpus) - before,
            ignored=tuple(ignored),
            refusals=tuple(first),
            reasons=dict(reasons.most_common()),
            refusals_file=refusals if refused else None,
        )

    def _add(self, number: int, example: Example) -> None:
        query, rows = clean_text(example.query), example.rows
        # Scores of different sources are on different scales; those of no source are on none.
        scale = str(number) if example.scores else ""
        apart = (str(rows[0]),) if example.apart else ()
        self.keys.append(key_of(scale, query, *apart))
        self.sources.append(number)
        self._writer.add(query, rows, example.positives, list(example.scores), example.itself)


class _Corpus:
    """The texts, each once, and their rows."""

    def __init__(self, path: Path) -> None:
        self.writer = RowWriter(path, CORPUS)
        self._seen = SeenTexts()
        self.said = array("Q")  # of each text a number that near-identical ones share

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

    def close(self) -> None:
        self._seen.close()


def _drop_generic(
    records: Dataset,
    rows: NDArray[np.int64],
    source: DataSource,
    fact: SourceFacts,
    kept: NDArray[np.bool_],
) -> SourceFacts:
    """Drop made queries that more documents would have than the settings allow."""
    asked = keys_of(map(normalise, column_of(records, "query", rows)))
    _, inverse, count = np.unique(asked, return_inverse=True, return_counts=True)
    kept[rows] = count[inverse] <= source.queries.max_documents
    return replace(fact, generic=int((~kept[rows]).sum()))
