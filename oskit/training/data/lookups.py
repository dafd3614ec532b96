"""Texts and scores that a source names by ids."""

from __future__ import annotations

import gzip
import math
import pickle
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from oskit.data.collection import find_corpus, find_queries
from oskit.data.documents import Record, Refusal
from oskit.data.values import clean_text, text_of
from oskit.errors import DataError, first_line
from oskit.training.data.arrow import CORPUS, DataFolder, RowWriter, open_rows
from oskit.training.data.layout import (
    DOCUMENT_ID_NAMES,
    QUERY_ID_NAMES,
    QUERY_NAMES,
    SCORE_NAMES,
    TEXT_NAMES,
    TITLE_NAMES,
    first_of,
)
from oskit.training.data.normalising import key_of
from oskit.training.data.records import Add, as_list, existing, is_saved_dataset, records_of, score_of
from oskit.training.recipe.sources import Join, Place, TextsById

_Row = TypeVar("_Row")


class Joined:
    """What a source's ids stand for; None where the source has no such ids."""

    def __init__(self, join: Join | None) -> None:
        self.queries = KnownTexts(join.queries, queries=True) if join and join.queries else None
        self.corpus = KnownTexts(join.corpus, queries=False) if join and join.corpus else None
        self.scores = KnownScores(join.scores) if join and join.scores else None


class KnownTexts:
    """Texts by their ids: 20 bytes each in memory, the texts on disk; DataError where one id has two."""

    def __init__(self, place: TextsById, *, queries: bool) -> None:
        self.name = place.name
        self._folder = DataFolder(None)
        keys = array("Q")
        with RowWriter(self._folder.path / "texts.arrow", CORPUS) as writer:
            for identity, text in _texts_of(place, queries=queries):
                keys.append(key_of(identity))
                writer.add(identity, text)
        self._texts = open_rows(self._folder.path / "texts.arrow")
        self._keys = _Keys(keys)
        self._rows = np.full(len(keys), -1, dtype=np.int32)
        for pair in self._keys.twice():
            ids, texts = self._texts[pair].values()
            if ids[0] == ids[1] and texts[0] != texts[1]:
                raise DataError(f"{self.name}: two texts have the id {ids[0]!r}", hint="Remove one of them")

    def find(self, identities: Sequence[str]) -> NDArray[np.int64]:
        """The number of each text; -1 for those that are not there."""
        return self._keys.find(map(key_of, identities))

    def text(self, identity: str) -> str:
        """The text of an id; empty where there is none."""
        number = int(self.find([identity])[0])
        return str(self._texts[number]["text"]) if number >= 0 else ""

    def rows(self, numbers: Sequence[int], add: Add) -> list[int]:
        """The rows of these in a corpus, to which ``add`` adds those that were not asked for before."""
        new = [number for number in numbers if self._rows[number] < 0]
        for number, text in zip(new, self._texts[new]["text"], strict=True):
            self._rows[number] = add(text)
        return [int(row) for row in self._rows[list(numbers)]]


class KnownScores:
    """Scores of query and document by their ids: 20 bytes each."""

    def __init__(self, place: Place) -> None:
        path = existing(place)
        keys, scores = array("Q"), array("f")
        is_pickle = path is not None and ".pkl" in path.suffixes
        rows = _pickled(path) if is_pickle and path is not None else _score_rows(place, path)
        for query, document, score in rows:
            keys.append(key_of(query, document))
            scores.append(score)
        self._keys = _Keys(keys)
        self._scores = np.frombuffer(scores, dtype=np.float32)

    def of(self, query: str, documents: Sequence[str]) -> list[float]:
        """The score of each document; NaN where there is none."""
        found = self._keys.find(key_of(query, document) for document in documents)
        return [float(self._scores[place]) if place >= 0 else math.nan for place in found]


