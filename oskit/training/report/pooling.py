"""What is relevant to held-out queries, as far as can be told without people.

A pair of the training data knows one relevant text where there are often many, and calls all others wrong.
Pooled judgements, named after how TREC finds what its assessors read, know more of each query:

* its own answers, and texts nearly the same as these;
* answers of queries that ask nearly the same: what else is known of a subject;
* what the teachers and BM25, on average, place high of what BM25 finds.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oskit.errors import DataError
from oskit.evaluation.offline.bm25 import Bm25Index
from oskit.training.data.arrow import EXAMPLES, LABELS, RowWriter, column_of, open_rows
from oskit.training.data.holdout import relevant_of
from oskit.training.data.normalising import normalise, words
from oskit.training.data.training_data import TrainingData
from oskit.training.teachers.labels import normalize_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oskit.data.collection import Collection

POOLED = "pooled"
"""The split of the held-out collection that has these judgements."""

OWN = 10
"""Grade of a query's own answers, and of texts nearly the same; others have less, by how near they are."""

DEPTH = 20
"""Texts of BM25 in the pool of a query."""

LARGEST = 100_000
"""Documents; a larger corpus is not pooled, for its words would fill the memory."""

_SAME_TEXT = 0.8
_SAME_SUBJECT = 0.5
_CANDIDATES = 50

Label = Callable[[TrainingData], TrainingData]
"""Gives examples ``labels``: what the teachers say of each candidate."""


@dataclass(frozen=True)
class PoolFacts:
    """What pooling found: means over the held-out queries."""

    own: float  # own answers of a query
    same: float  # texts nearly the same as these
    subject: float  # answers of queries that ask nearly the same
    # texts that the teachers and BM25 placed in the upper half of the pool; None without teachers
    taught: float | None
    overlap: float  # share of a query's words that its best own answer repeats, by inverse document frequency


@dataclass
class _Judged:
    """What is known of one query; documents are numbers, likeness is from 0 to 1."""

    own: set[int]
    same: set[int]  # nearly the same as these
    subject: dict[int, float]  # answers of queries that ask nearly the same, and how nearly
    pool: dict[int, float]  # all that is judged, and BM25's scores
    taught: dict[int, float] = field(default_factory=dict)  # what the teachers and BM25 say

    def grades(self) -> dict[int, int]:
        """Of each document that is relevant."""
        alike = dict.fromkeys(self.own | self.same, 1.0)
        judged = (self.subject, self.taught, alike)
        grades = {
            one: round(OWN * max(likes.get(one, 0.0) for likes in judged))
            for likes in judged
            for one in likes
        }
        return {document: grade for document, grade in grades.items() if grade > 0}


class Likeness:
    """Texts by their words, to find those that are like another one.

    How like two are is the Jaccard coefficient of their words, each weighing its inverse document frequency.
    Candidates are the best of BM25.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._index: Bm25Index | None = None
        with suppress(DataError):  # no text has a word
            self._index = Bm25Index(texts)
        self._words = [words(normalise(text)) for text in texts]
        frequencies = Counter(word for found in self._words for word in found)
        self._rarest = math.log1p(len(texts))
        self._weights = {word: math.log1p(len(texts) / count) for word, count in frequencies.items()}

    def best(self, text: str, number: int) -> dict[int, float]:
        """Positions and scores of BM25's best."""
        if self._index is None:
            return {}
        ((positions, scores),) = self._index.search([text], number)
        return dict(zip(positions.tolist(), scores.tolist(), strict=True))

    def nearest(self, text: str, least: float) -> Iterator[tuple[int, float]]:
        """Positions and likeness of the texts that are at least so like this one."""
        own = words(normalise(text))
        for position in self.best(text, _CANDIDATES):
            every = self._weigh(own | self._words[position])
            like = self._weigh(own & self._words[position]) / every if every else 0.0
            if like >= least:
                yield position, like

    def repeated(self, query: str, position: int) -> float:
        """Share of a query's words that a text has."""
        own = words(normalise(query))
        return self._weigh(own & self._words[position]) / self._weigh(own) if own else 0.0

    def _weigh(self, found: frozenset[str]) -> float:
        return math.fsum(self._weights.get(word, self._rarest) for word in found)


