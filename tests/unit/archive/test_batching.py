"""Batches by a budget of tokens: bounded, in nobody's way, and of one result with each text alone."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from oskit.archive import batching
from oskit.archive.batching import encode_in_batches, in_threads, padded, sparse_rows

WIDTH = 50
BUDGET = 64


def tokenize(texts: Sequence[str]) -> list[list[int]]:
    """A token for each letter."""
    return [[ord(letter) % WIDTH for letter in text] for text in texts]


def by_hand(texts: Sequence[str]) -> np.ndarray:
    """How often each token occurs."""
    rows = [np.bincount(ids, minlength=WIDTH) if ids else np.zeros(WIDTH) for ids in tokenize(texts)]
    return np.array(rows, dtype=np.float32).reshape(len(texts), WIDTH)


@pytest.mark.parametrize("over", [map, partial(in_threads, threads=2)])
@pytest.mark.parametrize("window", [1, 3, 4096])
@pytest.mark.parametrize(
    "lengths",
    [[], [0], [0, 0], [1000], [5] * 200, [0, 1, 1000, 2, 0], [BUDGET, BUDGET + 1, BUDGET - 1], range(150)],
)
def test_every_text_is_computed_once_within_the_budget(
    lengths: Sequence[int], window: int, over: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_WINDOW_TEXTS", window)
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh", k=length)) for length in lengths]
    draw.shuffle(texts)
    shapes: list[tuple[int, int]] = []

    def run(ids: Sequence[Sequence[int]]) -> csr_matrix:
        input_ids, mask = padded(ids)
        shapes.append(input_ids.shape)
        rows = [
            np.bincount(row[seen > 0], minlength=WIDTH) for row, seen in zip(input_ids, mask, strict=True)
        ]
        return sparse_rows(np.array(rows, dtype=np.float32))

    found = encode_in_batches(texts, tokenize=tokenize, run=run, width=WIDTH, budget=BUDGET, over=over)
    np.testing.assert_array_equal(found.toarray(), by_hand(texts))
    assert found.shape == (len(texts), WIDTH) and found.dtype == np.float32 and found.has_sorted_indices
    assert all(count == 1 or count * length <= BUDGET for count, length in shapes)
    assert sum(count for count, _ in shapes) == sum(map(bool, texts))
    if window > len(texts) and lengths == [5] * 200:
        assert len(shapes) == -(-200 // (BUDGET // 5)), "a budget that is there is used"


def test_threads_take_no_more_than_they_work_on_and_pass_on_what_fails() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        time.sleep(0.01 * (item == 0))  # what is ready earlier waits for its turn
        return 10 // (7 - item)

    found = in_threads(work, items(), 2)
    assert next(found) == 10 // 7 and len(taken) == 3
    assert [next(found) for _ in range(6)] == [10 // (7 - item) for item in range(1, 7)]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_positive_weights_of_the_columns_to_keep() -> None:
    weights = np.array([[0, 1, -2, 3], [0, 0, 0, 0], [5, 0, 6, 7]], dtype=np.float32)
    keep = np.array([True, True, True, False])
    found = sparse_rows(weights, keep)
    np.testing.assert_array_equal(found.toarray(), [[0, 1, 0, 0], [0, 0, 0, 0], [5, 0, 6, 0]])
    assert found.nnz == 3 and sparse_rows(weights[:0]).shape == (0, 4)
