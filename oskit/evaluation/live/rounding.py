"""What a cluster keeps of a token weight: the rounding that explains a difference of scores.

A weight of 1.2345 is not stored as 1.2345. Knowing exactly how it is stored turns "about equal" into a
bound: a score of the cluster either follows from the encoder's weights or it does not.

* ``rank_features``, and ``sparse_vector`` in segments below ``approximate_threshold``: Lucene's
  ``FeatureField`` keeps the upper 17 bits of the float32, that is 9 significant bits, cut off and not
  rounded (``Float.floatToIntBits(value) >>> 15``; the same in neural-search's ``ValueEncoder``). A stored
  weight is thus up to 2^-8 = 0.39 % too small and never too large. Query weights stay float32.
* ``sparse_vector`` in segments at or above the threshold: neural-search's ``ByteQuantizer`` clips at a
  ceiling and rounds to 0…255, documents with ``quantization_ceiling_ingest`` (3), queries with
  ``quantization_ceiling_search`` (16).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_FEATURE_MASK = np.uint32(0xFFFF8000)
_BYTE_MAX = np.float32(255)


def truncate_to_feature(weights: Array) -> Array:
    """Non-negative float32 weights as Lucene's ``FeatureField`` stores them, same shape."""
    bits = np.ascontiguousarray(weights, dtype=np.float32).view(np.uint32)
    return np.asarray((bits & _FEATURE_MASK).view(np.float32))


def quantize_to_byte(weights: Array, ceiling: float) -> Array:
    """Non-negative float32 weights as ``ByteQuantizer`` keeps them, scaled back, same shape.

    ``Math.round`` rounds halves up, which numpy's rounding does not.
    """
    clipped = np.clip(np.asarray(weights, dtype=np.float32), np.float32(0), np.float32(ceiling))
    steps = np.floor(clipped * _BYTE_MAX / np.float32(ceiling) + np.float32(0.5))
    return np.asarray(steps * np.float32(ceiling) / _BYTE_MAX, dtype=np.float32)


@dataclass(frozen=True)
class Storage:
    """How an index keeps weights.

    Attributes:
        features: Some segment stores them as Lucene features (9 significant bits).
        bytes: Some segment quantises them to a byte (seismic); both may be true, segment by segment.
        ceiling_ingest: The weight that a document's 255 stands for.
        ceiling_search: The weight that a query's 255 stands for.
        threshold: Documents in a segment from which it quantises and is searched approximately.
        largest_segment: Its documents.
    """

    features: bool = True
    bytes: bool = False
    ceiling_ingest: float = 3.0
    ceiling_search: float = 16.0
    threshold: int = 0
    largest_segment: int = 0

    @property
    def approximate(self) -> bool:
        """Whether the cluster may skip documents: seismic looks into promising clusters only."""
        return self.bytes

    def document_bounds(self, weights: Array, tolerance: float) -> tuple[Array, Array]:
        """Smallest and largest stored value of weights that are known to within ``tolerance``."""
        return self._bounds(weights, tolerance, truncate_to_feature, self.ceiling_ingest)

    def query_bounds(self, weights: Array, tolerance: float) -> tuple[Array, Array]:
        """Smallest and largest value that the cluster multiplies with, for a query's weights."""
        return self._bounds(weights, tolerance, np.asarray, self.ceiling_search)

    def _bounds(
        self, weights: Array, tolerance: float, feature: Callable[[Array], Array], ceiling: float
    ) -> tuple[Array, Array]:
        """The stored forms of both ends, as both ways of storing are monotone."""
        below = np.maximum(weights - np.float32(tolerance), np.float32(0))
        ways: list[Callable[[Array], Array]] = [feature] if self.features else []
        if self.bytes:
            ways.append(partial(quantize_to_byte, ceiling=ceiling))
        above = weights + np.float32(tolerance)
        return np.minimum.reduce([way(below) for way in ways]), np.maximum.reduce(
            [way(above) for way in ways]
        )


EXACT = Storage()
"""``rank_features``, or a ``sparse_vector`` field that is searched exactly."""
