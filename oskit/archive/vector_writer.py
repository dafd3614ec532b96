"""Vectors as JSON, straight from the rows of a sparse matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oskit.archive.token_weights import Prune, entries_of, prune_matrix
from oskit.data.vectors import SMALLEST_WEIGHT, key_bytes, write_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.text_encoder import KeyFormat
    from oskit.archive.vocabulary import Vocabulary


class VectorWriter:
    """Makes the JSON objects ``{key: weight}`` of vectors.

    Weights are the shortest decimals that give the same 32-bit floats again. What an index refuses is left
    out: weights that are not positive, not finite or subnormal, and tokens without a key.

    Args:
        vocabulary: Gives the keys; they are encoded once.
        key: Whether tokens are named by their text or by their id.
        prune: Which weights to keep; None keeps all.
    """

    def __init__(self, vocabulary: Vocabulary, key: KeyFormat, prune: Prune | None) -> None:
        names = vocabulary.keys if key == "token" else map(str, range(vocabulary.size))
        keys = [key_bytes(name) if name else b"" for name in names]
        self._keys = np.array(keys, dtype=object)
        self._named = np.array([bool(key) for key in keys])
        self._prune = prune

    def kept(self, matrix: csr_matrix) -> csr_matrix:
        """The entries that are written, in float32; the same shape."""
        if self._prune is not None:
            matrix = prune_matrix(entries_of(matrix, self._named[matrix.indices]), self._prune)
        matrix = matrix.astype(np.float32, copy=False)
        good = (matrix.data >= SMALLEST_WEIGHT) & np.isfinite(matrix.data) & self._named[matrix.indices]
        return entries_of(matrix, good)

    def write(self, matrix: csr_matrix) -> list[bytes | None]:
        """The JSON of each row; None for one without weights, which ``sparse_vector`` does not take."""
        matrix = self.kept(matrix)
        rows = write_rows(self._keys[matrix.indices], matrix.data, matrix.indptr)
        return [row if row != b"{}" else None for row in rows]
