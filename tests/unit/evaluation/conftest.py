"""Fixtures of the evaluation's tests."""

from __future__ import annotations

import pytest
from small_collection import SmallCollection, WordEncoder


@pytest.fixture
def encoder() -> WordEncoder:
    """Four words."""
    return WordEncoder(["cat", "dog", "cow", "eel"])


@pytest.fixture
def collection() -> SmallCollection:
    """Five documents, three queries."""
    return SmallCollection(
        texts={
            "d1": "cat:1.5 dog:0.5",
            "d2": "dog:2",
            "d3": "cow:1 cat:0.25",
            "d4": "cat:1.5 dog:0.5",
            "d5": "",
        },
        queries={"q1": "cat:2 dog:1", "q2": "eel", "q3": "cow:3"},
        qrels={"q1": {"d2": 1}, "q2": {"d5": 1}, "q3": {"d3": 2, "d1": 0}},
    )
