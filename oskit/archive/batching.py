"""Running a model over many texts: neighbours in length share a batch, a budget of tokens bounds memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
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

_WINDOW_TEXTS = 8192
_WINDOW_CHARACTERS = 1_000_000
"""Texts that are tokenized, and sorted by length, together: as many as have so many characters. That is a few
batches of a GPU, which computes them while the next window is tokenized."""

T = TypeVar("T")
R = TypeVar("R")
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

    What comes next is tokenized in a thread, while the model runs. Beside the result, memory holds the rows
    of a window or two.

    Args:
        texts: Well-formed texts.
        tokenize: Token ids of each text; none at all for a text that has no vector.
        run: Weights ``[len(batch), width]`` of a batch of token ids, longest first.
        width: Size of the vocabulary.
        budget: Tokens of a batch at most, padding included; a text that has more is a batch of its own.
        over: Runs it over the batches; gives the results in their order, as ``map`` does.
    """
    from scipy.sparse import csr_matrix

    under_way: deque[tuple[int, list[Sequence[int]]]] = deque()  # windows: texts, and those of each batch

    def batches() -> Iterator[Batch]:
        for ids in in_threads(tokenize, _windows(texts), 1):
            groups = list(token_batches(ids, budget))
            under_way.append((len(ids), groups))
            for group in groups:
                yield [ids[place] for place in group]

    data, columns = np.empty(0, np.float32), np.empty(0, np.int32)
    counts = [np.zeros(1, np.int64)]
    rows: list[csr_matrix] = []

    def put_together() -> None:
        while under_way and len(rows) >= len(under_way[0][1]):
            size, groups = under_way.popleft()
            window = _in_order(rows[: len(groups)], size, groups, width)
            del rows[: len(groups)]
            end = len(data)
            for whole, part in ((data, window.data), (columns, window.indices)):
                whole.resize(end + len(part), refcheck=False)  # large ones are not copied for it
                whole[end:] = part
            counts.append(np.diff(window.indptr))

    for found in over(run, batches()):
        rows.append(found)
        put_together()
    put_together()
    return csr_matrix((data, columns, np.concatenate(counts).cumsum()), shape=(len(texts), width))


def _in_order(
    rows: Sequence[csr_matrix], size: int, groups: Sequence[Sequence[int]], width: int
) -> csr_matrix:
    """The rows of a window's batches in the order of its texts; a text in no batch has no weights."""
    from scipy.sparse import csr_matrix, vstack

    places = np.fromiter(chain.from_iterable(groups), dtype=np.int64)
    without = np.setdiff1d(np.arange(size), places)
    found = vstack([*rows, csr_matrix((len(without), width), dtype=np.float32)], format="csr")
    return found[np.argsort(np.concatenate([places, without]))]


def in_threads(
    work: Callable[[T], R], items: Iterable[T], threads: int, start: Callable[[], object] | None = None
) -> Iterator[R]:
    """``map``, for as many items at a time as there are threads, while the results before are in use.

    Args:
        work: Called in a thread.
        items: Taken by whoever takes the results, no more than are worked on and one.
        threads: How many.
        start: Called in each thread first.
    """
    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="oskit", initializer=start) as pool:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _windows(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = characters = 0
    for place, text in enumerate(texts):
        if place > start and (characters >= _WINDOW_CHARACTERS or place - start >= _WINDOW_TEXTS):
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
