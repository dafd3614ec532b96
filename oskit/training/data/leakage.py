"""Whether training queries are also evaluation queries: the same, or nearly the same.

Nearly the same is measured by the Jaccard coefficient of two queries' words, the smaller of two: each word
counting 1, and each word weighing its inverse document frequency over all queries. So "how do I get a
building permit" and "how do I get building permit" are near. "What are the first symptoms of measles" is near
neither "what are the first symptoms of mumps" (the weights tell) nor "who gets measles" (the counts tell).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.data.duplicates import digest_of
from oskit.errors import UsageError
from oskit.training.data.arrow import column_of, positives_of
from oskit.training.data.normalising import normalise, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oskit.data.collection import Collection
    from oskit.training.data.training_data import TrainingData

THRESHOLD = 0.8
"""Similarity from which two queries count as nearly the same."""

SHOWN = 20


@dataclass(frozen=True)
class Leak:
    """A training query that is (nearly) an evaluation query.

    Attributes:
        row: Row of the training example.
        training: Its query.
        evaluation: The evaluation query.
        similarity: 1 for the same after normalisation, else the Jaccard coefficient of the module.
    """

    row: int
    training: str
    evaluation: str
    similarity: float


@dataclass(frozen=True)
class LeakageReport:
    """What training data and an evaluation collection have in common.

    Attributes:
        collection: Name of the evaluation collection.
        training_examples: Examples that were looked at.
        evaluation_queries: Queries that were compared with them.
        exact_rows: Rows of examples whose query is an evaluation query.
        near_rows: Rows of examples whose query is nearly one.
        leaked_queries: Evaluation queries that were met.
        threshold: From which similarity a query was near.
        leaks: Some of them, the exact ones first.
        relevant_documents: Documents that are relevant to an evaluation query.
        trained_documents: How many of them are also positives of training examples (of other queries: the
            evaluation is in-domain then, which is no leakage of queries).
        trained_rows: Examples with such a positive.
    """

    collection: str
    training_examples: int
    evaluation_queries: int
    exact_rows: tuple[int, ...]
    near_rows: tuple[int, ...]
    leaked_queries: int
    threshold: float
    leaks: tuple[Leak, ...]
    relevant_documents: int
    trained_documents: int
    trained_rows: int

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of all leaking examples, in order."""
        return tuple(sorted((*self.exact_rows, *self.near_rows)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON can carry it; rows as counts."""
        values = asdict(self)
        del values["exact_rows"], values["near_rows"]
        return {**values, "exact": len(self.exact_rows), "near": len(self.near_rows)}

    def __str__(self) -> str:
        if self.rows:
            first = self.leaks[0]
            queries = (
                f"{len(self.rows):,} of {self.training_examples:,} training queries are evaluation queries "
                f"of {self.collection} ({len(self.exact_rows):,} the same, {len(self.near_rows):,} nearly), "
                f"such as {first.training!r}"
            )
        else:
            queries = f"no training query is an evaluation query of {self.collection}"
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
    evaluation = list(collection.queries.values())
    exact, near, leaks = _compare(queries, evaluation, threshold)
    relevant, trained, rows = _shared_documents(training, collection)
    return LeakageReport(
        collection=collection.name,
        training_examples=len(training),
        evaluation_queries=len(collection.queries),
        exact_rows=tuple(exact),
        near_rows=tuple(near),
        leaked_queries=len({leak.evaluation for leak in leaks}),
        threshold=threshold,
        leaks=tuple(sorted(leaks, key=lambda leak: (-leak.similarity, leak.row))[:SHOWN]),
        relevant_documents=relevant,
        trained_documents=trained,
        trained_rows=rows,
    )


def drop_leaking(data: TrainingData, report: LeakageReport) -> TrainingData:
    """The data without the examples whose query leaks; their documents stay in the corpus."""
    rows = np.setdiff1d(np.arange(len(data)), np.array(report.rows, dtype=np.int64))
    return data if len(rows) == len(data) else data.with_examples(data.examples.select(rows))


Texts = Callable[[], Iterator[str]]
"""Texts that can be gone through more than once."""


def near_queries(queries: Texts, others: Sequence[str], threshold: float = THRESHOLD) -> NDArray[np.int64]:
    """Numbers of the queries that are the same as, or nearly the same as, one of the others."""
    exact, near, _ = _compare(queries, others, threshold)
    return np.array(sorted([*exact, *near]), dtype=np.int64)


def _compare(
    queries: Texts, evaluation: Sequence[str], threshold: float
) -> tuple[list[int], list[int], list[Leak]]:
    """Rows of the same and of nearly the same queries, and both as leaks."""
    by_text = {normalise(query): query for query in evaluation}
    index = _Index(by_text, _word_weights(queries, by_text), threshold)
    exact: list[int] = []
    near: list[int] = []
    leaks: list[Leak] = []
    for row, query in enumerate(queries()):
        text = normalise(query)
        if text in by_text:
            exact.append(row)
            leaks.append(Leak(row, query, by_text[text], 1.0))
        elif found := index.nearest(text):
            near.append(row)
            leaks.append(Leak(row, query, by_text[found[0]], found[1]))
    return exact, near, leaks


def _word_weights(queries: Texts, evaluation: Mapping[str, str]) -> dict[str, float]:
    """``ln(1 + N / df)`` of each word over all queries."""
    count, frequencies = len(evaluation), Counter[str]()
    for text in evaluation:
        frequencies.update(words(text))
    for query in queries():
        frequencies.update(words(normalise(query)))
        count += 1
    return {word: math.log1p(count / df) for word, df in frequencies.items()}


class _Index:
    """Evaluation queries by their heaviest words.

    Of a query whose words weigh ``w`` together, a match of threshold ``t`` shares at least ``t * w``. So it
    shares one of the heaviest words, up to where the rest weighs less than that: only these are indexed
    (prefix filtering; Chaudhuri, Ganti and Kaushik, 2006), and common words lead to no candidates.
    """

    def __init__(self, texts: Mapping[str, str], weights: Mapping[str, float], threshold: float) -> None:
        self._weights = weights
        self._threshold = threshold
        self._words = {text: words(text) for text in texts}
        self._totals = {text: self._weigh(found) for text, found in self._words.items()}
        self._texts: defaultdict[str, list[str]] = defaultdict(list)
        for text, found in self._words.items():
            rest = self._totals[text]
            for word in sorted(found, key=lambda word: (-weights[word], word)):
                # A hair more than needed is indexed, so that rounding loses none.
                if rest < threshold * self._totals[text] * (1 - 1e-9):
                    break
                self._texts[word].append(text)
                rest -= weights[word]

    def nearest(self, text: str) -> tuple[str, float] | None:
        """The most similar query and its similarity, if that reaches the threshold."""
        own = words(text)
        candidates = {other for word in own for other in self._texts.get(word, ())}
        total = self._weigh(own)
        best: tuple[str, float] | None = None
        for other in sorted(candidates):
            common = own & self._words[other]
            shared = self._weigh(common)
            weighted = shared / (total + self._totals[other] - shared)
            counted = len(common) / len(own | self._words[other])
            similarity = min(weighted, counted)
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
    documents: dict[bytes, str] = {}
    for document in collection.documents():
        if document.id in relevant:
            for text in (document.passage, document.text):
                documents[digest_of(normalise(text))] = document.id
    owners, positives = positives_of(training.examples)
    rows = np.unique(positives)
    shared: dict[int, str] = {}
    for row, text in zip(rows.tolist(), column_of(training.corpus, "text", rows), strict=True):
        found = documents.get(digest_of(normalise(text)))
        if found is not None:
            shared[row] = found
    met = np.isin(positives, np.fromiter(shared, dtype=np.int64, count=len(shared)))
    trained = {shared[row] for row in positives[met].tolist()}
    return len(relevant), len(trained), len(np.unique(owners[met]))
