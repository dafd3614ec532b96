"""From a source's records to training examples and passages, one record at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from oskit.data.collection import QRELS, Collection, find_corpus
from oskit.data.documents import FieldNames, Refusal
from oskit.data.duplicates import SeenTexts
from oskit.data.jsonl import read_jsonl
from oskit.data.values import clean_value, text_of
from oskit.errors import DataError, UsageError
from oskit.training.data.layout import DOCUMENT_ID_NAMES, SCORE_NAMES, Layout, grade_of, wanted_columns
from oskit.training.data.lookups import Joined
from oskit.training.data.pseudo_queries import make_queries
from oskit.training.data.records import (
    Add,
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

Tell = Callable[[Kind, str, Sequence[str]], object]
"""Called for each sort of record with its kind, which columns were taken for what, and which for nothing."""


def read_source(
    source: DataSource, tell: Tell, add: Add | None, *, seed: int = 0
) -> Iterator[Parsed | Refusal]:
    """Every record of a source as what it gives, or as a refusal that says where and why.

    Queries that are made of documents follow from the seed. Where texts are not kept (``add`` is None), ids
    are left as they are, and nothing is read for them.

    Raises:
        DataError: The source cannot be read at all, or lacks the columns.
        UsageError: The format or the kind cannot be.
    """
    path = existing(source)
    is_folder = path is not None and path.is_dir()
    if source.kind == "beir" and not is_folder:
        raise UsageError(
            f"{source.path} is a file; the kind beir needs a folder with corpus.jsonl and qrels/"
        )
    if path is not None and is_folder and not is_saved_dataset(path):
        if source.kind == "auto" and find_corpus(path) is None:
            raise DataError(
                f"the folder {path} has no corpus.jsonl and is no saved data set",
                hint="Name the files themselves",
            )
        if source.kind == "beir" or (source.kind == "auto" and (path / QRELS).is_dir()):
            tell("beir", f"judgements of {QRELS}/{source.split}.tsv", ())
            return _read_beir(path, source, add or _nowhere)
    return _read_by_columns(source, path, tell, add, seed)


def _nowhere(_text: str) -> int:
    return -1


def _read_by_columns(
    source: DataSource, path: Path | None, tell: Tell, add: Add | None, seed: int
) -> Iterator[Parsed | Refusal]:
    joined = Joined(None if add is None else source.join)
    readers: dict[frozenset[str], _Reader] = {}
    for record in records_of(source, path, wanted_columns(source)):
        if isinstance(record, Refusal):
            yield record
            continue
        columns = frozenset(record.values)
        if columns not in readers:
            first = next((reader.layout for reader in readers.values()), None)
            layout = _layout_of(source, record.values, first)
            readers[columns] = _Reader(source, layout, joined, add or _nowhere, seed)
            tell(layout.kind, str(layout), layout.ignored)
        try:
            yield readers[columns].parse(record.values)
        except ValueError as error:
            yield Refusal(record.where, str(error), record.raw or json.dumps(clean_value(record.values)))


def _layout_of(source: DataSource, values: Mapping[str, Any], first: Layout | None) -> Layout:
    """Records of one file need not be alike; what makes no sense of its own is read like the first one."""
    try:
        layout = Layout(source, values)
    except DataError:
        if first is None:
            raise
        return first
    is_other = first is not None and (layout.kind == "documents") != (first.kind == "documents")
    return first if first is not None and is_other else layout


class _Item(NamedTuple):
    """A document of a record: its text or id, its score (NaN: none), and whether it is known to answer."""

    text: str
    score: float = math.nan
    answers: bool = False


class _Reader:
    """Records of one layout to examples; a record that is not right raises ValueError."""

    def __init__(self, source: DataSource, layout: Layout, joined: Joined, add: Add, seed: int) -> None:
        self.layout, self._source, self._joined = layout, source, joined
        self._add, self._seed = add, seed

    def parse(self, values: Mapping[str, Any]) -> Parsed:
        """What a record gives."""
        if self.layout.kind == "documents":
            return self._document(values)
        query, joined, apart = required_text(values, self.layout.query), self._joined, False
        if self.layout.kind == "candidates":
            items = self._candidates(values)
        else:
            items, apart = self._positives_and_negatives(values)
        if joined.scores is not None:
            items = _scored(items, joined.scores.of(query, [item.text for item in items]), "")
        if joined.queries is not None:
            key, query = query, joined.queries.text(query)
            if not query:
                raise ValueError(f"the query {key!r} is empty, or not in {joined.queries.name}")
        # Known positives first. What differs by its score alone, merging makes one.
        items = list(dict.fromkeys(sorted(items, key=lambda item: not item.answers)))
        texts, scores, dropped = [item.text for item in items], [item.score for item in items], 0
        count = sum(item.answers for item in items)
        known = joined.corpus
        if known is None:
            rows = list(map(self._add, texts))
        else:
            numbers = known.find(texts)
            there = numbers >= 0
            if not there[:count].all():
                raise ValueError(f"its document {texts[int(there.argmin())]!r} is not in {known.name}")
            dropped = int((~there).sum())
            rows = known.rows(numbers[there].tolist(), self._add)
            scores = list(compress(scores, there))
        scores = [] if all(map(math.isnan, scores)) else scores
        return Parsed((Example(query, rows, count, scores, apart=apart),), dropped)

    def _candidates(self, values: Mapping[str, Any]) -> list[_Item]:
        """Known positives and other documents of a record with scores or labels.

        A grade between the two says neither; only a score makes such a document a candidate.
        """
        layout, source = self.layout, self._source
        items = self._items(values, layout.documents)
        if layout.scores:
            items = _scored(items, as_list(values.get(layout.scores)), layout.scores)
        if not layout.label:
            return items
        labels = as_list(values.get(layout.label))
        if len(labels) != len(items):
            raise ValueError(f"{len(labels)} labels in {layout.label!r} for {len(items)} documents")
        found = []
        for item, label in zip(items, labels, strict=True):
            grade = grade_of(label)
            if grade is None:
                raise ValueError(
                    f"{layout.label!r} holds {label!r}, which is no grade (0, 1, …); if these are scores, "
                    f"name the column so: columns: {{scores: {layout.label}}}"
                )
            answers = grade >= source.min_relevance
            if answers or not math.isnan(item.score) or (grade <= 0 and source.judged_negatives):
                found.append(item._replace(answers=answers))
        return found

    def _positives_and_negatives(self, values: Mapping[str, Any]) -> tuple[list[_Item], bool]:
        """Both, with their scores, and whether these can be compared with those of no other positive."""
        layout, source = self.layout, self._source
        positives = [item._replace(answers=True) for item in self._items(values, layout.positive)]
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
        items = [*positives, *negatives]
        scores = as_list(values.get(layout.scores)) if layout.scores else [None]
        if scores == [None]:
            return items, False
        apart = len(positives) == 1 and len(scores) == len(negatives)
        if apart:
            # Differences to the positive, as MarginMSE learns them: with 0 for it they are all the same.
            scores = [0.0, *(-score_of(score, layout.scores) for score in scores)]
        return _scored(items, scores, layout.scores), apart

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
            text = text_of_passage(value, name, ids=self._joined.corpus is not None)
        else:
            text = text_of(value, name).strip()
        if not text:
            raise ValueError(f"{name!r} is empty")
        return _Item(text, score)

    def _document(self, values: Mapping[str, Any]) -> Parsed:
        layout = self.layout
        text = required_text(values, layout.text)
        title = text_of(values.get(layout.title), layout.title).strip() if layout.title else ""
        queries, passage = make_queries(title, text, self._source.queries, seed=self._seed)
        row = self._add(passage)
        return Parsed(tuple(Example(query, [row], 1) for _, query in queries))


def _scored(items: Sequence[_Item], scores: Sequence[Any], name: str) -> list[_Item]:
    if len(scores) != len(items):
        raise ValueError(f"{len(scores)} scores in {name!r} for {len(items)} documents")
    return [item._replace(score=score_of(score, name)) for item, score in zip(items, scores, strict=True)]


def _read_beir(folder: Path, source: DataSource, add: Add) -> Iterator[Parsed | Refusal]:
    """The documents of a folder in BEIR's layout, then each judged query as an example.

    Raises:
        DataError: A file is missing, or the queries or judgements are broken.
    """
    collection = Collection.open(folder, source.split)
    assert isinstance(collection.corpus, Path)
    wanted = {document for row in collection.qrels.values() for document in row} | collection.queries.keys()
    with closing(SeenTexts()) as texts:
        for item in read_jsonl(collection.corpus, FieldNames("_id")):
            if isinstance(item, Refusal):
                yield item
                continue
            passage = item.passage.strip()
            if item.id in wanted and not texts.add(item.id, content=passage.encode()):
                yield Refusal(item.where, f"the id {item.id!r} came before")
                continue
            if passage:  # collections that people use have empty documents; see below: never a positive
                add(passage)
            yield Parsed()
        for query in collection.queries:
            yield _judged_query(query, collection, source, texts, add)


def _judged_query(
    key: str, collection: Collection, source: DataSource, texts: SeenTexts, add: Add
) -> Parsed | Refusal:
    where = f"{source.path}: query {key!r}"
    query = collection.queries[key].strip()
    if not query:
        return Refusal(where, "its text is empty")
    positives, negatives, dropped = list[str](), list[str](), 0
    for document, grade in collection.qrels[key].items():
        text = texts.content_of(document)
        # A document with the query's id is the query itself (ArguAna): neither an answer nor a wrong one.
        if document == key or (grade < source.min_relevance and (grade > 0 or not source.judged_negatives)):
            continue
        if text:
            (negatives if grade < source.min_relevance else positives).append(text.decode())
        elif grade < source.min_relevance:
            dropped += 1
        else:
            problem = "not in the corpus" if text is None else "empty"
            return Refusal(where, f"its document {document!r} is {problem}")
    if not positives:
        return Parsed(dropped=dropped)
    itself = texts.content_of(key)
    rows = [add(text) for text in (*positives, *negatives)]
    example = Example(query, rows, len(positives), itself=add(itself.decode()) if itself else -1)
    return Parsed((example,), dropped)
