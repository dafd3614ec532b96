"""The records of a source, and the values that they hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from oskit.data.documents import Record, Refusal
from oskit.data.files import read_records
from oskit.data.values import text_of
from oskit.errors import DataError, first_line
from oskit.training.data.layout import DOCUMENT_ID_NAMES, first_of
from oskit.training.recipe.sources import Place

_LARGEST = float(np.finfo(np.float32).max)
"""Scores are kept in 32 bits, where more is infinite."""

Add = Callable[[str], int]
"""Adds a text to the corpus, if it is new, and gives its row."""


class Example(NamedTuple):
    """A query with candidates."""

    query: str  # its text
    rows: list[int]  # the candidates, known positives first
    positives: int  # how many of the first answer the query
    scores: Sequence[float] = ()  # of each candidate, NaN where there is none; empty if there are none at all
    itself: int = -1  # the document that the query is, if it is one
    # whether scores are differences to the positive, so that those of another positive are others
    apart: bool = False


class Parsed(NamedTuple):
    """What one record gave."""

    examples: tuple[Example, ...] = ()  # training examples; none of a document that is only there to be found
    dropped: int = 0  # negatives that the corpus lacks


def records_of(place: Place, path: Path | None, wanted: Sequence[str]) -> Iterator[Record | Refusal]:
    """Every record of a file, a saved data set, or one of the Hub; DataError where it cannot be read."""
    if place.hub is None and (path is None or not is_saved_dataset(path)):
        return read_records(path or "-", format=place.format, wanted=wanted)
    try:
        if place.hub is None:
            rows = datasets.load_from_disk(str(path))
        else:
            rows = datasets.load_dataset(place.hub, place.subset, split=place.split, revision=place.revision)
    except Exception as error:  # whatever huggingface_hub, its HTTP library, fsspec, pyarrow and json raise
        where = "" if place.hub is None else " from the Hugging Face Hub"
        raise DataError(
            f"the data set {place.name} cannot be loaded{where}: {first_line(error)}",
            hint="Check its name, subset, split, the network, HF_HUB_OFFLINE and the login; or give a file",
        ) from error
    return (Record(f"{place.name}:{number}", row) for number, row in enumerate(rows, start=1))


def error_of(refusal: Refusal) -> DataError:
    """What ends the reading of a source that leaves no record out."""
    return DataError(
        f"{refusal.where}: {refusal.reason}", hint="Correct it, or leave such records out with broken: skip"
    )


def existing(place: Place) -> Path | None:
    """Its path, None for stdin and for the Hub; DataError where there is nothing."""
    if place.path is None or place.path == "-":
        return None
    path = Path(place.path).expanduser()
    if (path / "dataset_dict.json").is_file():  # of `DatasetDict.save_to_disk`, a folder for each split
        path /= place.split
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    return path


def is_saved_dataset(path: Path) -> bool:
    """Whether it is a folder that ``Dataset.save_to_disk`` wrote."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def score_of(value: Any, name: str) -> float:
    """A score; NaN for null, ValueError for what is no number."""
    if value is None:
        return math.nan
    try:
        score = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        score = math.inf
    except (TypeError, ValueError):
        raise ValueError(f"{name!r} holds {value!r}, which is no number") from None
    if abs(score) > _LARGEST:
        raise ValueError(f"{name!r} holds a score that is not finite, or too large for 32 bits")
    return score


def as_list(value: Any) -> list[Any]:
    """A list as it is, one value as a list of it."""
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def required_text(values: Mapping[str, Any], name: str) -> str:
    """The text of a field; ValueError where it is not there, empty or no text."""
    if name not in values:
        raise ValueError(f"no field {name!r}")
    if text := text_of(values[name], name).strip():
        return text
    raise ValueError(f"{name!r} is empty")


def text_of_passage(value: Mapping[str, Any], name: str, *, ids: bool) -> str:
    """The text of a passage, with its title in front; or its id."""
    if ids:
        key = first_of((*DOCUMENT_ID_NAMES, "_id", "id"), value)
        if not key:
            raise ValueError(f"{name!r} has no id")
        return text_of(value[key], f"{name}.{key}").strip()
    if "text" not in value:
        return text_of(value, name).strip()  # an object, which it refuses
    title = text_of(value.get("title"), f"{name}.title").strip()
    return f"{title} {text_of(value['text'], f'{name}.text').strip()}".strip()
