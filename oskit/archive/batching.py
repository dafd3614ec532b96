"""Running a model over many texts: neighbours in length share a batch, memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from oskit.data.values import clean_text
from oskit.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

LOGITS_BYTES = 400_000_000
"""Bound of one batch's logits ``[batch, length, vocabulary]``, the largest tensor of an encoder."""

_WINDOW = 64
"""Batches whose texts are sorted by length together."""

TokenIds = Sequence[int]


def checked_texts(texts: Sequence[str], batch_size: int) -> list[str]:
    """The texts as any tokenizer takes them.

    Lone surrogates have no UTF-8, so no request can carry them either: they become U+FFFD.

    Raises:
        UsageError: It is one text instead of a list, an item is not text, or the batch is below 1.
    """
    if isinstance(texts, str):
        raise UsageError(
            "a list of texts is needed to encode, not one text", hint="Put it in a list: [text]."
        )
    if batch_size < 1:
        raise UsageError(f"a batch of {batch_size} texts is not possible", hint="Use 1 or more.")
    wrong = next((text for text in texts if not isinstance(text, str)), "")
    if not isinstance(wrong, str):
        raise UsageError(f"a text is needed to encode, not {type(wrong).__name__}")
    return [clean_text(text) for text in texts]


def encode_in_batches(
    texts: Sequence[str],
    *,
    tokenize: Callable[[Sequence[str]], Sequence[TokenIds]],
    run: Callable[[Sequence[TokenIds]], NDArray[np.float32]],
    width: int,
    batch_size: int,
) -> csr_matrix:
    """Encode ``texts`` and return their vectors in the order given, ``[len(texts), width]`` float32.

    Args:
        texts: Well-formed texts.
        tokenize: Token ids of each text; none at all for a text that has no vector.
        run: Weights ``[len(batch), width]`` of a batch of token ids, longest first.
        width: Size of the vocabulary.
        batch_size: Texts in one batch at most; fewer where texts are long.
    """
    from scipy.sparse import csr_matrix, vstack

    max_tokens = max(LOGITS_BYTES // (4 * width), 1)
    window = batch_size * _WINDOW
    parts = []
    for start in range(0, len(texts), window):
        ids = tokenize(texts[start : start + window])
        rows: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = [_NOTHING] * len(ids)
        for batch in _batches(ids, batch_size, max_tokens):
            for i, weights in zip(batch, run([ids[i] for i in batch]), strict=True):
                columns = np.flatnonzero(weights > 0)
                rows[i] = columns.astype(np.int32), weights[columns]
        parts.append(_rows_to_csr(rows, width))
    return vstack(parts, format="csr") if parts else csr_matrix((0, width), dtype=np.float32)


_NOTHING = (np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


def _batches(ids: Sequence[TokenIds], batch_size: int, max_tokens: int) -> Iterator[Sequence[int]]:
    """Positions of neighbours in length; texts without tokens are in none."""
    order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]), reverse=True)
    start = 0
    while start < len(order):
        size = max(1, min(batch_size, max_tokens // len(ids[order[start]])))
        yield order[start : start + size]
        start += size


def padded(ids: Sequence[TokenIds], padding: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids of texts, all as long as the longest, and their mask; both ``[batch, length]``."""
    input_ids = np.full((len(ids), max(map(len, ids))), padding, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for row, tokens in enumerate(ids):
        input_ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return input_ids, mask


def weigh_each_once(ids: Sequence[TokenIds], weights: NDArray[np.float32]) -> csr_matrix:
    """Queries without a model, ``[len(ids), len(weights)]``: each token once, however often it occurs."""
    rows = []
    for tokens in ids:
        columns = np.unique(np.array(tokens, dtype=np.int32))
        columns = columns[weights[columns] > 0]
        rows.append((columns, weights[columns]))
    return _rows_to_csr(rows, len(weights))


def _rows_to_csr(rows: Sequence[tuple[NDArray[np.int32], NDArray[np.float32]]], width: int) -> csr_matrix:
    """Columns and values of each row, ascending, as a matrix ``[len(rows), width]``."""
    from scipy.sparse import csr_matrix

    if not rows:
        return csr_matrix((0, width), dtype=np.float32)
    indptr = np.concatenate([[0], np.cumsum([len(columns) for columns, _ in rows])])
    columns = np.concatenate([columns for columns, _ in rows])
    data = np.concatenate([values for _, values in rows])
    return csr_matrix((data, columns, indptr), shape=(len(rows), width))
