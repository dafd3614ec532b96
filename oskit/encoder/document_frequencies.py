"""In how many documents of a corpus each token occurs, and the IDF that follows from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from oskit.archive.batching import checked_texts
from oskit.archive.idf import MIN_QUERY_WEIGHT
from oskit.archive.text_encoder import SERVER_MAX_LENGTH
from oskit.archive.vocabulary import Vocabulary
from oskit.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from oskit.archive.text_encoder import TextEncoder

BLOCK = 256
"""Texts that are tokenized together."""


@dataclass(frozen=True)
class DocumentFrequencies:
    """What was counted.

    Attributes:
        documents: Number of documents (N).
        frequencies: Documents that contain each token (df), int64 ``[vocabulary.size]``. Ids that the cluster
            gives one key are one token and have one number: it can give them one weight only.
    """

    documents: int
    frequencies: NDArray[np.int64]

    def idf(self, vocabulary: Vocabulary) -> NDArray[np.float32]:
        """``ln(1 + (N - df + 0.5) / (df + 0.5))`` of every token, ``[vocabulary.size]``, special tokens 0.

        That is BM25's, which is never negative (Lucene's ``BM25Similarity``; Robertson and Zaragoza, 2009). A
        token that occurs nowhere has the largest weight, ``ln(2N + 2)``. None weighs less than
        :data:`oskit.archive.idf.MIN_QUERY_WEIGHT`, which matters from half a million documents with one token
        in common.
        """
        df = self.frequencies
        idf = np.log1p((self.documents - df + 0.5) / (df + 0.5))
        return np.asarray(np.maximum(idf, MIN_QUERY_WEIGHT) * vocabulary.weight_mask(), dtype=np.float32)


def corpus_idf(
    texts: Iterable[str],
    tokenizer: TextEncoder | Vocabulary | Tokenizer,
    *,
    max_length: int | None = SERVER_MAX_LENGTH,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """IDF of every token over a corpus; see :meth:`DocumentFrequencies.idf` for the formula.

    Args:
        texts: The documents' texts, streamed; for documents with titles their passages.
        tokenizer: An encoder, its vocabulary, or a tokenizer of the library ``tokenizers``.
        max_length: Tokens of a text that count, special tokens around it included, since what an encoder
            never sees must not count; None counts all.
        progress: Called with the number of texts counted since the last call.

    Returns:
        float32 ``[vocabulary.size]``, special tokens 0.

    Raises:
        DataError: There are no texts.
        UsageError: ``max_length`` leaves no room for a text.
    """
    vocabulary = _vocabulary_of(tokenizer)
    return count_documents(texts, vocabulary, max_length=max_length, progress=progress).idf(vocabulary)


def count_documents(
    texts: Iterable[str],
    vocabulary: Vocabulary,
    *,
    max_length: int | None = SERVER_MAX_LENGTH,
    progress: Callable[[int], None] | None = None,
) -> DocumentFrequencies:
    """Count in how many texts each token occurs; memory holds a few blocks of texts.

    The texts of a block are tokenized in parallel by the library ``tokenizers`` (on all cores;
    ``RAYON_NUM_THREADS`` and ``TOKENIZERS_PARALLELISM`` say otherwise), while the next block is read and the
    one before is counted.

    Raises:
        DataError: There are no texts.
        UsageError: ``max_length`` leaves no room for a text.
    """
    tokenizer = vocabulary.tokenizer()
    around = tokenizer.num_special_tokens_to_add(is_pair=False)
    if max_length is not None:
        if max_length <= around:
            raise UsageError(f"a maximum length of {max_length} tokens leaves no room for a text")
        tokenizer.enable_truncation(max_length)
    documents, frequencies = 0, np.zeros(vocabulary.size, dtype=np.int64)
    for ids in _tokenized(texts, tokenizer):
        documents += len(ids)
        frequencies += _count(ids, vocabulary)
        if progress is not None:
            progress(len(ids))
    if not documents:
        raise DataError("there are no texts to count tokens of")
    return DocumentFrequencies(documents, frequencies[vocabulary.first_ids])


def _vocabulary_of(tokenizer: TextEncoder | Vocabulary | Tokenizer) -> Vocabulary:
    if isinstance(tokenizer, Vocabulary):
        return tokenizer
    own = getattr(tokenizer, "vocabulary", None)
    return own if isinstance(own, Vocabulary) else Vocabulary(tokenizer)  # type: ignore[arg-type]


def _tokenized(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[list[int]]]:
    """Token ids of block after block; one block is tokenized while the caller is busy with another."""
    stream = iter(texts)
    waiting: deque[Future[list[list[int]]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as pool:
        while block := checked_texts(list(islice(stream, BLOCK))):
            waiting.append(pool.submit(_token_ids, block, tokenizer))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _token_ids(block: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(block)]


def _count(ids: list[list[int]], vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Texts that contain each token, counted at the first of the ids with its key."""
    size = vocabulary.size
    tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int64)
    rows = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
    once = np.unique(rows * size + vocabulary.first_ids[tokens])
    return np.bincount(once % size, minlength=size)
