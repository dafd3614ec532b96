"""Reads the sources of training data into tables, in two passes: records, then the records of each query."""

from __future__ import annotations

import json
import math
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from oskit.data.documents import Refusal
from oskit.data.duplicates import SeenTexts, digest_of
from oskit.data.values import clean_text
from oskit.training.data.arrow import BLOCK, CORPUS, EXAMPLES, DataFolder, RowWriter, column_of, open_rows
from oskit.training.data.normalising import key_of, keys_of, normalise, same_key
from oskit.training.data.reader import read_source
from oskit.training.data.records import Example, error_of
from oskit.training.data.training_data import SourceFacts, TrainingData
from oskit.training.recipe.sources import DataSource, Kind

SHOWN_REFUSALS = 20
"""Refusals that the facts carry; the file of refusals has them all."""


def read_sources(
    sources: Sequence[DataSource], folder: str | Path | None, seed: int, progress: Callable[[int], object]
) -> TrainingData:
    """As :func:`oskit.training.data.training_data.load_training_data`; without examples if there are none."""
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
            with RowWriter(examples, EXAMPLES) as writer:
                _merge(open_rows(raw), records, sources, facts, writer, seed)
        except BaseException:
            corpus.unlink(missing_ok=True)
            raise
        finally:
            raw.unlink(missing_ok=True)
    return TrainingData(open_rows(examples), open_rows(corpus), tuple(facts), keep_alive=place)


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
            self.writer.add(digest_of(text).hex(), text)
            self.said.append(key_of(same_key(text)))
            return len(self) - 1
        return self.row_of(text)

    def row_of(self, text: str) -> int:
        """The row of a text; -1 if it is not there."""
        content = self._seen.content_of(text)
        return -1 if content is None else int.from_bytes(content, "little")

    def close(self) -> None:
        self._seen.close()


class _Records:
    """Writes a row for each example of a record; keeps, in 10 bytes, which belong together."""

    def __init__(self, writer: RowWriter, corpus: _Corpus) -> None:
        self._writer, self.corpus = writer, corpus
        self.keys, self.sources = array("Q"), array("H")

    def read(
        self, number: int, source: DataSource, folder: Path, seed: int, progress: Callable[[int], object]
    ) -> SourceFacts:
        facts = SourceFacts(source.name, "pairs" if source.kind == "auto" else source.kind, "no records")
        layouts: dict[str, Kind] = {}
        reasons = Counter[str]()
        refusals = folder / f"refused-{number + 1}.jsonl"
        refusals.unlink(missing_ok=True)

        def tell(kind: Kind, layout: str, unused: Sequence[str]) -> None:
            layouts.setdefault(layout, kind)
            facts.kind, facts.layout = next(iter(layouts.values())), "; ".join(layouts)
            facts.ignored += tuple(name for name in unused if name not in facts.ignored)

        before, taken = len(self.corpus), 0
        for item in read_source(source, tell, self.corpus.add, seed=seed):
            facts.read += 1
            progress(1)
            if isinstance(item, Refusal):
                if source.broken == "error":
                    raise error_of(item)
                facts.refused += 1
                reasons[item.reason] += 1
                if facts.refused <= SHOWN_REFUSALS:
                    facts.refusals += (f"{item.where}: {item.reason}",)
                with refusals.open("a", encoding="utf-8", newline="\n") as file:
                    line = {"where": item.where, "reason": item.reason, "raw": item.raw}
                    file.write(json.dumps(line) + "\n")
                continue
            for example in item.examples:
                self._add(number, example)
            facts.kept += 1
            facts.without_examples += not item.examples
            facts.dropped_negatives += item.dropped
            # Of a folder with judgements what is taken are the judged queries, behind all of its documents.
            taken += bool(item.examples) or facts.kind != "beir"
            if taken == source.limit:
                break
        facts.passages = len(self.corpus) - before
        facts.reasons = dict(reasons.most_common())
        facts.refusals_file = refusals if reasons else None
        return facts

    def _add(self, number: int, example: Example) -> None:
        query, rows = clean_text(example.query), example.rows
        # Scores of different sources are on different scales; those of no source are on none.
        scale = str(number) if example.scores else ""
        apart = (str(rows[0]),) if example.apart else ()
        self.keys.append(key_of(scale, query, *apart))
        self.sources.append(number)
        self._writer.add(query, rows, example.positives, list(example.scores), example.itself)


