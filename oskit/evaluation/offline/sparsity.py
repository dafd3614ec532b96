"""How sparse an encoder is: active dimensions, FLOPS, postings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

RAW_POSTING_BYTES = 8
"""A document number and a float32, uncompressed."""


class ActivationCounter:
    """Counts, over blocks of vectors, how often each dimension is active.

    Attributes:
        vectors: Vectors seen; of documents in chunks, the documents.
        counts: int64 ``[vocabulary]``: vectors in which the dimension is above 0, each chunk's for itself.
    """

    def __init__(self, dimensions: int) -> None:
        self.vectors = 0
        self.counts: npt.NDArray[np.int64] = np.zeros(dimensions, dtype=np.int64)

    def update(self, weights: csr_matrix, documents: int | None = None) -> None:
        """Take in the vectors of a block, ``[n, vocabulary]``, which may be of fewer documents than ``n``."""
        self.vectors += weights.shape[0] if documents is None else documents
        self.counts += np.bincount(weights.indices[weights.data > 0], minlength=len(self.counts))

    @property
    def postings(self) -> int:
        """Non-zero weights of all vectors."""
        return int(self.counts.sum())

    @property
    def mean_active(self) -> float:
        """Mean number of active dimensions of a vector."""
        return self.postings / self.vectors if self.vectors else 0.0


@dataclass(frozen=True)
class Sparsity:
    """What an encoder's vectors cost.

    Attributes:
        query_active: Mean number of tokens with a weight in a query.
        document_active: The same for documents.
        flops: Expected number of products that one query and one document cost.
        postings: Entries of the inverted index.
        postings_terms: Tokens that have at least one posting.
        postings_bytes: Size of the postings, uncompressed (8 bytes each).
    """

    query_active: float
    document_active: float
    flops: float
    postings: int
    postings_terms: int
    postings_bytes: int


def sparsity(queries: ActivationCounter, documents: ActivationCounter) -> Sparsity:
    """Summarise both sides.

    FLOPS is the sum over the vocabulary of the probability that a query activates a token times the
    probability that a document does (or, in chunks, how many of its chunks do): the expected number of
    floating-point products for a random pair (Paria et al., "Minimizing FLOPs to Learn Efficient Sparse
    Representations", ICLR 2020, section 3; as measured in Formal et al., "SPLADE v2", 2021).
    """
    pairs = max(1, queries.vectors) * max(1, documents.vectors)
    flops = float(np.dot(queries.counts.astype(np.float64), documents.counts.astype(np.float64)) / pairs)
    return Sparsity(
        query_active=queries.mean_active,
        document_active=documents.mean_active,
        flops=flops,
        postings=documents.postings,
        postings_terms=int((documents.counts > 0).sum()),
        postings_bytes=documents.postings * RAW_POSTING_BYTES,
    )
