"""The records of a source, and texts and scores that are looked up by id."""

from __future__ import annotations

import array
import gzip
import math
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.data.collection import find_corpus, find_queries
from oskit.data.documents import Record, Refusal
from oskit.data.duplicates import digest_of
from oskit.data.files import read_records
from oskit.data.values import clean_text, text_of
from oskit.errors import DataError, first_line
from oskit.training.data.arrow import CORPUS, DataFolder, RowWriter, datasets_module, open_rows
from oskit.training.data.layout import (
    DOCUMENT_ID_NAMES,
    ID_NAMES,
    QUERY_ID_NAMES,
    QUERY_NAMES,
    SCORE_NAMES,
    TEXT_NAMES,
    TITLE_NAMES,
    first_of,
)
from oskit.training.recipe.sources import Join, Place, TextsById

if TYPE_CHECKING:
    from numpy.typing import NDArray

_QUERIES = (*QUERY_NAMES, *TEXT_NAMES)
_DOCUMENTS = (*TEXT_NAMES, "document", "doc", "sentence")


def records_of(place: Place, path: Path | None, wanted: Sequence[str]) -> Iterator[Record | Refusal]:
    """Every record of a file, a saved data set, or one of the Hub.

    Raises:
        DataError: It cannot be read.
        UsageError: The format cannot be told.
        MissingDependencyError: ``datasets`` or ``pyarrow`` is not installed.
    """
    if place.hub is not None:
        return _rows_of(_load_from_hub(place), place.name)
    if path is not None and is_saved_dataset(path):
        return _rows_of(_load_saved(path), place.name)
    return read_records(path or "-", format=place.format, wanted=wanted)


def existing(place: Place) -> Path | None:
    """Its path, None for stdin and for the Hub.

    Raises:
        DataError: There is nothing.
    """
    if place.path is None or place.path == "-":
        return None
    path = Path(place.path).expanduser()
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    return path


