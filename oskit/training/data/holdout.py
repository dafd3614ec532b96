"""Queries held out of training data, as a collection to evaluate on."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from oskit.data.collection import CORPUS, Collection
from oskit.data.documents import Document
from oskit.data.duplicates import digest_of
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
from oskit.training.data.normalising import keys_of, normalise, same_key
from oskit.training.data.training_data import TrainingData

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
    if (fraction is None) == (count is None):
        raise UsageError("give either the fraction or the count of queries to hold out")
    if count is not None and count < 1:
        raise UsageError(f"{count} queries cannot be held out", hint="Give 1 or more")
    if fraction is not None and not 0 < fraction < 1:
        raise UsageError(f"{fraction:g} is no fraction to hold out", hint="Give a number between 0 and 1")
    pairs = _Pairs(data, seed)
    held = pairs.hold(fraction, count)
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


class _Pairs:
    """Queries and what answers them."""

    def __init__(self, data: TrainingData, seed: int) -> None:
        salt = f"hold-out {seed}"
        # The same for queries that ask the same, `[examples]`.
        self.keys = keys_of(map(normalise, column_of(data.examples, "query")), salt)
        self.owners, self.rows = relevant_of(data.examples)  # example and row of the corpus, `[pairs]`
        unique, inverse = np.unique(self.rows, return_inverse=True)
        # Of each pair's text a number that near-identical ones share, `[pairs]`.
        self.texts = keys_of(map(same_key, column_of(data.corpus, "text", unique)), salt)[inverse]
        # Whether so many queries have it that it tells nothing, `[pairs]`; `hold` finds it.
        self.generic = np.zeros(len(self.owners), dtype=bool)
        self.queries = len(np.unique(self.keys[self.owners]))

    def hold(self, fraction: float | None, count: int | None) -> NDArray[np.bool_]:
        """Which examples are held out: whole groups of queries that share their rarest answer."""
        queries = self.keys[self.owners]
        asked = np.unique(np.stack([self.texts, queries], axis=1), axis=0)
        texts, askers = np.unique(asked[:, 0], return_counts=True)
        shared = askers[np.searchsorted(texts, self.texts)]
        self.generic = shared > max(_SHARED, (count or (fraction or 0) * self.queries) / 4)
        groups = np.where(self.generic, queries, self.texts)
        # Of each query the pair with the rarest answer; one that is generic only if there is no other.
        order = np.lexsort((groups, shared, self.generic, queries))
        found, first = np.unique(queries[order], return_index=True)
        group = groups[order][first]
        if fraction is not None:
            chosen = group < np.uint64(fraction * 2**64)
        else:
            chosen = group <= np.sort(group)[:count][-1:]
        return np.isin(self.keys, found[chosen])


def relevant_of(examples: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of example and row of the corpus that count as relevant.

    These are the known positives; of data that knows none, each query's best scored candidate.
    """
    owners, rows = positives_of(examples)
    if len(owners):
        return owners, rows
    best = [candidates[int(np.nanargmax(scores))] for _, candidates, _, scores, *_ in blocks_of(examples)]
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
    gone: defaultdict[int, set[int]] = defaultdict(set)
    for owner, row in zip(pairs.owners[removed].tolist(), pairs.rows[removed].tolist(), strict=True):
        gone[owner].add(row)
    place, lost = DataFolder(None), 0
    with RowWriter(place.path / "examples.arrow", EXAMPLES) as writer:
        for number, (query, candidates, positives, scores, itself, *_) in enumerate(blocks_of(data.examples)):
            if not kept[number]:
                continue
            others = gone.get(number, set())
            stay = [rank for rank, row in enumerate(candidates) if row not in others]
            answers_left = sum(rank < positives for rank in stay)
            if others and not answers_left:
                lost += 1
                continue
            scores = [scores[rank] for rank in stay] if scores else []
            writer.add(query, [candidates[rank] for rank in stay], answers_left, scores, itself)
    if gone:
        notes.append(
            f"{len(gone):,} training queries lose a positive that is relevant to a query held out; "
            f"{lost:,} of them have no other, and are dropped"
        )
    examples = open_rows(place.path / "examples.arrow")
    return data.with_examples(examples, *notes, keep_alive=place)


def _collection(
    data: TrainingData, held: NDArray[np.bool_], pairs: _Pairs, folder: str | Path | None
) -> Collection:
    mine = held[pairs.owners]
    examples = data.examples.select(pairs.owners[mine])
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for query, itself, document in zip(
        column_of(examples, "query"),
        column_of(examples, "itself"),
        column_of(data.corpus, "id", pairs.rows[mine]),
        strict=True,
    ):
        # A query that is a document has its id, by which rankings leave it out.
        key = data.corpus[itself]["id"] if itself >= 0 else digest_of("query", normalise(query)).hex()
        queries.setdefault(key, query)
        qrels.setdefault(key, {})[document] = 1
    collection = Collection(queries, qrels, (), name="held-out")
    documents = map(Document, column_of(data.corpus, "id"), column_of(data.corpus, "text"))
    corpus = tuple(documents) if folder is None else collection.write(folder, documents) / CORPUS
    return replace(collection, corpus=corpus)
