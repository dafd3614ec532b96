"""From a sparse matrix to the answers of each protocol, a piece of JSON for each text."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import orjson

from oskit.archive.token_weights import matrix_to_weights
from oskit.archive.vector_writer import VectorWriter

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.vocabulary import Vocabulary

Style = Literal["WORD", "TOKEN_ID", "TEI"]
"""``{token: weight}``, ``{id: weight}``, and TEI's ``[{"index": id, "value": weight}]``."""


class Writers:
    """Writes rows in every style; weights are the shortest decimals that give the same 32-bit floats again.

    A text without weights is ``{}`` or ``[]``: there is exactly one answer for each.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._by = {key: VectorWriter(vocabulary, key, None) for key in ("token", "id")}
        self._indices = np.array(
            [b'},{"index":%d,"value":' % token for token in range(vocabulary.size)], dtype=object
        )

    def word(self, matrix: csr_matrix) -> list[bytes]:
        """By token texts; of ids with one text the highest counts, as on the cluster."""
        if self._vocabulary.is_ambiguous:
            kept = self._by["token"].kept(matrix)
            return [orjson.dumps(row) for row in matrix_to_weights(kept, self._vocabulary)]
        return [row or b"{}" for row in self._by["token"].write(matrix)]

    def token_id(self, matrix: csr_matrix) -> list[bytes]:
        """By token ids."""
        return [row or b"{}" for row in self._by["id"].write(matrix)]

    def tei(self, matrix: csr_matrix) -> list[bytes]:
        """As TEI does, ids ascending."""
        matrix = self._by["id"].kept(matrix)
        if not matrix.nnz:
            return [b"[]"] * matrix.shape[0]
        numbers = orjson.dumps(np.ascontiguousarray(matrix.data), option=orjson.OPT_SERIALIZE_NUMPY)
        entries = [b""] * (2 * matrix.nnz)
        entries[::2] = self._indices[matrix.indices].tolist()
        entries[1::2] = numbers[1:-1].split(b",")
        rows = pairwise((2 * matrix.indptr).tolist())
        return [
            b"[" + b"".join(entries[start:end])[2:] + (b"}]" if start < end else b"]") for start, end in rows
        ]
