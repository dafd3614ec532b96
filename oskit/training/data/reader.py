"""From a source's records to training examples and passages, one record at a time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oskit.data.collection import QRELS, Collection
from oskit.data.documents import Document, FieldNames, Record, Refusal
from oskit.data.files import read_records
from oskit.data.jsonl import read_jsonl
from oskit.data.values import clean_value, text_of
from oskit.errors import DataError, first_line
from oskit.training.data.arrow import datasets_module
from oskit.training.data.pseudo_queries import make_queries
from oskit.training.recipe.sources import (
    DataSource,
    Kind,
    Layout,
    check_path,
    is_saved_dataset,
    kind_of_folder,
    wanted_columns,
)


@dataclass(frozen=True)
class Example:
    """A query, a text that answers it, and texts that do not."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parsed:
    """What one record gave.

    Attributes:
        examples: Training examples; none of a document that is only there to be found.
        passages: Further texts of the corpus.
        dropped: Negatives that are the positive itself, or that the corpus lacks.
    """

    examples: tuple[Example, ...] = ()
    passages: tuple[str, ...] = ()
    dropped: int = 0


Tell = Callable[[Kind, str], None]
"""Called once with the kind of a source, and with which columns were taken for what."""


def read_source(source: DataSource, tell: Tell, *, seed: int = 0) -> Iterator[Parsed | Refusal]:
    """Every record of a source as what it gives, or as a refusal that says where and why.

    Raises:
        DataError: The source cannot be read at all, or lacks the columns.
        UsageError: The format or the kind cannot be.
        MissingDependencyError: ``datasets`` or ``pyarrow`` is not installed.
    """
    path = check_path(source)
    if path is not None and path.is_dir() and not is_saved_dataset(path):
        kind = kind_of_folder(path) if source.kind == "auto" else source.kind
        if kind == "beir":
            tell(kind, f"judgements of {QRELS}/{source.split}.tsv")
            return _read_beir(path, source)
    return _read_by_columns(source, path, tell, seed)


def _read_by_columns(
    source: DataSource, path: Path | None, tell: Tell, seed: int
) -> Iterator[Parsed | Refusal]:
    layout: Layout | None = None
    for record in _records(source, path):
        if isinstance(record, Refusal):
            yield record
            continue
        if layout is None:
            layout = Layout(source, record.values)
            tell(layout.kind, str(layout))
        try:
            yield _parse(record.values, layout, source, seed)
        except ValueError as error:
            yield Refusal(record.where, str(error), record.raw or json.dumps(clean_value(record.values)))


def _records(source: DataSource, path: Path | None) -> Iterator[Record | Refusal]:
    if source.hub is not None:
        return _rows_of(_load_from_hub(source), source.name)
    if path is not None and is_saved_dataset(path):
        return _rows_of(_load_saved(path), source.name)
    return read_records(path or "-", format=source.format, wanted=wanted_columns(source))


def _rows_of(dataset: Any, name: str) -> Iterator[Record]:
    for number, row in enumerate(dataset, start=1):
        yield Record(f"{name}:{number}", row)


