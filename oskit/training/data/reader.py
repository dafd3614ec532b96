"""From a source's records to training examples and passages, one record at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from oskit.data.collection import QRELS, find_corpus
from oskit.data.documents import Refusal
from oskit.data.values import clean_value, text_of
from oskit.errors import DataError, UsageError
from oskit.training.data.judgements import read_beir
from oskit.training.data.layout import DOCUMENT_ID_NAMES, SCORE_NAMES, Layout, grade_of, wanted_columns
from oskit.training.data.lookups import Joined
from oskit.training.data.pseudo_queries import make_queries
from oskit.training.data.records import (
    Example,
    Parsed,
    as_list,
    existing,
    is_saved_dataset,
    records_of,
    required_text,
    score_of,
    text_of_passage,
)
from oskit.training.recipe.sources import DataSource, Kind

Tell = Callable[[Kind, str], None]
"""Called with the kind of a source, and with which columns were taken for what, of each sort of record."""


def read_source(
    source: DataSource,
    tell: Tell,
    *,
    seed: int = 0,
    ignored: Callable[[str], None] | None = None,
    look_up: bool = True,
) -> Iterator[Parsed | Refusal]:
    """Every record of a source as what it gives, or as a refusal that says where and why.

    Args:
        source: What to read.
        tell: Told what it was taken for.
        seed: Of queries that are made of documents.
        ignored: Told each column that was taken for nothing, at the end.
        look_up: Whether ids become texts; else they are left as they are, and nothing is read for it.

    Raises:
        DataError: The source cannot be read at all, or lacks the columns.
        UsageError: The format or the kind cannot be.
        MissingDependencyError: ``datasets`` or ``pyarrow`` is not installed.
    """
    path = existing(source)
    if source.kind == "beir" and path is not None and not path.is_dir():
        raise UsageError(f"{path} is a file; the kind beir needs a folder with corpus.jsonl and qrels/")
    if path is not None and path.is_dir() and not is_saved_dataset(path):
        kind = kind_of_folder(path) if source.kind == "auto" else source.kind
        if kind == "beir":
            tell(kind, f"judgements of {QRELS}/{source.split}.tsv")
            return read_beir(path, source)
    joined = Joined(source.join) if look_up and source.join is not None else None
    return _read_by_columns(source, path, tell, seed, ignored or (lambda _name: None), joined)


def kind_of_folder(path: Path) -> Kind:
    """The kind of a folder in BEIR's layout: with judgements, or documents alone.

    Raises:
        DataError: It has no corpus.
    """
    if find_corpus(path) is None:
        raise DataError(
            f"the folder {path} has no corpus.jsonl and is no saved data set",
            hint="Name the files themselves",
        )
    return "beir" if (path / QRELS).is_dir() else "documents"


def _read_by_columns(
    source: DataSource,
    path: Path | None,
    tell: Tell,
    seed: int,
    ignored: Callable[[str], None],
    joined: Joined | None,
) -> Iterator[Parsed | Refusal]:
    readers: dict[frozenset[str], _Reader] = {}
    for record in records_of(source, path, wanted_columns(source)):
        if isinstance(record, Refusal):
            yield record
            continue
        columns = frozenset(record.values)
        if columns not in readers:
            layout = _layout_of(source, record.values, next(iter(readers.values()), None))
            readers[columns] = _Reader(source, layout, joined, seed)
            tell(layout.kind, str(layout))
        try:
            yield readers[columns].parse(record.values)
        except ValueError as error:
            yield Refusal(record.where, str(error), record.raw or json.dumps(clean_value(record.values)))
    for name in dict.fromkeys(name for reader in readers.values() for name in reader.layout.ignored):
        ignored(name)


def _layout_of(source: DataSource, values: Mapping[str, Any], first: _Reader | None) -> Layout:
    """Records of one file need not be alike; what makes no sense of its own is read like the first one."""
    if first is None:
        return Layout(source, values)
    try:
        layout = Layout(source, values)
    except DataError:
        return first.layout
    return layout if (layout.kind == "documents") == (first.layout.kind == "documents") else first.layout


class _Item(NamedTuple):
    """A document of a record: its text or id, and its score (NaN: none)."""

    text: str
    score: float = math.nan


class _Reader:
    """Records of one layout to examples; a record that is not right raises ValueError."""

    def __init__(self, source: DataSource, layout: Layout, joined: Joined | None, seed: int) -> None:
        self.layout = layout
        self._source = source
        self._seed = seed
        self._joined = joined
        self._ids = source.join is not None and source.join.corpus is not None

    def parse(self, values: Mapping[str, Any]) -> Parsed:
        """What a record gives."""
        layout = self.layout
        if layout.kind == "documents":
            return self._document(values)
        key = required_text(values, layout.query)
        if layout.kind == "candidates":
            positives, others = self._candidates(values)
            apart = False
        else:
            positives, others, apart = self._positives_and_negatives(values)
        if self._joined is not None and self._joined.scores is not None:
            items = [*positives, *others]
            items = _with_scores(items, self._joined.scores.of(key, [item.text for item in items]))
            positives, others = items[: len(positives)], items[len(positives) :]
        return self._example(self._query(key), positives, others, apart=apart)

    def _query(self, key: str) -> str:
        texts = None if self._joined is None else self._joined.queries
        if texts is None:
            return key
        found = texts.find([key])[0]
        query = texts.texts([int(found)])[0] if found >= 0 else ""
        if not query:
            raise ValueError(f"the query {key!r} is empty, or not in {texts.name}")
        return query

    def _example(
        self, query: str, positives: Sequence[_Item], others: Sequence[_Item], *, apart: bool
    ) -> Parsed:
        """An example of what was found, each document once."""
        best: dict[str, float] = {}
        for item in (*positives, *others):
            if math.isnan(best.get(item.text, math.nan)):
                best[item.text] = item.score
        count = len({item.text for item in positives})
        texts, scores = list(best), list(best.values())
        dropped = len({item.text for item in others}) - (len(texts) - count)
        documents: Sequence[str] | Sequence[int] = texts
        known = None if self._joined is None else self._joined.corpus
        if known is not None:
            numbers = known.find(texts)
            there = numbers >= 0
            if not there[:count].all():
                raise ValueError(f"its document {texts[int(there.argmin())]!r} is not in {known.name}")
            dropped += int((~there).sum())
            documents = numbers[there].tolist()
            scores = [score for score, is_there in zip(scores, there, strict=True) if is_there]
        scores = [] if all(map(math.isnan, scores)) else scores
        return Parsed((Example(query, documents, count, scores, known, apart=apart),), dropped=dropped)

    def _candidates(self, values: Mapping[str, Any]) -> tuple[list[_Item], list[_Item]]:
        """Known positives and other documents of a record with scores or labels."""
        layout = self.layout
        items = self._items(values, layout.documents)
        if layout.scores:
            items = _scored(items, as_list(values.get(layout.scores)), layout.scores)
        if not layout.label:
            return [], items
        labels = as_list(values.get(layout.label))
        if len(labels) != len(items):
            raise ValueError(f"{len(labels)} labels in {layout.label!r} for {len(items)} documents")
        grades = [grade_of(label) for label in labels]
        if None in grades:
            raise ValueError(
                f"{layout.label!r} holds {labels[grades.index(None)]!r}, which is no grade (0, 1, …); if "
                f"these are scores, name the column so: columns: {{scores: {layout.label}}}"
            )
        return self._by_grade(items, [grade or 0 for grade in grades])

    def _by_grade(self, items: Sequence[_Item], grades: Sequence[int]) -> tuple[list[_Item], list[_Item]]:
        """A grade between the two says neither; only a score makes such a document a candidate."""
        enough, source = self._source.min_relevance, self._source
        positives = [item for item, grade in zip(items, grades, strict=True) if grade >= enough]
        others = [
            item
            for item, grade in zip(items, grades, strict=True)
            if grade < enough and (not math.isnan(item.score) or (grade <= 0 and source.judged_negatives))
        ]
        return positives, others

    def _positives_and_negatives(self, values: Mapping[str, Any]) -> tuple[list[_Item], list[_Item], bool]:
        """Both, with their scores, and whether these can be compared with those of no other positive."""
        layout, source = self.layout, self._source
        positives = self._items(values, layout.positive)
        if not positives:
            raise ValueError(f"{layout.positive!r} is empty")
        negatives: list[_Item] = []
        if source.kind != "pairs":
            for name in layout.negatives:
                negatives += self._items(values, name, may_be_empty=True)
        if source.kind == "triples" and not negatives:
            raise ValueError("no negatives")
        if layout.of_positives:
            positives = _scored(positives, as_list(values.get(layout.of_positives)), layout.of_positives)
        if layout.of_negatives and negatives:
            negatives = _scored(negatives, as_list(values.get(layout.of_negatives)), layout.of_negatives)
        scores = as_list(values.get(layout.scores)) if layout.scores else []
        if not layout.scores or scores == [None]:
            return positives, negatives, False
        if len(scores) == len(positives) + len(negatives):
            both = _scored([*positives, *negatives], scores, layout.scores)
            return both[: len(positives)], both[len(positives) :], False
        if len(positives) == 1 and len(scores) == len(negatives):
            # Differences to the positive, as MarginMSE learns them: with 0 for it they are all the same.
            margins = [-score_of(score, layout.scores) for score in scores]
            return _with_scores(positives, [0.0]), _with_scores(negatives, margins), True
        raise ValueError(
            f"{len(scores)} scores in {layout.scores!r} for {len(positives) + len(negatives)} documents"
        )

    def _items(self, values: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> list[_Item]:
        """The documents of a column: one, a list, or lists by the system that found them."""
        value = values.get(name)
        if isinstance(value, Mapping) and not any(key in value for key in ("text", *DOCUMENT_ID_NAMES)):
            found = [item for part in value.values() if part is not None for item in as_list(part)]
            return [self._item(item, name) for item in found]
        if isinstance(value, list | tuple):
            return [self._item(item, f"{name}[{index}]") for index, item in enumerate(value)]
        if may_be_empty and (value is None or (isinstance(value, str) and not value.strip())):
            return []
        return [self._item(value, name) if isinstance(value, Mapping) else _Item(required_text(values, name))]

    def _item(self, value: Any, name: str) -> _Item:
        score = math.nan
        if isinstance(value, Mapping):
            given = next((value[key] for key in ("ce-score", *SCORE_NAMES) if key in value), None)
            score = score_of(given, name)
            text = text_of_passage(value, name, ids=self._ids)
        else:
            text = text_of(value, name).strip()
        if not text:
            raise ValueError(f"{name!r} is empty")
        return _Item(text, score)

    def _document(self, values: Mapping[str, Any]) -> Parsed:
        layout = self.layout
        text = required_text(values, layout.text)
        title = text_of(values.get(layout.title), layout.title).strip() if layout.title else ""
        made = make_queries(title, text, self._source.queries, seed=self._seed)
        examples = tuple(Example(query, (made.passage,), 1) for _, query in made.queries)
        return Parsed(examples, passages=(made.passage,))


def _scored(items: Sequence[_Item], scores: Sequence[Any], name: str) -> list[_Item]:
    if len(scores) != len(items):
        raise ValueError(f"{len(scores)} scores in {name!r} for {len(items)} documents")
    return _with_scores(items, [score_of(score, name) for score in scores])


def _with_scores(items: Sequence[_Item], scores: Sequence[float]) -> list[_Item]:
    return [item._replace(score=score) for item, score in zip(items, scores, strict=True)]
