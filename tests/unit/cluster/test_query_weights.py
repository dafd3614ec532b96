"""What OpenSearch takes of a query's weights: the others are refused, or left out and told, never sent."""

from __future__ import annotations

import math
from typing import Any

import pytest

from oskit.cluster.index.mapping import IndexInfo
from oskit.cluster.search.query_weights import checked, fitted
from oskit.errors import SearchError

TOKENS = IndexInfo("articles", "rank_features", "token")
IDS = IndexInfo("articles", "sparse_vector", "id")


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0, 64.1, True, None, "1"])
def test_weights_that_somebody_gave_are_refused_if_opensearch_would(weight: Any):
    with pytest.raises(SearchError, match="the query's token 'fox' weighs"):
        checked({"fox": weight}, TOKENS)


@pytest.mark.parametrize("key", ["fox", "07", "-1", "1.0", "٣", "", "65536", "4294967296"])
def test_what_is_no_id_of_a_sparse_vector_is_refused(key: str):
    with pytest.raises(SearchError, match="the query has the token"):
        checked({key: 1.0}, IDS)


def test_what_is_nothing_as_a_float_of_32_bits_is_left_out():
    assert checked({"fox": 64, "a": 0, "b": 1e-50}, TOKENS) == {"fox": 64.0}
    assert fitted({"fox": 1.0, "a": 0.0, "b": -1.0, "c": 1e-50}, TOKENS) == ({"fox": 1.0}, None)


def test_too_many_and_too_heavy_weights_of_an_encoder_keep_their_proportions():
    weights = {str(number): float(number) for number in range(1, 2001)}
    kept, told = fitted(weights, TOKENS)
    assert kept == pytest.approx({str(number): number * 64 / 2000 for number in range(977, 2001)})
    assert told is not None and "1,024 heaviest of the query's 2,000 tokens" in told and "0.032" in told
    with pytest.raises(SearchError, match="2,000 tokens, more tokens than"):
        checked(dict.fromkeys(weights, 1.0), TOKENS)


def test_an_encoders_tokens_that_the_index_cannot_have_are_told():
    kept, told = fitted({"5": 1.0, "70000": 9.0}, IDS)
    assert kept == {"5": 1.0} and told is not None and "1 of the query's tokens cannot be" in told


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_an_encoder_whose_numbers_overflow_is_no_encoder(weight: float):
    with pytest.raises(SearchError, match="gave the query's token 'fox' the weight"):
        fitted({"fox": weight}, TOKENS)
