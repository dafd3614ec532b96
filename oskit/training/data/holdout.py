"""Queries held out of training data, as a collection to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.data.collection import CORPUS, Collection
from oskit.data.documents import Document
from oskit.errors import DataError, UsageError
from oskit.training.data.arrow import (
    EXAMPLES,
    DataFolder,
    RowWriter,
    blocks_of,
    column_of,
    numbers_of,
    open_rows,
    positives_of,
)
from oskit.training.data.leakage import near_queries
from oskit.training.data.normalising import keys_of, normalise, query_keys, same_key
from oskit.training.data.training_data import TrainingData, text_id

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

_SHARED = 5
"""So many queries may share an answer and still be held out together, however few there are."""


def hold_out(
    data: TrainingData,
    *,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
) -> tuple[TrainingData, Collection]:
    """Take queries out of training data and make a collection of them.

    A query is held out with all its positives, which are its relevant documents, and with all queries that
    share the rarest of them: the questions about one text go together. Of what is left to train on, queries
    that are nearly the same as one held out are dropped (:mod:`oskit.training.data.leakage` says which are),
    and positives that are relevant to one held out, unless so many queries share them that they say nothing
    (more than a quarter of what is held out, and more than five). The notes of the data say how many. The
    corpus of the collection is the whole corpus of the data.

    Which queries are taken depends on the seed, on each query and on its rarest answer alone: more data, or
    data in another order, moves no query from one side to the other as long as the fraction is given and no
    other of its answers becomes the rarest.

    Args:
        data: Training data.
        fraction: Share of the queries to hold out, above 0 and below 1.
        count: Number of queries to hold out, instead, or a few less or more where queries go together.
        seed: Which ones.
        folder: Where the collection is written, in BEIR's layout, and read from; without it the corpus is
            kept in memory, which is fine for a small one.

    Returns:
        The data without these queries and what is near them, and the collection.

    Raises:
        UsageError: Neither or both of fraction and count are given, or one is out of its range.
        DataError: Nothing would be left to train on, or to evaluate on.
    """
    _check(fraction, count)
    pairs = _Pairs(data, seed)
    wanted = count if count is not None else (fraction or 0) * pairs.queries
    pairs.mark_generic(max(_SHARED, wanted / 4))
    held = pairs.held(fraction, count)
    held_queries = len(np.unique(pairs.keys[held]))
    if held_queries in (0, pairs.queries):
        left = "to train on" if held_queries else "to evaluate on"
        raise DataError(
            f"of {pairs.queries:,} queries {held_queries:,} would be held out, which leaves none {left}",
            hint="Give another number, or more data",
        )
    collection = _collection(data, held, pairs, folder)
    training = _without(data, held, pairs)
    if not len(training):
        raise DataError(
            f"all {int((~held).sum()):,} queries that are not held out are nearly the same as some that are, "
            "or have the same answers",
            hint="Give another number, or more data",
        )
    return training, collection


def _check(fraction: float | None, count: int | None) -> None:
    if (fraction is None) == (count is None):
        raise UsageError("give either the fraction or the count of queries to hold out")
    if count is not None and count < 1:
        raise UsageError(f"{count} queries cannot be held out", hint="Give 1 or more")
    if fraction is not None and not 0 < fraction < 1:
        raise UsageError(f"{fraction:g} is no fraction to hold out", hint="Give a number between 0 and 1")


class _Pairs:
    """Queries and what answers them.

    Args:
        data: Training data.
        seed: Of all keys.

    Attributes:
        keys: Of each example, the same for queries that ask the same, uint64 ``[examples]``.
        owners: Example of each pair, ``[pairs]``.
        rows: Its row of the corpus, ``[pairs]``.
        texts: Its text, as a number that near-identical ones share, ``[pairs]``.
        generic: Whether so many queries have it that it tells nothing, ``[pairs]``.
        queries: Distinct queries among the pairs.
    """

    def __init__(self, data: TrainingData, seed: int) -> None:
        salt = f"hold-out {seed}"
        self.keys = query_keys(data.examples, salt=salt)
        self.owners, self.rows = relevant_of(data.examples)
        unique, inverse = np.unique(self.rows, return_inverse=True)
        self.texts = keys_of(map(same_key, column_of(data.corpus, "text", unique)), salt)[inverse]
        self.queries = len(np.unique(self.keys[self.owners]))
        pairs = np.unique(np.stack([self.texts, self.keys[self.owners]], axis=1), axis=0)
        texts, counts = np.unique(pairs[:, 0], return_counts=True)
        self._shared = counts[np.searchsorted(texts, self.texts)]
        self.generic = np.zeros(len(self.owners), dtype=bool)

    def mark_generic(self, most: float) -> None:
        """Texts that answer more queries than this are generic."""
        self.generic = self._shared > most

    def held(self, fraction: float | None, count: int | None) -> NDArray[np.bool_]:
        """Which examples are held out: whole groups of queries that share their rarest answer."""
        queries = self.keys[self.owners]
        groups = np.where(self.generic, queries, self.texts)
        # Of each query the pair with the rarest answer; one that is generic only if there is no other.
        order = np.lexsort((groups, self._shared, self.generic, queries))
        found, first = np.unique(queries[order], return_index=True)
        group = groups[order][first]
        if fraction is not None:
            chosen = found[group < np.uint64(fraction * 2**64)]
        else:
            by_group = np.argsort(group, kind="stable")
            ends = np.flatnonzero(np.r_[group[by_group][1:] != group[by_group][:-1], True]) + 1
            enough = int(ends[ends < (count or 0)].size)
            chosen = found[by_group[: ends[min(enough, len(ends) - 1)]]]
        return np.isin(self.keys, chosen)


def relevant_of(examples: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of example and row of the corpus that count as relevant.

    These are the known positives; of data that knows none, each query's best scored candidate.
    """
    owners, rows = positives_of(examples)
    if len(owners):
        return owners, rows
    best = []
    for block in blocks_of(examples):
        for candidates, scores in zip(block["candidates"], block["scores"], strict=True):
            best.append(candidates[int(np.nanargmax(scores))])
    return np.arange(len(best)), np.array(best, dtype=np.int64)