def _load_from_hub(source: DataSource) -> Any:
    datasets = datasets_module()
    try:
        return datasets.load_dataset(source.hub, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # whatever huggingface_hub, its HTTP library, fsspec and pyarrow raise
        raise DataError(
            f"the data set {source.name} cannot be loaded from the Hugging Face Hub: {first_line(error)}",
            hint="Check its name, subset, split, the network, HF_HUB_OFFLINE and the login; or give a file",
        ) from error


def _load_saved(path: Path) -> Any:
    datasets = datasets_module()
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow's, or of whatever kind a cut-off JSON leads to
        raise DataError(f"the data set saved in {path} cannot be loaded: {first_line(error)}") from error


def _parse(values: Mapping[str, Any], layout: Layout, source: DataSource, seed: int) -> Parsed:
    if layout.kind == "documents":
        return _parse_document(values, layout, source, seed)
    _check_label(values)
    query = _required(values, layout.query)
    positives = _texts(values, layout.positive)
    if not positives:
        raise ValueError(f"{layout.positive!r} is empty")
    given: list[str] = []
    if source.kind != "pairs":
        given = [text for name in layout.negatives_among(values) for text in _negatives(values, name)]
    unique = tuple(dict.fromkeys(given))
    negatives = tuple(text for text in unique if text not in positives)
    if layout.kind == "triples" and source.kind == "triples" and not given:
        raise ValueError("no negatives")
    examples = tuple(Example(query, positive, negatives) for positive in dict.fromkeys(positives))
    return Parsed(examples, dropped=len(unique) - len(negatives))


def _check_label(values: Mapping[str, Any]) -> None:
    """Pairs with labels 0 and 1 also hold pairs that do not match; as positives they would do harm."""
    label = values.get("label")
    if isinstance(label, bool | int | float | str) and str(label).strip() in ("0", "0.0", "False", "false"):
        raise ValueError(f"the label {label!r} says that the two do not match")


def _parse_document(values: Mapping[str, Any], layout: Layout, source: DataSource, seed: int) -> Parsed:
    text = _required(values, layout.text)
    title = text_of(values.get(layout.title), layout.title).strip() if layout.title else ""
    made = make_queries(title, text, source.queries, seed=seed)
    examples = tuple(Example(query, made.passage) for _, query in made.queries)
    return Parsed(examples, passages=(made.passage,))


def _required(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        raise ValueError(f"no field {name!r}")
    text = text_of(values[name], name).strip()
    if not text:
        raise ValueError(f"{name!r} is empty")
    return text


def _texts(values: Mapping[str, Any], name: str) -> list[str]:
    """One text, or each of a list of texts (or of passages with title and text)."""
    value = values.get(name)
    if not isinstance(value, list | tuple):
        return [_required(values, name)]
    texts = [_passage(item, f"{name}[{index}]") for index, item in enumerate(value)]
    for index, text in enumerate(texts):
        if not text:
            raise ValueError(f"'{name}[{index}]' is empty")
    return texts


def _passage(value: Any, name: str) -> str:
    if isinstance(value, Mapping) and "text" in value:
        title = text_of(value.get("title"), f"{name}.title").strip()
        return f"{title} {text_of(value['text'], f'{name}.text').strip()}".strip()
    return text_of(value, name).strip()


def _negatives(values: Mapping[str, Any], name: str) -> list[str]:
    """As :func:`_texts`; a column may be empty where a row has fewer negatives than another."""
    value = values[name]
    if isinstance(value, list | tuple):
        return _texts(values, name)
    text = text_of(value, name).strip()
    return [text] if text else []


def _read_beir(folder: Path, source: DataSource) -> Iterator[Parsed | Refusal]:
    """The documents as passages, then each judged query as examples."""
    collection = Collection.open(folder, source.split)
    assert isinstance(collection.corpus, Path)
    judged = {document for row in collection.qrels.values() for document in row}
    # SQLite keeps the judged texts in a few megabytes of memory and the rest in a temporary file.
    with closing(sqlite3.connect("", isolation_level=None)) as texts:
        texts.execute("CREATE TABLE judged (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
        for item in read_jsonl(collection.corpus, FieldNames("_id")):
            if isinstance(item, Document):
                yield _beir_document(item, judged, texts)
            else:
                yield item
        for query in collection.queries:
            yield _beir_query(query, collection, source, texts)


def _beir_document(item: Document, judged: set[str], texts: sqlite3.Connection) -> Parsed | Refusal:
    passage = item.passage.strip()
    if item.id in judged:
        cursor = texts.execute("INSERT OR IGNORE INTO judged VALUES (?, ?)", (item.id, passage))
        if cursor.rowcount != 1:
            return Refusal(item.where, f"the id {item.id!r} came before")
    # Collections that people use have empty documents; they are never a positive, see below.
    return Parsed(passages=(passage,) if passage else ())


def _beir_query(
    key: str, collection: Collection, source: DataSource, texts: sqlite3.Connection
) -> Parsed | Refusal:
    where = f"{source.path}: query {key!r}"
    query = collection.queries[key].strip()
    if not query:
        return Refusal(where, "its text is empty")
    positives, negatives, dropped = [], [], 0
    for document, grade in collection.qrels[key].items():
        row = texts.execute("SELECT text FROM judged WHERE id = ?", (document,)).fetchone()
        text = row[0] if row else ""
        if grade >= source.min_relevance:
            if not text:
                return Refusal(
                    where, f"its document {document!r} is {'empty' if row else 'not in the corpus'}"
                )
            positives.append(text)
        elif grade <= 0 and source.judged_negatives:
            negatives.append(text)
    unique = dict.fromkeys(negatives)
    kept = tuple(text for text in unique if text and text not in positives)
    dropped = len(unique) - len(kept)
    return Parsed(tuple(Example(query, text, kept) for text in dict.fromkeys(positives)), dropped=dropped)
