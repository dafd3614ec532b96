"""How near vectors and rankings are, beside values by hand."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from oskit.archive.likeness import DEPTH, cosines, overlap, tops


def test_cosines_of_rows() -> None:
    one = csr_matrix(np.float32([[3, 4, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1e-20, 0, 0]]))
    other = csr_matrix(np.float32([[4, 3, 0], [0, 2, 0], [0, 0, 0], [0, 1, 0], [2e-20, 0, 0]]))
    np.testing.assert_allclose(cosines(one, other), [24 / 25, 0, 1, 0, 1])


def test_what_stays_of_rankings() -> None:
    scores = np.zeros((3, 30), np.float32)
    scores[0] = np.arange(30)
    scores[1, [4, 7, 9]] = 2, 1, 2
    found = tops(scores)
    assert found == [list(range(29, 29 - DEPTH, -1)), [4, 9, 7], []]
    assert overlap(found, found) == 1
    other = [[*range(29, 24, -1)], [7, 1], [3]]
    np.testing.assert_allclose(overlap(found, other), (5 / 10 + 1 / 3 + 0) / 3)
