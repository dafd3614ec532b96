"""Whether training queries are also evaluation queries: the same, or nearly the same.

Nearly the same is measured by the Jaccard coefficient of two queries' words, the smaller of two: each word
counting 1, and each word weighing its inverse document frequency over all queries. So "how do I get a
building permit" and "how do I get building permit" are near. "What are the first symptoms of measles" is near
neither "what are the first symptoms of mumps" (the weights tell) nor "who gets measles" (the counts tell).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oskit.data.collection import Collection
from oskit.errors import UsageError
from oskit.training.data.arrow import column_of, positives_of
from oskit.training.data.normalising import normalise, words
from oskit.training.data.training_data import TrainingData

THRESHOLD = 0.8
"""Similarity from which two queries count as nearly the same."""

SHOWN = 20


@dataclass(frozen=True)
class Leak:
    """A training query that is (nearly) an evaluation query."""

    row: int  # of the training example
    training: str  # its query
    evaluation: str  # the evaluation query
    similarity: float  # the Jaccard coefficient of the module
    exact: bool  # whether they are the same after normalisation


@dataclass(frozen=True)
class LeakageReport:
    """What training data and an evaluation collection have in common."""

    collection: str  # name of the evaluation collection
    training_examples: int  # that were looked at
    evaluation_queries: int  # that were compared with them
    threshold: float  # from which similarity a query was near
    leaks: tuple[Leak, ...]  # the leaking examples, the most similar ones first
    relevant_documents: int  # that are relevant to an evaluation query
    # how many of them are also positives of training examples (of other queries: the evaluation is in-domain
    # then, which is no leakage of queries)
    trained_documents: int
    trained_rows: int  # examples with such a positive

    @property
    def exact_rows(self) -> tuple[int, ...]:
        """Rows of examples whose query is an evaluation query."""
        return tuple(sorted(leak.row for leak in self.leaks if leak.exact))

    @property
    def near_rows(self) -> tuple[int, ...]:
        """Rows of examples whose query is nearly one."""
        return tuple(sorted(leak.row for leak in self.leaks if not leak.exact))

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of all leaking examples, in order."""
        return tuple(sorted(leak.row for leak in self.leaks))

    @property
    def leaked_queries(self) -> int:
        """Evaluation queries that were met."""
        return len({leak.evaluation for leak in self.leaks})

    def to_dict(self) -> dict[str, Any]:
        """As JSON can carry it: rows as counts, and some of the leaks."""
        counts = {"exact": len(self.exact_rows), "near": len(self.near_rows)}
        shown = replace(self, leaks=self.leaks[:SHOWN])
        return {**asdict(shown), "leaked_queries": self.leaked_queries, **counts}

    def __str__(self) -> str:
        queries = f"no training query is an evaluation query of {self.collection}"
        if self.leaks:
            queries = (
                f"{len(self.leaks):,} of {self.training_examples:,} training queries are evaluation queries "
                f"of {self.collection} ({len(self.exact_rows):,} the same, {len(self.near_rows):,} nearly), "
                f"such as {self.leaks[0].training!r}"
            )
        if not self.trained_documents:
            return queries
        share = f"{self.trained_documents:,} of {self.relevant_documents:,}"
        return f"{queries}; {share} relevant documents are also training positives (in-domain)"


