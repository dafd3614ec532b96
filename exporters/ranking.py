"""What quantising does to retrieval: texts to rank, and how far one ranking is from another.

The texts are a judged collection's, or sentences of the user's documents that have to find theirs, or, where
there is nothing else, generated ones of the encoder's own vocabulary.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oskit.archive.likeness import DEPTH, overlap, tops
from oskit.archive.manifest import Retrieval
from oskit.archive.vocabulary import Vocabulary
from oskit.data.collection import QRELS, Collection
from oskit.data.documents import Document, Refusal
from oskit.data.files import read_documents
from oskit.data.jsonl import broken_line
from oskit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

MAX_LOSS = 0.005
"""What nDCG@10 may lose."""

MIN_OVERLAP = 0.9
"""Share of the top 10 that must stay, the mean of all queries."""

GENERATED = "generated texts"

DOCUMENTS, QUERIES = 400, 200
"""Texts of a sample at most: enough to tell a loss, few enough to encode in a minute."""

LEAST, _READ = 30, 50_000
_CHARACTERS = 4096
"""Of a text that are kept: no fewer than an encoder reads of most."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")


@dataclass(frozen=True)
class RankingSample:
    """Documents, queries, and which documents should come first.

    Attributes:
        documents: Different texts.
        queries: Texts.
        relevant: For each query the relevance of documents, by their place in ``documents``.
        source: What the texts are, for people.
        judged: Whether somebody judged the relevance; else a query is a sentence of its document.
    """

    documents: tuple[str, ...]
    queries: tuple[str, ...]
    relevant: tuple[Mapping[int, int], ...]
    source: str
    judged: bool

    @classmethod
    def read(cls, source: str | Path) -> RankingSample:
        """Sample a file, a folder in BEIR's layout with or without judgements, or stdin (``-``).

        Raises:
            DataError: It cannot be read, has a broken record, or too few texts.
            UsageError: Its format cannot be told.
        """
        folder = Path(source)
        splits = sorted(path.stem for path in (folder / QRELS).glob("*.tsv"))
        if splits:
            return _judged(Collection.open(folder, "test" if "test" in splits else splits[0]), str(source))
        texts = []
        for item in islice(read_documents([source]), _READ):
            if isinstance(item, Refusal):
                broken_line(item.where, item.reason)
            texts.append(item.passage[:_CHARACTERS])
        return cls.of_texts(texts, str(source))

    @classmethod
    def of_texts(cls, texts: Iterable[str], source: str) -> RankingSample:
        """Sample texts; the queries are sentences of some of them.

        Raises:
            DataError: There are too few different texts.
        """
        different = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
        if len(different) < LEAST:
            raise DataError(
                f"{source} has {len(different)} different texts, too few to quantise by",
                hint=f"Give at least {LEAST} documents of the kind that will be indexed.",
            )
        chosen = random.Random(0)  # noqa: S311 - a sample, not a secret
        documents = chosen.sample(different, min(DOCUMENTS, len(different)))
        queries = tuple(_sentence(text) for text in documents[:QUERIES])
        return cls(tuple(documents), queries, tuple({i: 1} for i in range(len(queries))), source, False)

    @classmethod
    def generated(cls, vocabulary: Vocabulary) -> RankingSample:
        """Texts of the vocabulary's own words, the common ones (which stand first in most) more often."""
        words = [key for key in vocabulary.keys if key and key.strip("▁Ġ").isalpha()]
        words = [word.replace("▁", " ").replace("Ġ", " ").strip() for word in words] or ["a"]
        chosen = random.Random(0)  # noqa: S311
        texts = []
        for number in range(DOCUMENTS // 2):
            places = [int(len(words) * chosen.random() ** 3) for _ in range(8 + number % 72)]
            texts.append(" ".join(words[place] for place in places) + f" {number}.")
        return cls.of_texts(texts, GENERATED)


def _judged(collection: Collection, source: str) -> RankingSample:
    chosen = random.Random(0)  # noqa: S311
    queries = sorted(query for query, judged in collection.qrels.items() if max(judged.values()) > 0)
    queries = chosen.sample(queries, min(QUERIES, len(queries)))
    wanted = {document for query in queries for document in collection.qrels[query]}
    # All that is judged, and others around it: what is irrelevant must be there to rank in front.
    found: list[Document] = []
    others: list[Document] = []
    for number, document in enumerate(collection.documents()):
        if document.id in wanted:
            found.append(document)
        elif len(others) < DOCUMENTS:
            others.append(document)
        elif (place := chosen.randrange(number + 1)) < DOCUMENTS:
            others[place] = document
    found = found if len(found) <= DOCUMENTS else _cut(found, collection, queries)
    documents: list[Document] = [*found, *others[: max(DOCUMENTS - len(found), DOCUMENTS // 4)]]
    place_of = {document.id: place for place, document in enumerate(documents)}
    relevant: dict[str, Mapping[int, int]] = {}
    for query in queries:
        judged = {place_of[key]: grade for key, grade in collection.qrels[query].items() if key in place_of}
        if any(grade > 0 for grade in judged.values()):
            relevant[query] = judged
    if not relevant or len(documents) < LEAST:
        raise DataError(
            f"{source} has {len(documents)} documents, and {len(relevant)} queries with a relevant one",
            hint=f"At least {LEAST} documents and a judged query are needed to quantise by it.",
        )
    return RankingSample(
        tuple(document.passage[:_CHARACTERS] for document in documents),
        tuple(collection.queries[query] for query in relevant),
        tuple(relevant.values()),
        source,
        True,
    )


def _cut(found: list[Document], collection: Collection, queries: Sequence[str]) -> list[Document]:
    """As many as fit, relevant ones first."""
    good = {key for query in queries for key, grade in collection.qrels[query].items() if grade > 0}
    return sorted(found, key=lambda document: document.id not in good)[:DOCUMENTS]


def _sentence(text: str) -> str:
    """A sentence of middling length; of a text that is a single one, its middle half."""
    sentences = sorted((part for part in _SENTENCE_END.split(text) if part.strip()), key=len)
    if len(sentences) > 1:
        return sentences[len(sentences) // 2].strip()[:300]
    words = text.split()
    if len(words) > 3:
        return " ".join(words[len(words) // 4 : -(-3 * len(words) // 4)])
    return text[len(text) // 4 : -(-3 * len(text) // 4)] or text


def compare_rankings(
    sample: RankingSample,
    before: tuple[csr_matrix, csr_matrix],
    after: tuple[csr_matrix, csr_matrix],
) -> Retrieval:
    """What becomes of the ranking.

    Args:
        sample: The texts.
        before: The encoder's vectors of its documents and its queries, ``[texts, vocabulary]``.
        after: The archive's.
    """
    old, new = (tops((queries @ documents.T).toarray()) for documents, queries in (before, after))
    return Retrieval(
        source=sample.source,
        judged=sample.judged,
        documents=len(sample.documents),
        queries=len(sample.queries),
        ndcg=round(_ndcg(old, sample.relevant), 4),
        quantized_ndcg=round(_ndcg(new, sample.relevant), 4),
        overlap=round(overlap(old, new), 4),
        max_loss=MAX_LOSS,
        min_overlap=MIN_OVERLAP,
    )


def listwise_loss(before: tuple[csr_matrix, csr_matrix], after: tuple[csr_matrix, csr_matrix]) -> float:
    """Kullback-Leibler divergence of the queries' distributions over the documents: a smooth ranking loss."""
    p, q = (_log_softmax(queries @ documents.T) for documents, queries in (before, after))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(scores: csr_matrix) -> NDArray[np.float64]:
    dense = scores.toarray().astype(np.float64)
    dense -= dense.max(axis=1, keepdims=True)
    return np.asarray(dense - np.log(np.exp(dense).sum(axis=1, keepdims=True)))


def _ndcg(tops: Sequence[Sequence[int]], relevant: Sequence[Mapping[int, int]]) -> float:
    from ir_measures import calc_aggregate, nDCG

    qrels = {str(i): {str(key): grade for key, grade in judged.items()} for i, judged in enumerate(relevant)}
    run = {str(i): {str(place): -float(rank) for rank, place in enumerate(top)} for i, top in enumerate(tops)}
    measure = nDCG @ DEPTH
    return float(calc_aggregate([measure], qrels, run)[measure])