def _without(data: TrainingData, held: NDArray[np.bool_], pairs: _Pairs) -> TrainingData:
    """What is left to train on, without what is near to what is held out."""
    left = np.flatnonzero(~held)
    asked = list(column_of(data.examples, "query", np.flatnonzero(held)))
    near = left[near_queries(partial(column_of, data.examples, "query", left), asked)]
    kept = ~held
    kept[near] = False
    notes = []
    if not numbers_of(data.examples, "positives").any():
        notes.append("no answers are known: of a query held out its best scored candidate counts as relevant")
    if len(near):
        notes.append(
            f"{len(near):,} training queries are nearly the same as queries held out, and are dropped"
        )
    answers = np.unique(pairs.texts[held[pairs.owners]])
    common = np.isin(pairs.texts, answers) & kept[pairs.owners]
    if shared := len(np.unique(pairs.owners[common & pairs.generic])):
        notes.append(
            f"{shared:,} training queries have an answer that is also one of queries held out: too many "
            "have it for it to tell them apart"
        )
    removed = common & ~pairs.generic
    touched, first = np.unique(pairs.owners[removed], return_index=True)
    if not len(touched):
        return data.with_examples(data.examples.select(np.flatnonzero(kept)), *notes)
    by_example = dict(zip(touched.tolist(), np.split(pairs.rows[removed], first[1:]), strict=True))
    place = DataFolder(None)
    written = 0
    with RowWriter(place.path / "examples.arrow", EXAMPLES) as writer:
        numbers = iter(np.flatnonzero(kept).tolist())
        for block in blocks_of(data.examples.select(np.flatnonzero(kept))):
            for values in zip(*(block[name] for name in EXAMPLES), strict=True):
                gone = by_example.get(next(numbers))
                row = values if gone is None else _without_rows(values, set(gone.tolist()))
                if row is not None:
                    writer.add(*row)
                    written += 1
    notes.append(
        f"{len(touched):,} training queries lose a positive that is relevant to a query held out; "
        f"{int(kept.sum()) - written:,} of them have no other, and are dropped"
    )
    training = data.with_examples(open_rows(place.path / "examples.arrow"), *notes)
    return replace(training, keep_alive=(data.keep_alive, place))


def _without_rows(values: tuple[Any, ...], gone: set[int]) -> tuple[Any, ...] | None:
    """An example without some candidates; None if no positive is left of it."""
    query, candidates, positives, scores, itself = values
    kept = [number for number, row in enumerate(candidates) if row not in gone]
    left = sum(number < positives for number in kept)
    if not left:
        return None
    rows = [candidates[number] for number in kept]
    return query, rows, left, [scores[number] for number in kept] if scores else [], itself


def _collection(
    data: TrainingData, held: NDArray[np.bool_], pairs: _Pairs, folder: str | Path | None
) -> Collection:
    rows = np.flatnonzero(held)
    examples = data.examples.select(rows)
    itself = numbers_of(examples, "itself")
    queries: dict[str, str] = {}
    ids: dict[int, str] = {}
    for number, (row, query) in enumerate(zip(rows.tolist(), column_of(examples, "query"), strict=True)):
        # A query that is a document has its id, by which rankings leave it out.
        is_document = itself[number] >= 0
        own = data.corpus[int(itself[number])]["id"] if is_document else text_id("query", normalise(query))
        ids[row] = own
        queries.setdefault(own, query)
    qrels: dict[str, dict[str, int]] = {}
    mine = held[pairs.owners]
    documents = data.corpus[pairs.rows[mine].tolist()]["id"]
    for owner, document in zip(pairs.owners[mine].tolist(), documents, strict=True):
        qrels.setdefault(ids[owner], {})[document] = 1
    queries = {key: query for key, query in queries.items() if key in qrels}
    collection = Collection(queries, qrels, (), name="held-out")
    if folder is None:
        return replace(collection, corpus=tuple(_documents(data)))
    return replace(collection, corpus=collection.write(folder, _documents(data)) / CORPUS)


def _documents(data: TrainingData) -> Iterator[Document]:
    for identity, text in zip(column_of(data.corpus, "id"), column_of(data.corpus, "text"), strict=True):
        yield Document(identity, text)
