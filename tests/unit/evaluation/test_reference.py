"""Exact scores: against numbers worked out by hand, and against a dense product."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from small_collection import SmallCollection, WordEncoder, exact_run


def test_scores_by_hand_with_ties_in_corpus_order(encoder, collection):
    run = exact_run(encoder, collection, k=10)
    assert run == {
        "q1": {"d1": 3.5, "d4": 3.5, "d2": 2.0, "d3": 0.5},
        "q2": {},
        "q3": {"d3": 3.0},
    }
    assert list(run["q1"]) == ["d1", "d4", "d2", "d3"]


def test_depth_keeps_the_best_whatever_the_block_size(encoder, collection):
    for block in (1, 2, 3, 100):
        run = exact_run(encoder, collection, k=2, block_documents=block)
        assert list(run["q1"]) == ["d1", "d4"]


def test_documents_are_encoded_block_by_block(encoder, collection):
    exact_run(encoder, collection, k=1, block_documents=2)
    assert encoder.calls == [3, 2, 2, 1]  # the queries, then the corpus in blocks


class _MatrixEncoder(WordEncoder):
    """Text "i" is row i of a matrix."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__([str(column) for column in range(rows.shape[1])])
        self.rows = rows

    def document_matrix(self, texts):
        return csr_matrix(self.rows[[int(text) for text in texts]])

    query_matrix = document_matrix


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 9), st.integers(1, 7))
def test_equals_a_dense_product_sorted_stably(seed, documents, k, block):
    rng = np.random.default_rng(seed)
    # Few distinct values, so that ties are common.
    rows = rng.integers(0, 3, size=(documents + 3, 5)).astype(np.float32)
    names = [f"d{i}" for i in range(documents)]
    collection = SmallCollection(
        texts={name: str(i) for i, name in enumerate(names)},
        queries={f"q{i}": str(documents + i) for i in range(3)},
    )
    run = exact_run(_MatrixEncoder(rows), collection, k=k, block_documents=block)
    for i in range(3):
        scores = rows[:documents] @ rows[documents + i]
        expected = [d for d in np.argsort(-scores, kind="stable") if scores[d] > 0][:k]
        assert list(run[f"q{i}"].items()) == [(names[d], float(scores[d])) for d in expected]
