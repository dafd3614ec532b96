"""How weights are stored, against the definitions of Lucene and neural-search."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oskit.evaluation.live.rounding import Storage, quantize_to_byte, truncate_to_feature

WEIGHTS = st.floats(2.0**-20, 60, width=32)


def _lucene(value: float) -> float:
    (bits,) = struct.unpack(">i", struct.pack(">f", value))
    return struct.unpack(">f", struct.pack(">i", (bits >> 15) << 15))[0]


@given(WEIGHTS)
def test_feature_is_cut_off_to_nine_significant_bits(weight):
    stored = float(truncate_to_feature(np.array([weight], dtype=np.float32))[0])
    assert stored == _lucene(weight)
    assert weight * (1 - 2.0**-8) < stored <= weight


def test_bytes_are_rounded_half_up_and_clipped():
    step = 3 / 255
    weights = np.array([0, step / 2, step * 0.49, 1.0, 3.0, 7.0], dtype=np.float32)
    np.testing.assert_allclose(
        quantize_to_byte(weights, 3.0), [0, step, 0, 85 * step, 3.0, 3.0], rtol=1e-6, atol=1e-9
    )


@given(WEIGHTS, st.floats(-1e-3, 1e-3), st.booleans(), st.booleans())
def test_bounds_hold_whatever_the_noise(weight, noise, features, as_bytes):
    storage = Storage(features=features or not as_bytes, bytes=as_bytes)
    low, high = storage.document_bounds(np.array([weight], dtype=np.float32), 1.1e-3)
    actual = np.array([max(weight + noise, 0)], dtype=np.float32)
    if storage.features:
        assert low[0] <= truncate_to_feature(actual)[0] <= high[0]
    if storage.bytes:
        assert low[0] <= quantize_to_byte(actual, 3.0)[0] <= high[0]


def test_queries_of_an_exact_search_are_not_rounded():
    weights = np.array([1.2345678], dtype=np.float32)
    low, high = Storage().query_bounds(weights, 0.0)
    assert low[0] == high[0] == weights[0]