def _merge(
    rows: Dataset,
    records: _Records,
    sources: Sequence[DataSource],
    facts: Sequence[SourceFacts],
    writer: RowWriter,
    seed: int,
) -> None:
    """Write one example for the records of each query that is drawn, in the order of the first of them.

    Positives come first, then all other candidates, each once; a positive is no negative, whichever record
    says so and however it is written, nor is the document that is the query itself. Of two scores the first
    counts.
    """
    of_source, rng = np.frombuffer(records.sources, dtype=np.uint16), random.Random(seed)  # noqa: S311
    kept = np.ones(len(rows), dtype=bool)
    for number, (source, fact) in enumerate(zip(sources, facts, strict=True)):
        if fact.kind == "documents":  # a made query that more documents would have than are allowed goes
            made = np.flatnonzero(of_source == number)
            asked = keys_of(map(normalise, column_of(rows, "query", made)))
            _, inverse, count = np.unique(asked, return_inverse=True, return_counts=True)
            kept[made] = count[inverse] <= source.queries.max_documents
            fact.generic = int((~kept[made]).sum())
    for groups in _groups(np.frombuffer(records.keys, dtype=np.uint64), kept):
        values = zip(*rows[np.concatenate(groups)].values(), strict=True)
        for group in groups:
            merged, own = _Merged(), list(islice(values, len(group)))
            for row, (_, *record) in zip(group, own, strict=True):
                facts[of_source[row]].duplicates += not merged.add(*record)
            number, query = of_source[group[0]], own[0][0]
            found = facts[number]
            example = merged.example(records.corpus.row_of(query), records.corpus.said)
            found.dropped_negatives += merged.dropped
            if example is None:
                found.unanswered += 1
                continue
            if rng.random() >= sources[number].share:
                found.undrawn += 1
                continue
            writer.add(query, *example)
            found.examples += 1
            found.positives += example[1]
            found.scored += sum(not math.isnan(score) for score in example[2])


def _groups(keys: NDArray[np.uint64], kept: NDArray[np.bool_]) -> Iterator[list[NDArray[np.int64]]]:
    """Rows of the same key, by the first of them; blocks of groups."""
    used = np.flatnonzero(kept)
    order = used[np.argsort(keys[used], kind="stable")]
    starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]]) if len(order) else order
    ends = np.r_[starts[1:], len(order)]
    by_first = np.argsort(order[starts], kind="stable")
    for start in range(0, len(starts), BLOCK):
        yield [order[starts[group] : ends[group]] for group in by_first[start : start + BLOCK]]


class _Merged:
    """The records of one query."""

    def __init__(self) -> None:
        self.dropped = 0
        """Negatives that are none, once :meth:`example` was called."""
        self._itself = -1
        self._positives: dict[int, None] = {}
        self._negatives: set[int] = set()
        self._scores: dict[int, float] = {}

    def add(self, candidates: list[int], positives: int, scores: list[float], itself: int) -> bool:
        """Add a record; whether it brought anything new."""
        new = False
        if itself >= 0:
            self._itself = itself
        for number, row in enumerate(candidates):
            score = scores[number] if scores else math.nan
            known = self._scores.get(row)
            if known is None or (math.isnan(known) and not math.isnan(score)):
                self._scores[row] = score
                new = True
            if number >= positives:
                self._negatives.add(row)
            elif row not in self._positives:
                self._positives[row] = None
                new = True
        return new

    def example(self, asked: int, said: Sequence[int]) -> tuple[list[int], int, list[float], int] | None:
        """The candidates, how many are positives, their scores, and the row that is the query itself."""
        itself = asked if self._itself < 0 else self._itself
        if itself in self._positives:
            itself = -1
        answers = {said[row] for row in self._positives}
        others = [row for row in self._scores if said[row] not in answers and row != itself]
        rows = [*self._positives, *others]
        self.dropped = len(self._negatives.difference(others))
        scores = [self._scores[row] for row in rows]
        if all(map(math.isnan, scores)):
            scores = []
        if not self._positives and not scores:
            return None
        return rows, len(self._positives), scores, itself
