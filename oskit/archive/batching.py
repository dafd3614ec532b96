"""Running a model over many texts: neighbours in length share a batch, a budget of tokens bounds memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from oskit.data.values import clean_text
from oskit.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

LOGITS_BYTES = 400_000_000
"""Bound of one batch's logits ``[batch, length, vocabulary]``, where they are made."""

TOKEN_BUDGET = 512
"""Tokens of one batch, padding included, where nobody has measured what is fastest."""

_WINDOW_TEXTS = 4096
_WINDOW_CHARACTERS = 1_000_000
"""Texts that are tokenized, and sorted by length, together: as many as have so many characters."""

_CHARACTERS_OF_A_TOKEN = 64
"""Characters that are tokenized together for each token of a batch, where batches are large."""

T = TypeVar("T")
TokenIds = Sequence[int]
Batch = Sequence[TokenIds]
Run: TypeAlias = "Callable[[Batch], csr_matrix]"


def token_budget(width: int, wanted: int = TOKEN_BUDGET) -> int:
    """The tokens of one batch that bounded memory allows; graphs hold the logits several times.

    Args:
        width: Size of the vocabulary.
        wanted: Tokens of a batch where memory does not matter.
    """
    return max(1, min(wanted, LOGITS_BYTES // (4 * 4 * width)))


def checked_texts(texts: Sequence[str]) -> list[str]:
    """The texts as any tokenizer takes them.

    Lone surrogates have no UTF-8, so no request can carry them either: they become U+FFFD.

    Raises:
        UsageError: It is one text instead of a list, or an item is not text.
    """
    if isinstance(texts, str):
        raise UsageError(
            "a list of texts is needed to encode, not one text", hint="Put it in a list: [text]."
        )
    wrong = next((text for text in texts if not isinstance(text, str)), "")
    if not isinstance(wrong, str):
        raise UsageError(f"a text is needed to encode, not {type(wrong).__name__}")
    return [clean_text(text) for text in texts]


def encode_in_batches(
    texts: Sequence[str],
    *,
    tokenize: Callable[[Sequence[str]], Sequence[TokenIds]],
    run: Run,
    width: int,
    budget: int,
    over: Callable[[Run, Iterable[Batch]], Iterable[csr_matrix]] = map,
) -> csr_matrix:
    """Encode ``texts`` and return their vectors in the order given, ``[len(texts), width]`` float32.

    What comes next is tokenized in a thread, while the model runs.

    Args:
        texts: Well-formed texts.
        tokenize: Token ids of each text; none at all for a text that has no vector.
        run: Weights ``[len(batch), width]`` of a batch of token ids, longest first.
        width: Size of the vocabulary.
        budget: Tokens of a batch at most, padding included; a text that has more is a batch of its own.
        over: Runs it over the batches; gives the results in their order, as ``map`` does.
    """
    from scipy.sparse import csr_matrix, vstack

    places: list[int] = []

    def batches() -> Iterator[Batch]:
        start = 0
        for ids in _ahead(map(tokenize, _windows(texts, budget))):
            for batch in token_batches(ids, budget):
                places.extend(start + i for i in batch)
                yield [ids[i] for i in batch]
            start += len(ids)

    made = list(over(run, batches()))
    without = np.setdiff1d(np.arange(len(texts)), places)
    made.append(csr_matrix((len(without), width), dtype=np.float32))
    order = np.concatenate([np.array(places, dtype=np.int64), without])
    return vstack(made, format="csr")[np.argsort(order)]


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each made in a thread while the one before it is in use."""
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as pool:
        coming = pool.submit(lambda: list(islice(source, 1)))
        while item := coming.result():
            coming = pool.submit(lambda: list(islice(source, 1)))
            yield item[0]


def _windows(texts: Sequence[str], budget: int) -> Iterator[Sequence[str]]:
    start = characters = 0
    most_characters = max(_WINDOW_CHARACTERS, _CHARACTERS_OF_A_TOKEN * budget)
    most_texts = max(_WINDOW_TEXTS, budget)
    for place, text in enumerate(texts):
        if place > start and (characters >= most_characters or place - start >= most_texts):
            yield texts[start:place]
            start, characters = place, 0
        characters += len(text)
    if start < len(texts):
        yield texts[start:]


def token_batches(ids: Sequence[TokenIds], budget: int) -> Iterator[Sequence[int]]:
    """Positions of neighbours in length, longest first; texts without tokens are in none."""
    order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]), reverse=True)
    start = 0
    while start < len(order):
        size = max(1, budget // len(ids[order[start]]))
        yield order[start : start + size]
        start += size


def padded(ids: Sequence[TokenIds], padding: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids of texts, all as long as the longest, and their mask; both ``[batch, length]``."""
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    input_ids = np.full_like(mask, padding)
    input_ids[mask > 0] = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=lengths.sum())
    return input_ids, mask


def sparse_rows(weights: NDArray[np.float32], keep: NDArray[np.bool_] | None = None) -> csr_matrix:
    """The positive weights of ``[n, width]``, of the columns to ``keep`` alone, ascending in each row."""
    from scipy.sparse import csr_matrix

    positive = weights > 0
    if keep is not None:
        positive &= keep
    rows, columns = positive.nonzero()
    indptr = np.searchsorted(rows, np.arange(len(weights) + 1)).astype(np.int32)
    data = weights[rows, columns].astype(np.float32, copy=False)
    return csr_matrix((data, columns.astype(np.int32), indptr), shape=weights.shape)


def weigh_each_once(ids: Sequence[TokenIds], weights: NDArray[np.float32]) -> csr_matrix:
    """Queries without a model, ``[len(ids), len(weights)]``: each token once, however often it occurs."""
    from scipy.sparse import csr_matrix

    rows = [np.unique(np.array(tokens, dtype=np.int32)) for tokens in ids]
    rows = [columns[weights[columns] > 0] for columns in rows]
    indptr = np.cumsum([0, *map(len, rows)])
    columns = np.concatenate([np.empty(0, dtype=np.int32), *rows])
    return csr_matrix((weights[columns], columns, indptr), shape=(len(ids), len(weights)))
