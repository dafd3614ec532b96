"""From a sparse matrix to ``{token: weight}``, and pruning as OpenSearch does it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, get_args

import numpy as np

from oskit.archive.text_encoder import KeyFormat, TokenWeights
from oskit.errors import UsageError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.text_encoder import Architecture, TextEncoder
    from oskit.archive.vocabulary import Vocabulary

Inner = TypeVar("Inner", bound="TextEncoder")

PruneType = Literal["max_ratio", "top_k", "alpha_mass", "abs_value"]

_VALID_RATIO: dict[PruneType, str] = {
    "max_ratio": "a number from 0 to below 1",
    "alpha_mass": "a number from 0 to below 1",
    "top_k": "a positive whole number",
    "abs_value": "a number that is not negative",
}


@dataclass(frozen=True)
class Prune:
    """Which weights of a vector to keep, by the rules of neural-search's ``PruneUtils``.

    * ``max_ratio``: weights of at least ``ratio`` times the largest
    * ``top_k``: the ``ratio`` largest
    * ``alpha_mass``: the largest, as long as their running sum is at most ``ratio`` times the sum of all
    * ``abs_value``: weights of at least ``ratio``

    Raises:
        UsageError: The type is unknown or the ratio is out of its range.
    """

    type: PruneType
    ratio: float

    def __post_init__(self) -> None:
        if self.type not in get_args(PruneType):
            raise UsageError(
                f"unknown prune type {self.type!r}", hint=f"Use one of {', '.join(get_args(PruneType))}."
            )
        valid = math.isfinite(self.ratio) and self.ratio >= 0
        if self.type in ("max_ratio", "alpha_mass"):
            valid = valid and self.ratio < 1
        elif self.type == "top_k":
            valid = valid and self.ratio >= 1 and self.ratio == int(self.ratio)
        if not valid:
            raise UsageError(
                f"{self.ratio:g} is not a ratio for {self.type}", hint=f"Use {_VALID_RATIO[self.type]}."
            )

    @classmethod
    def parse(cls, text: str) -> Prune:
        """Read ``TYPE:RATIO``, for instance ``max_ratio:0.1`` or ``top_k:200``.

        Raises:
            UsageError: It reads as neither.
        """
        kind, _, ratio = text.partition(":")
        try:
            number = float(ratio)
        except ValueError:
            raise UsageError(
                f"cannot read {text!r} as a pruning rule",
                hint="Write TYPE:RATIO, for instance max_ratio:0.1 or top_k:200.",
            ) from None
        return cls(cast(PruneType, kind.strip()), number)

    def __str__(self) -> str:
        return f"{self.type}:{self.ratio:g}"


def prune(weights: Mapping[str, float], rule: Prune) -> TokenWeights:
    """The weights that ``rule`` keeps, in the order given.

    Computed in float32 like the ``sparse_encoding`` processor does, so that the same weights survive.
    """
    if not weights:
        return {}
    values = np.fromiter(weights.values(), dtype=np.float32, count=len(weights))
    kept = _kept(values, rule)
    return {key: weight for (key, weight), keep in zip(weights.items(), kept, strict=True) if keep}


def prune_matrix(matrix: csr_matrix, rule: Prune) -> csr_matrix:
    """Each row as :func:`prune` leaves it; same shape. Entries that are not above zero are left out first."""
    positive = matrix.tocsr(copy=True)
    positive.sort_indices()
    positive = entries_of(positive, positive.data > 0)
    values = positive.data.astype(np.float32)
    kept = np.zeros(len(values), dtype=bool)
    for start, end in pairwise(positive.indptr):
        if start < end:
            kept[start:end] = _kept(values[start:end], rule)
    return entries_of(positive, kept)


def entries_of(matrix: csr_matrix, kept: np.ndarray) -> csr_matrix:
    """A matrix with some of its entries only; ``kept`` tells which, in the order of ``matrix.data``."""
    from scipy.sparse import csr_matrix

    if kept.all():
        return matrix
    indptr = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return csr_matrix((matrix.data[kept], matrix.indices[kept], indptr), shape=matrix.shape)


def _kept(values: np.ndarray, rule: Prune) -> np.ndarray:
    ratio = np.float32(rule.ratio)
    if rule.type == "max_ratio":
        return np.asarray(values >= ratio * values.max())
    if rule.type == "abs_value":
        return np.asarray(values >= ratio)
    kept = np.zeros(len(values), dtype=bool)
    order = np.argsort(-values, kind="stable")
    if rule.type == "top_k":
        kept[order[: int(rule.ratio)]] = True
    else:
        total = np.float32(values.sum(dtype=np.float64))
        kept[order] = np.cumsum(values[order], dtype=np.float32) <= ratio * total
    return kept


def matrix_to_weights(
    matrix: csr_matrix, vocabulary: Vocabulary, *, key: KeyFormat = "token"
) -> list[TokenWeights]:
    """Token weights of each row, heaviest first, as the cluster would return them.

    Args:
        matrix: Shape ``[n, vocabulary.size]``; zero and negative entries are left out.
        vocabulary: Gives the keys. Where several ids have the same text, ``key="token"`` keeps the highest
            id, as on the cluster, which overwrites.
        key: ``"token"`` for ML Commons' WORD format, ``"id"`` for TOKEN_ID.
    """
    names = vocabulary.keys if key == "token" else None
    return [_row(matrix, row, names) for row in range(matrix.shape[0])]


def _row(matrix: csr_matrix, row: int, names: Sequence[str] | None) -> TokenWeights:
    start, end = matrix.indptr[row], matrix.indptr[row + 1]
    pairs = sorted(zip(matrix.indices[start:end].tolist(), matrix.data[start:end].tolist(), strict=True))
    named: TokenWeights = {}
    for token_id, weight in pairs:
        name = str(token_id) if names is None else names[token_id]
        if weight > 0 and name:
            named[name] = weight
    return dict(sorted(named.items(), key=lambda item: -item[1]))


class TokenWeightsMixin:
    """``document_weights`` and ``query_weights`` for a class that has the matrices.

    The class provides ``vocabulary``, ``document_matrix`` and ``query_matrix`` of
    :class:`oskit.archive.text_encoder.TextEncoder`.
    """

    if TYPE_CHECKING:

        @property
        def vocabulary(self) -> Vocabulary: ...

        def document_matrix(self, texts: Sequence[str]) -> csr_matrix: ...

        def query_matrix(self, texts: Sequence[str]) -> csr_matrix: ...

    def document_weights(self, texts: Sequence[str], *, key: KeyFormat = "token") -> list[TokenWeights]:
        """Token weights of each document, heaviest first, as the cluster would return them."""
        return matrix_to_weights(self.document_matrix(texts), self.vocabulary, key=key)

    def query_weights(self, texts: Sequence[str], *, key: KeyFormat = "token") -> list[TokenWeights]:
        """Token weights of each query, heaviest first, as the cluster would return them."""
        return matrix_to_weights(self.query_matrix(texts), self.vocabulary, key=key)


class DelegatingEncoder(TokenWeightsMixin, Generic[Inner]):
    """An encoder that asks another one; subclasses change what they are about."""

    def __init__(self, encoder: Inner) -> None:
        self._encoder = encoder

    @property
    def architecture(self) -> Architecture:
        """The encoder's."""
        return self._encoder.architecture

    @property
    def vocabulary(self) -> Vocabulary:
        """The encoder's."""
        return self._encoder.vocabulary

    @property
    def truncation(self) -> Any:
        """The encoder's; None where it does not count."""
        return getattr(self._encoder, "truncation", None)

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Document vectors, shape ``[len(texts), vocabulary.size]``."""
        return self._encoder.document_matrix(texts)

    def query_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Query vectors, shape ``[len(texts), vocabulary.size]``."""
        return self._encoder.query_matrix(texts)
