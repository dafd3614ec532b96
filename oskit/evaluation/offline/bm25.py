"""BM25 as a baseline, by the library bm25s: what a search engine does without a model.

The settings are Lucene's and OpenSearch's: their formula, ``k1`` 1.2 and ``b`` 0.75, on lower-cased words
without the stop words of the corpus's language and stemmed, much as OpenSearch's analyzer of that language
has them (some of its stemmers are lighter ones), or as they are, as by ``standard``. Two things differ: runs
of Chinese, Japanese or Korean characters become overlapping pairs in any language, as by the analyzer ``cjk``
(single characters would be a baseline that is too easy to beat), and a document's length is exact where
Lucene keeps it in a byte. ``Bm25Settings(0.9, 0.4, "english")`` are the settings of published BEIR figures.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oskit.archive.tokenization import CJK, splitter
from oskit.errors import DataError, UsageError
from oskit.evaluation.offline.exact_scores import ExactRanking, TextCollection
from oskit.evaluation.offline.language import (
    STOP_WORD_LANGUAGES,
    LanguageGuess,
    guess_language,
    stop_words,
)
from oskit.evaluation.offline.metrics import Run
from oskit.evaluation.offline.sparsity import ActivationCounter, Sparsity, sparsity
from oskit.extras import require

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LANGUAGES = (
    *STOP_WORD_LANGUAGES,
    *("arabic", "armenian", "basque", "catalan", "finnish", "greek", "hindi", "hungarian"),
    *("indonesian", "irish", "lithuanian", "romanian"),
    "cjk",
)
"""Analyzers of OpenSearch that there is a Snowball stemmer for (in PyStemmer); ``cjk`` needs none."""

AUTO = "auto"

_CJK_RUN = re.compile(f"[{CJK}]{{2,}}")
_WORDS = f"[{CJK}]+|[\\w&&[^{CJK}]]+"


@dataclass(frozen=True)
class Bm25Settings:
    """How BM25 counts and how texts are cut.

    Attributes:
        k1: Saturation of the term frequency; Lucene's 1.2.
        b: Normalisation by length, from 0 to 1; Lucene's 0.75.
        language: Leave out its stop words (where bm25s has some) and stem the others; None does neither,
            ``"auto"`` takes what most of the documents are written in.
        max_words: Of a document, from its beginning and without stop words; None for all of them. An encoder
            that cuts texts does not read the rest either.

    Raises:
        UsageError: A value is out of its range.
    """

    k1: float = 1.2
    b: float = 0.75
    language: str | None = AUTO
    max_words: int | None = None

    def __post_init__(self) -> None:
        if not self.k1 >= 0 or not 0 <= self.b <= 1:
            raise UsageError(
                f"BM25 with k1={self.k1:g}, b={self.b:g}", hint="k1 is not negative, b is from 0 to 1."
            )
        if self.max_words is not None and self.max_words < 1:
            raise UsageError(f"BM25 of {self.max_words} words of a document", hint="1 is the least.")
        if self.language not in (None, AUTO, *LANGUAGES):
            raise UsageError(
                f"BM25 knows no stemmer for {self.language!r}",
                hint=f"It does for {', '.join(LANGUAGES)}.",
            )


class Bm25Index:
    """An index in memory.

    Args:
        texts: The documents, in the order in which results count them.

    Attributes:
        settings: Those that were given, with the language that was found.
        guess: How it was found; None where it was given.

    Raises:
        MissingDependencyError: bm25s (or PyStemmer, for a language) is not installed.
        DataError: There are no documents, or none has a word.
    """

    def __init__(self, texts: Iterable[str], settings: Bm25Settings | None = None) -> None:
        settings = settings or Bm25Settings()
        require("BM25", "evaluate", ["bm25s"])
        import bm25s

        self.guess: LanguageGuess | None = None
        if settings.language == AUTO:
            texts = list(texts)
            self.guess = guess_language(texts)
            settings = replace(settings, language=self.guess.language)
        self.settings = settings
        self._analyze = _analyzer(settings.language)
        vocabulary: dict[str, int] = {}
        ids = [
            [
                vocabulary.setdefault(term, len(vocabulary))
                for term in self._analyze(text)[: settings.max_words]
            ]
            for text in texts
        ]
        if not vocabulary:
            raise DataError("BM25 found no word in any document", hint="Check the corpus.")
        self.documents = len(ids)
        self._vocabulary = vocabulary
        # numpy: with numba installed bm25s would compile for seconds first.
        self._index = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene", backend="numpy")
        self._index.index((ids, vocabulary), create_empty_token=False, show_progress=False)

    def search(
        self, queries: Iterable[str], k: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Positions and scores of each query's best ``k`` documents, best first, ties in the corpus's order.

        Documents that share no term with the query are left out, so there may be fewer.
        """
        for query in queries:
            terms = self._terms(query)
            scores = self._index.get_scores_from_ids(terms) if terms else []
            yield _best(np.asarray(scores, dtype=np.float32), k)

    def document_matrix(self) -> csr_matrix:
        """The weights of terms in documents, ``[documents, terms]``, float32."""
        from scipy.sparse import csc_matrix

        found = self._index.scores
        shape = self.documents, len(self._vocabulary)
        return csc_matrix((found["data"], found["indices"], found["indptr"]), shape=shape).tocsr()

    def query_matrix(self, queries: Iterable[str]) -> csr_matrix:
        """How often queries have terms, ``[queries, terms]``, float32: times the weights of a document, that
        is its score."""
        from scipy.sparse import csr_matrix

        terms = [self._terms(query) for query in queries]
        columns = np.fromiter(chain.from_iterable(terms), dtype=np.int32)
        bounds = np.cumsum([0, *map(len, terms)])
        found = csr_matrix(
            (np.ones(len(columns), np.float32), columns, bounds), shape=(len(terms), len(self._vocabulary))
        )
        found.sum_duplicates()
        return found

    def sparsity(self, queries: Iterable[str]) -> Sparsity:
        """As for a sparse encoder: distinct terms of queries and documents, FLOPS, postings."""
        size = len(self._vocabulary)
        asked, indexed = ActivationCounter(size), ActivationCounter(size)
        for query in queries:
            asked.vectors += 1
            asked.counts[list(set(self._terms(query)))] += 1
        indexed.vectors = self.documents
        indexed.counts += np.diff(self._index.scores["indptr"])
        return sparsity(asked, indexed)

    def _terms(self, query: str) -> list[int]:
        found = (self._vocabulary.get(term) for term in self._analyze(query))
        return [term for term in found if term is not None]


