"""Queries held out of training data, as a collection to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oskit.data.collection import CORPUS, Collection
from oskit.data.documents import Document
from oskit.errors import DataError, UsageError
from oskit.training.data.arrow import column_of
from oskit.training.data.normalising import normalise, query_keys
from oskit.training.data.training_data import TrainingData, text_id

if TYPE_CHECKING:
    from numpy.typing import NDArray


def hold_out(
    data: TrainingData,
    *,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
) -> tuple[TrainingData, Collection]:
    """Take queries out of training data and make a collection of them.

    A query is held out with all its positives, which are its relevant documents; queries that are the same up
    to case, punctuation and white space count as one. The corpus of the collection is the whole corpus of the
    data. Which queries are taken depends on the seed and on each query alone: more data, or data in another
    order, moves no query from one side to the other as long as the fraction is given.

    Args:
        data: Training data.
        fraction: Share of the queries to hold out, above 0 and below 1.
        count: Number of queries to hold out, instead.
        seed: Which ones.
        folder: Where the collection is written, in BEIR's layout, and read from; without it the corpus is
            kept in memory, which is fine for a small one.

    Returns:
        The data without the examples of these queries, and the collection.

    Raises:
        UsageError: Neither or both of fraction and count are given, or one is out of its range.
        DataError: Nothing would be left to train on, or to evaluate on.
    """
    keys = query_keys(data.examples, salt=f"hold-out {seed}")
    queries = np.unique(keys)
    chosen = _choose(queries, fraction, count)
    if len(chosen) in (0, len(queries)):
        left = "to evaluate on" if not len(chosen) else "to train on"
        raise DataError(
            f"of {len(queries):,} queries {len(chosen):,} would be held out, which leaves none {left}",
            hint="Give another number, or more data",
        )
    held = np.isin(keys, chosen)
    collection = _collection(data, np.flatnonzero(held), folder)
    return data.with_examples(data.examples.select(np.flatnonzero(~held))), collection


def _choose(queries: NDArray[np.uint64], fraction: float | None, count: int | None) -> NDArray[np.uint64]:
    """Queries by their keys, which are as good as random numbers."""
    if (fraction is None) == (count is None):
        raise UsageError("give either the fraction or the count of queries to hold out")
    if count is not None:
        if count < 1:
            raise UsageError(f"{count} queries cannot be held out", hint="Give 1 or more")
        return queries[:count]
    assert fraction is not None
    if not 0 < fraction < 1:
        raise UsageError(f"{fraction:g} is no fraction to hold out", hint="Give a number between 0 and 1")
    return queries[queries < np.uint64(fraction * 2**64)]


def _collection(data: TrainingData, rows: NDArray[np.int64], folder: str | Path | None) -> Collection:
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    texts: dict[str, str] = {}
    columns = (column_of(data.examples, name, rows) for name in ("query", "positive"))
    for query, positive in zip(*columns, strict=True):
        key, document = text_id(normalise(query)), text_id(positive)
        queries.setdefault(key, query)
        qrels.setdefault(key, {})[document] = 1
        texts[document] = positive
    documents = _documents(data, texts)
    if folder is None:
        return Collection(queries, qrels, tuple(documents), name="held-out")
    folder = Collection(queries, qrels, (), name="held-out").write(folder, documents)
    return Collection(queries, qrels, folder / CORPUS, name="held-out")


def _documents(data: TrainingData, positives: dict[str, str]) -> Iterator[Document]:
    """The corpus, and what of the positives it lacks (all of them where the data has no corpus)."""
    missing = dict(positives)
    if data.corpus is not None:
        for text in column_of(data.corpus, "text"):
            missing.pop(text_id(text), None)
            yield Document(text_id(text), text)
    for key, text in missing.items():
        yield Document(key, text)