class _Keys:
    """Numbers, and where each stands."""

    def __init__(self, keys: array[int]) -> None:
        own = np.frombuffer(keys, dtype=np.uint64)
        self._places = np.argsort(own, kind="stable")
        self._keys = own[self._places]

    def find(self, wanted: Iterable[int]) -> NDArray[np.int64]:
        """Where each stands; -1 for those that are not there."""
        asked = np.fromiter(wanted, dtype=np.uint64)
        if not len(self._keys):
            return np.full(len(asked), -1)
        found = np.searchsorted(self._keys, asked).clip(max=len(self._keys) - 1)
        return np.where(self._keys[found] == asked, self._places[found], -1)

    def twice(self) -> Iterator[list[int]]:
        """Pairs of places with the same number."""
        for number in np.flatnonzero(self._keys[1:] == self._keys[:-1]):
            yield self._places[number : number + 2].tolist()


def _texts_of(place: TextsById, *, queries: bool) -> Iterator[tuple[str, str]]:
    """Id and text of each record."""
    path = existing(place)
    if path is not None and path.is_dir() and not is_saved_dataset(path):
        found = find_queries(path) if queries else find_corpus(path)
        if found is None:
            raise DataError(f"the folder {path} has no {'queries' if queries else 'corpus'}.jsonl")
        path = found
    columns = place.columns
    ids = ("_id", "id", *(QUERY_ID_NAMES if queries else DOCUMENT_ID_NAMES))
    texts = (*QUERY_NAMES, *TEXT_NAMES) if queries else (*TEXT_NAMES, "document", "doc")
    roles = {
        "id": (columns.id,) if columns.id else ids,
        "text": (columns.text,) if columns.text else texts,
    }
    titles = (columns.title,) if columns.title else () if queries else TITLE_NAMES

    def use(record: Record, names: list[str]) -> Iterator[tuple[str, str]]:
        identity, text = (text_of(record.values[name], name).strip() for name in names)
        title = first_of(titles, record.values)
        front = text_of(record.values[title], title).strip() if title else ""
        yield identity, clean_text(f"{front} {text}".strip())

    return _each(place, path, roles, use)


def _score_rows(place: Place, path: Path | None) -> Iterator[tuple[str, str, float]]:
    def use(record: Record, names: list[str]) -> Iterator[tuple[str, str, float]]:
        query, documents, scores = (record.values[name] for name in names)
        documents, scores = as_list(documents), as_list(scores)
        if len(documents) != len(scores):
            raise ValueError(f"{len(scores)} scores for {len(documents)} documents")
        for document, score in zip(documents, scores, strict=True):
            yield text_of(query, names[0]), text_of(document, names[1]), score_of(score, names[2])

    roles = {"query's id": QUERY_ID_NAMES, "documents' ids": DOCUMENT_ID_NAMES, "scores": SCORE_NAMES}
    return _each(place, path, roles, use)


def _each(
    place: Place,
    path: Path | None,
    roles: Mapping[str, Sequence[str]],
    use: Callable[[Record, list[str]], Iterator[_Row]],
) -> Iterator[_Row]:
    """What ``use`` makes of each record and of the names of its columns, which the first record tells."""
    names: list[str] = []
    for record in records_of(place, path, [name for known in roles.values() for name in known]):
        try:
            if isinstance(record, Refusal):
                raise ValueError(record.reason)
            names = names or [first_of(known, record.values) for known in roles.values()]
            for role, name in zip(roles, names, strict=True):
                if name not in record.values:
                    there = ", ".join(map(repr, record.values)) or "none"
                    raise ValueError(f"no column for the {role}, but {there}")
            yield from use(record, names)
        except ValueError as error:
            raise DataError(f"{record.where}: {error}", hint="Correct or remove it") from error


class _Plain(pickle.Unpickler):
    """Reads dictionaries, lists and numbers, and nothing that would call code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, not numbers alone")


def _pickled(path: Path) -> Iterator[tuple[str, str, float]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found = _Plain(file).load()
        for query in list(found):
            scores = found.pop(query)  # one after the other, for it is large
            for document, score in scores.items():
                yield str(query), str(document), score_of(score, str(query))
    except Exception as error:  # whatever a damaged pickle, or one of something else, makes of it
        raise DataError(
            f"{path} cannot be read as a pickle of scores by query and document: {first_line(error)}"
        ) from error