def pool(
    data: TrainingData, held: Collection, label: Label | None, folder: Path
) -> tuple[dict[str, dict[str, int]], PoolFacts] | None:
    """Judge held-out queries.

    Args:
        data: All that is known, held-out queries included.
        held: Held-out queries, over documents of the data's corpus.
        label: Asks the teachers; None where there are none.
        folder: For what they are asked.

    Returns:
        Grades of each query's documents, 1 to :data:`OWN`, and what was found; None for a corpus that is too
        large.
    """
    documents = list(held.documents())
    if len(documents) > LARGEST:
        return None
    ids = [document.id for document in documents]
    texts = Likeness([document.passage for document in documents])
    found = _by_words(data, held, texts, {document: place for place, document in enumerate(ids)})
    if label is not None:
        _ask(label, data, held, found, ids, folder)
    qrels = {
        query: {ids[place]: grade for place, grade in sorted(judged.grades().items())}
        for query, judged in found.items()
    }
    return qrels, _facts(held, found, texts, taught=label is not None)


def _by_words(
    data: TrainingData, held: Collection, texts: Likeness, places: dict[str, int]
) -> dict[str, _Judged]:
    """All but what the teachers say."""
    asked, answers = _known(data, places)
    queries = Likeness(asked)
    found = {}
    for query, text in held.queries.items():
        own = {places[document] for document in held.qrels[query]}
        same = {place for one in own for place, _ in texts.nearest(texts.texts[one], _SAME_TEXT)} - own
        subject: dict[int, float] = {}
        for position, like in queries.nearest(text, _SAME_SUBJECT):
            for place in answers[position]:
                subject[place] = max(like, subject.get(place, 0.0))
        scores = texts.best(text, _CANDIDATES)
        pooled = {*list(scores)[:DEPTH], *own, *same, *subject}
        pooled.discard(places.get(query, -1))  # a query that is a document asks for others
        found[query] = _Judged(own, same, subject, {one: scores.get(one, 0.0) for one in sorted(pooled)})
    return found


def _known(data: TrainingData, places: dict[str, int]) -> tuple[list[str], list[list[int]]]:
    """Queries, and the places of their answers that are in the corpus."""
    owners, rows = relevant_of(data.examples)
    identities = list(column_of(data.corpus, "id"))
    answers: defaultdict[int, list[int]] = defaultdict(list)
    for owner, row in zip(owners.tolist(), rows.tolist(), strict=True):
        if (place := places.get(identities[row])) is not None:
            answers[owner].append(place)
    kept = np.array(sorted(answers), dtype=np.int64)
    return list(column_of(data.examples, "query", kept)), [answers[owner] for owner in kept.tolist()]


def _ask(
    label: Label,
    data: TrainingData,
    held: Collection,
    found: dict[str, _Judged],
    ids: Sequence[str],
    folder: Path,
) -> None:
    """What the teachers and BM25 say of each pool, each from its lowest to its highest score 0 to 1."""
    rows = {identity: row for row, identity in enumerate(column_of(data.corpus, "id"))}
    path = folder / "asked.arrow"
    with RowWriter(path, EXAMPLES) as writer:
        for query, judged in found.items():
            writer.add(held.queries[query], [rows[ids[place]] for place in judged.pool], 0, [], -1)
    labelled = label(data.with_examples(open_rows(path)))
    for judged, labels in zip(found.values(), column_of(labelled.examples, LABELS), strict=True):
        likes = (_spread(labels) + _spread(list(judged.pool.values()))) / 2
        judged.taught = dict(zip(judged.pool, likes.tolist(), strict=True))
    path.unlink()


def _spread(scores: Sequence[float]) -> NDArray[np.float64]:
    """From 0 to 1; 0 where unknown, or where all are the same."""
    return np.nan_to_num(normalize_scores(np.array(scores), np.array([len(scores)])))


def _facts(held: Collection, found: dict[str, _Judged], texts: Likeness, *, taught: bool) -> PoolFacts:
    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(found)

    judged = list(found.values())
    repeated = (
        max(texts.repeated(held.queries[query], place) for place in one.own) for query, one in found.items()
    )
    return PoolFacts(
        own=mean(len(one.own) for one in judged),
        same=mean(len(one.same) for one in judged),
        subject=mean(len(one.subject.keys() - one.own - one.same) for one in judged),
        taught=mean(sum(like >= 0.5 for like in one.taught.values()) for one in judged) if taught else None,
        overlap=mean(repeated),
    )