def find_leakage(
    training: TrainingData | Sequence[str], collection: Collection, *, threshold: float = THRESHOLD
) -> LeakageReport:
    """Compare training queries with a collection's queries, and training positives with its documents.

    Args:
        training: Training data, or training queries alone.
        collection: What the encoder is evaluated on.
        threshold: Similarity, above 0 up to 1, from which a query counts as nearly the same.

    Raises:
        UsageError: The threshold is out of its range.
        DataError: The collection's corpus cannot be read.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"{threshold:g} is no threshold of similarity", hint="Use a number above 0, up to 1")
    queries: Texts = (
        partial(iter, training)
        if isinstance(training, Sequence)
        else partial(column_of, training.examples, "query")
    )
    leaks = _compare(queries, list(collection.queries.values()), threshold)
    return LeakageReport(
        collection.name,
        len(training),
        len(collection.queries),
        threshold,
        tuple(sorted(leaks, key=lambda leak: (not leak.exact, -leak.similarity, leak.row))),
        *_shared_documents(training, collection),
    )


def drop_leaking(data: TrainingData, report: LeakageReport) -> TrainingData:
    """The data without the examples whose query leaks; their documents stay in the corpus."""
    rows = np.setdiff1d(np.arange(len(data)), np.array(report.rows, dtype=np.int64))
    return data if len(rows) == len(data) else data.with_examples(data.examples.select(rows))


Texts = Callable[[], Iterator[str]]
"""Texts that can be gone through more than once."""


def near_queries(queries: Texts, others: Sequence[str], threshold: float = THRESHOLD) -> NDArray[np.int64]:
    """Numbers of the queries that are the same as, or nearly the same as, one of the others."""
    return np.array([leak.row for leak in _compare(queries, others, threshold)], dtype=np.int64)


def _compare(queries: Texts, evaluation: Sequence[str], threshold: float) -> Iterator[Leak]:
    """The same and nearly the same queries, in order."""
    by_text = {normalise(query): query for query in evaluation}
    index = _Index(by_text, _word_weights(queries, by_text), threshold)
    for row, query in enumerate(queries()):
        text = normalise(query)
        found = (text, 1.0) if text in by_text else index.nearest(text)
        if found is not None:
            yield Leak(row, query, by_text[found[0]], found[1], text == found[0])


def _word_weights(queries: Texts, evaluation: Iterable[str]) -> dict[str, float]:
    """``ln(1 + N / df)`` of each word over all queries."""
    count, frequencies = 0, Counter[str]()
    for text in chain(evaluation, map(normalise, queries())):
        frequencies.update(words(text))
        count += 1
    return {word: math.log1p(count / df) for word, df in frequencies.items()}


class _Index:
    """Evaluation queries by their heaviest words.

    Of a query whose words weigh ``w`` together, a match of threshold ``t`` shares at least ``t * w``. So it
    shares one of the heaviest words, up to where the rest weighs less than that: only these are indexed
    (prefix filtering; Chaudhuri, Ganti and Kaushik, 2006), and common words lead to no candidates.
    """

    def __init__(self, texts: Iterable[str], weights: Mapping[str, float], threshold: float) -> None:
        self._weights, self._threshold = weights, threshold
        self._known: dict[str, tuple[frozenset[str], float]] = {}  # words, and what they weigh together
        self._texts: defaultdict[str, list[str]] = defaultdict(list)
        for text in texts:
            found = words(text)
            rest = total = self._weigh(found)
            self._known[text] = found, total
            for word in sorted(found, key=lambda word: (-weights[word], word)):
                # A hair more than needed is indexed, so that rounding loses none.
                if rest < threshold * total * (1 - 1e-9):
                    break
                self._texts[word].append(text)
                rest -= weights[word]

    def nearest(self, text: str) -> tuple[str, float] | None:
        """The most similar query and its similarity, if that reaches the threshold."""
        own = words(text)
        total, best = self._weigh(own), None
        for other in sorted({other for word in own for other in self._texts.get(word, ())}):
            there, weight = self._known[other]
            shared = self._weigh(own & there)
            counted = len(own & there) / len(own | there)
            similarity = min(shared / (total + weight - shared), counted)
            if similarity >= self._threshold and (best is None or similarity > best[1]):
                best = other, similarity
        return best

    def _weigh(self, found: frozenset[str]) -> float:
        return math.fsum(self._weights[word] for word in found)


def _shared_documents(training: TrainingData | Sequence[str], collection: Collection) -> tuple[int, int, int]:
    """Relevant documents, how many of them are positives too, and examples with such a positive."""
    relevant = {key for judged in collection.qrels.values() for key, grade in judged.items() if grade > 0}
    if isinstance(training, Sequence):
        return len(relevant), 0, 0
    documents: dict[str, str] = {}
    for document in collection.documents():
        if document.id in relevant:
            for text in (document.passage, document.text):
                documents[normalise(text)] = document.id
    owners, positives = positives_of(training.examples)
    rows = np.unique(positives)
    texts = column_of(training.corpus, "text", rows)
    found = [documents.get(normalise(text), "") for text in texts]
    met = np.array([document != "" for document in found], dtype=bool)
    trained = {document for document in found if document}
    return len(relevant), len(trained), len(np.unique(owners[np.isin(positives, rows[met])]))