@dataclass(frozen=True)
class Bm25Ranking(ExactRanking):
    """A ranking with the settings behind it, and how their language was found if nobody gave it."""

    settings: Bm25Settings = field(default_factory=Bm25Settings)
    guess: LanguageGuess | None = None


def rank_bm25(
    collection: TextCollection, settings: Bm25Settings | None = None, *, k: int = 1000
) -> Bm25Ranking:
    """Rank the whole corpus for every query. The index is in memory: about 100 bytes for each distinct
    word of each document.

    Raises:
        MissingDependencyError: bm25s or PyStemmer is not installed.
        DataError: The corpus cannot be read, or has no words.
    """
    document_ids: list[str] = []

    def passages() -> Iterator[str]:
        for document in collection.documents():
            document_ids.append(document.id)
            yield document.passage

    index = Bm25Index(passages(), settings)
    run: Run = {}
    found = index.search(collection.queries.values(), k)
    for query, (positions, scores) in zip(collection.queries, found, strict=True):
        run[query] = {
            document_ids[position]: float(score) for position, score in zip(positions, scores, strict=True)
        }
    cost = index.sparsity(collection.queries.values())
    return Bm25Ranking(run, document_ids, cost, settings=index.settings, guess=index.guess)


def _best(scores: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    positions = np.flatnonzero(scores > 0)
    if len(positions) > k:
        cutoff = np.partition(scores[positions], len(positions) - k)[len(positions) - k]
        positions = positions[scores[positions] >= cutoff]
    order = np.argsort(-scores[positions], kind="stable")[:k]
    return positions[order], scores[positions[order]]


def _analyzer(language: str | None) -> Callable[[str], list[str]]:
    if language in (None, "cjk"):
        return split_words
    require("stemming for BM25", "evaluate", ["PyStemmer"])
    import Stemmer

    stemmer, stop = Stemmer.Stemmer(language), stop_words(str(language))
    return lambda text: stemmer.stemWords([word for word in split_words(text) if word not in stop])


def split_words(text: str) -> list[str]:
    """Lower-cased words; runs of Chinese, Japanese or Korean characters as overlapping pairs."""
    words: list[str] = []
    for word, _ in splitter(_WORDS).pre_tokenize_str(unicodedata.normalize("NFKC", text).lower()):
        if not word.isascii() and _CJK_RUN.match(word):
            words.extend(first + second for first, second in pairwise(word))
        else:
            words.append(word)
    return words