def is_saved_dataset(path: Path) -> bool:
    """Whether it is a folder that ``Dataset.save_to_disk`` wrote."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _rows_of(dataset: Any, name: str) -> Iterator[Record]:
    for number, row in enumerate(dataset, start=1):
        yield Record(f"{name}:{number}", row)


def _load_from_hub(place: Place) -> Any:
    datasets = datasets_module()
    try:
        return datasets.load_dataset(place.hub, place.subset, split=place.split, revision=place.revision)
    except Exception as error:  # whatever huggingface_hub, its HTTP library, fsspec and pyarrow raise
        raise DataError(
            f"the data set {place.name} cannot be loaded from the Hugging Face Hub: {first_line(error)}",
            hint="Check its name, subset, split, the network, HF_HUB_OFFLINE and the login; or give a file",
        ) from error


def _load_saved(path: Path) -> Any:
    datasets = datasets_module()
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow's, or of whatever kind a cut-off JSON leads to
        raise DataError(f"the data set saved in {path} cannot be loaded: {first_line(error)}") from error


class KnownTexts:
    """Texts by their ids: 16 bytes each in memory, the texts on disk.

    Args:
        place: Where they are.
        queries: Whether they are queries; else documents.

    Raises:
        DataError: They cannot be read, or one id has two texts.
    """

    def __init__(self, place: TextsById, *, queries: bool) -> None:
        path = existing(place)
        if path is not None and path.is_dir() and not is_saved_dataset(path):
            found = find_queries(path) if queries else find_corpus(path)
            if found is None:
                raise DataError(f"the folder {path} has no {'queries' if queries else 'corpus'}.jsonl")
            path = found
        self.name = place.name
        self._folder = DataFolder(None)
        keys = array.array("Q")
        with RowWriter(self._folder.path / "texts.arrow", CORPUS) as writer:
            for identity, text in _texts_of(place, path, queries=queries):
                keys.append(_key(identity))
                writer.add(identity, text)
        self._texts = open_rows(self._folder.path / "texts.arrow")
        own = np.frombuffer(keys, dtype=np.uint64)
        self._rows = np.argsort(own, kind="stable")
        self._keys = own[self._rows]
        self._check()

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, identities: Sequence[str]) -> NDArray[np.int64]:
        """The number of each text; -1 for those that are not there."""
        wanted = np.array([_key(identity) for identity in identities], dtype=np.uint64)
        if not len(self._keys):
            return np.full(len(wanted), -1)
        places = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        return np.where(self._keys[places] == wanted, self._rows[places], -1)

    def texts(self, numbers: Sequence[int]) -> list[str]:
        """The texts of these numbers."""
        found: list[str] = self._texts[list(numbers)]["text"] if len(numbers) else []
        return found

    def _check(self) -> None:
        for place in np.flatnonzero(self._keys[1:] == self._keys[:-1]).tolist():
            pair = self._texts[self._rows[place : place + 2].tolist()]
            if pair["id"][0] == pair["id"][1] and pair["text"][0] != pair["text"][1]:
                raise DataError(
                    f"{self.name}: two texts have the id {pair['id'][0]!r}", hint="Remove one of them"
                )


def _texts_of(place: TextsById, path: Path | None, *, queries: bool) -> Iterator[tuple[str, str]]:
    """Id and text of each record."""
    columns = place.columns
    ids = ("_id", "id", *(QUERY_ID_NAMES if queries else DOCUMENT_ID_NAMES))
    names: tuple[str, str, str] | None = None
    for record in records_of(place, path, [*ids, *TEXT_NAMES, *QUERY_NAMES]):
        if isinstance(record, Refusal):
            raise DataError(f"{record.where}: {record.reason}", hint="Correct or remove it")
        values = record.values
        if names is None:
            names = (
                columns.id or first_of(ids, values.keys()),
                columns.text or first_of(_QUERIES if queries else _DOCUMENTS, values.keys()),
                columns.title or first_of(TITLE_NAMES, values.keys()),
            )  # fmt: skip
        for role, name in zip(("id", "text"), names, strict=False):
            if name not in values:
                known = ", ".join(map(repr, values)) or "none"
                raise DataError(
                    f"{record.where} has no column for the {role}, but {known}",
                    hint=f"Name it: columns: {{{role}: ...}}",
                )
        try:
            text = text_of(values[names[1]], names[1]).strip()
            title = text_of(values.get(names[2]), names[2]).strip() if not queries else ""
            yield text_of(values[names[0]], names[0]), clean_text(f"{title} {text}".strip())
        except ValueError as error:
            raise DataError(f"{record.where}: {error}", hint="Correct or remove it") from error


class KnownScores:
    """Scores of query and document by their ids: 12 bytes each.

    Args:
        place: Where they are.

    Raises:
        DataError: They cannot be read.
    """

    def __init__(self, place: Place) -> None:
        path = existing(place)
        keys, scores = array.array("Q"), array.array("f")
        is_pickle = path is not None and ".pkl" in path.suffixes
        rows = _pickled(path) if is_pickle and path is not None else _score_rows(place, path)
        for query, document, score in rows:
            keys.append(_key(query, document))
            scores.append(score)
        own = np.frombuffer(keys, dtype=np.uint64)
        order = np.argsort(own, kind="stable")
        self._keys = own[order]
        self._scores = np.frombuffer(scores, dtype=np.float32)[order]

    def of(self, query: str, documents: Sequence[str]) -> list[float]:
        """The score of each document; NaN where there is none."""
        wanted = np.array([_key(query, document) for document in documents], dtype=np.uint64)
        if not len(self._keys) or not len(wanted):
            return [math.nan] * len(wanted)
        places = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        found = np.where(self._keys[places] == wanted, self._scores[places], np.nan)
        return [float(score) for score in found]


def _score_rows(place: Place, path: Path | None) -> Iterator[tuple[str, str, float]]:
    names: list[str] | None = None
    for record in records_of(place, path, ID_NAMES):
        if isinstance(record, Refusal):
            raise DataError(f"{record.where}: {record.reason}", hint="Correct or remove it")
        values = record.values
        if names is None:
            names = [
                first_of(known, values.keys()) for known in (QUERY_ID_NAMES, DOCUMENT_ID_NAMES, SCORE_NAMES)
            ]
            if not all(names):
                raise DataError(
                    f"{record.where} must have a query's id, documents' ids and scores, and has "
                    f"{', '.join(map(repr, values))}",
                    hint="Such as query_id, document_ids, scores",
                )
        documents, scores = as_list(values.get(names[1])), as_list(values.get(names[2]))
        if len(documents) != len(scores):
            raise DataError(f"{record.where} has {len(scores)} scores for {len(documents)} documents")
        try:
            query = text_of(values.get(names[0]), names[0])
            for document, score in zip(documents, scores, strict=True):
                yield query, text_of(document, names[1]), score_of(score, names[2])
        except ValueError as error:
            raise DataError(f"{record.where}: {error}") from error


class _Plain(pickle.Unpickler):
    """Reads dictionaries, lists and numbers, and nothing that would call code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, not numbers alone")


def _pickled(path: Path) -> Iterator[tuple[str, str, float]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found = _Plain(file).load()
    except Exception as error:  # whatever a damaged pickle makes of it
        raise DataError(f"{path} cannot be read as a pickle: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no dictionary of scores")
    for query in list(found):
        scores = found.pop(query)  # one after the other, for it is large
        if not isinstance(scores, Mapping):
            raise DataError(f"{path}: what it has of the query {query!r} is no dictionary of scores")
        for document, score in scores.items():
            yield str(query), str(document), score_of(score, str(query))


def score_of(value: Any, name: str) -> float:
    """A score; NaN for null.

    Raises:
        ValueError: It is no number.
    """
    if value is None:
        return math.nan
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name!r} holds {value!r}, which is no number") from None
    if math.isinf(score):
        raise ValueError(f"{name!r} holds a score that is not finite")
    return score


def as_list(value: Any) -> list[Any]:
    """A list as it is, one value as a list of it."""
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


class Joined:
    """What a source's ids stand for, opened when it is first asked for.

    Args:
        join: Where it is.
    """

    def __init__(self, join: Join) -> None:
        self.queries = None if join.queries is None else KnownTexts(join.queries, queries=True)
        self.corpus = None if join.corpus is None else KnownTexts(join.corpus, queries=False)
        self.scores = None if join.scores is None else KnownScores(join.scores)


def _key(*identities: str) -> int:
    return int.from_bytes(digest_of(*identities)[:8], "little")


def unique(items: Iterable[Any]) -> list[Any]:
    """Each once, in their order."""
    return list(dict.fromkeys(items))
