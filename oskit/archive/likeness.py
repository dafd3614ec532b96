"""How near two sets of vectors are: their cosines, and what stays of a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

DEPTH = 10
"""Places of a ranking that count."""


def cosines(one: csr_matrix, other: csr_matrix) -> NDArray[np.float64]:
    """Of each pair of rows; two empty rows are the same, an empty one and another are not."""

    def products(left: csr_matrix, right: csr_matrix) -> Any:
        return np.asarray(left.multiply(right).sum(axis=1)).ravel()

    one, other = one.astype(np.float64), other.astype(np.float64)
    squares = products(one, one), products(other, other)
    lengths = np.sqrt(squares[0] * squares[1])
    found = np.divide(products(one, other), lengths, out=np.zeros(len(lengths)), where=lengths != 0)
    return np.where((squares[0] == 0) & (squares[1] == 0), 1.0, found)


def tops(scores: NDArray[np.float32]) -> list[list[int]]:
    """For each row the places of its :data:`DEPTH` largest scores; what scores 0 is not found."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    return [[int(place) for place in best if row[place] > 0] for best, row in zip(order, scores, strict=True)]


def overlap(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """Share of each ranking's places that both have, the mean of all."""
    pairs = [(set(a), set(b)) for a, b in zip(one, other, strict=True)]
    return float(np.mean([len(a & b) / max(len(a), len(b)) if a or b else 1.0 for a, b in pairs]))
