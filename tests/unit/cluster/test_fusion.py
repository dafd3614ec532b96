"""Fused scores against values computed by hand; tests/integration/test_hybrid.py has the cluster's own."""

from __future__ import annotations

from math import exp, log, sqrt

import pytest

from oskit.cluster.search.fusion import Candidates, Found, Fusion
from oskit.errors import UsageError

BM25 = [Found("a", 8.0), Found("b", 6.0), Found("c", 4.0)]
SPARSE = [Found("c", 30.0), Found("d", 20.0), Found("a", 10.0)]
WEIGHTS = (0.25, 0.75)

MIN_MAX = {"a": (1, 0.001), "b": (0.5, 0), "c": (0.001, 1), "d": (0, 0.5)}
"""The last of a list has .001, who is not in it 0."""

LENGTHS = sqrt(64 + 36 + 16), sqrt(900 + 400 + 100)
L2 = {
    "a": (8 / LENGTHS[0], 10 / LENGTHS[1]),
    "b": (6 / LENGTHS[0], 0),
    "c": (4 / LENGTHS[0], 30 / LENGTHS[1]),
    "d": (0, 20 / LENGTHS[1]),
}

Z_SCORE = {"a": (1, 0.001), "b": (8, 0), "c": (0.001, 1), "d": (0, 30)}
"""Deviations of a sample, 2 and 10, around 6 and 20; who has the very mean gets the largest raw score."""

RECIPROCAL = {"a": (1 / 61, 1 / 63), "b": (1 / 62, 0), "c": (1 / 63, 1 / 61), "d": (0, 1 / 62)}


def arithmetic(bm25: float, sparse: float) -> float:
    return 0.25 * bm25 + 0.75 * sparse


def geometric(bm25: float, sparse: float) -> float:
    """Over the sides that have the document only."""
    there = [(weight, score) for weight, score in zip(WEIGHTS, (bm25, sparse), strict=True) if score]
    return exp(sum(weight * log(score) for weight, score in there) / sum(weight for weight, _ in there))


def harmonic(bm25: float, sparse: float) -> float:
    there = [(weight, score) for weight, score in zip(WEIGHTS, (bm25, sparse), strict=True) if score]
    return sum(weight for weight, _ in there) / sum(weight / score for weight, score in there)


@pytest.mark.parametrize(
    ("name", "normalized", "mean"),
    [
        ("min_max", MIN_MAX, arithmetic),
        ("min_max:geometric", MIN_MAX, geometric),
        ("min_max:harmonic", MIN_MAX, harmonic),
        ("l2", L2, arithmetic),
        ("l2:geometric_mean", L2, geometric),
        ("l2:harmonic", L2, harmonic),
        ("z_score", Z_SCORE, arithmetic),
        ("rrf:60", RECIPROCAL, arithmetic),
    ],
)
def test_scores_are_those_computed_by_hand(name: str, normalized: dict, mean: object) -> None:
    found = Candidates.of([[BM25, SPARSE]]).fuse(Fusion.parse(name), WEIGHTS)
    expected = {document: mean(*sides) for document, sides in normalized.items()}  # type: ignore[operator]
    assert found == pytest.approx(expected, rel=1e-5)
    assert list(found) == sorted(expected, key=lambda document: -expected[document])


@pytest.mark.parametrize(
    ("name", "alone", "equal"),
    [("min_max", 1.0, [1.0, 1.0]), ("l2", 1.0, [sqrt(0.5)] * 2), ("z_score", 9.0, [9.0, 9.0])],
)
def test_lists_of_one_hit_of_equal_scores_and_of_none(name: str, alone: float, equal: list[float]) -> None:
    fusion = Fusion.parse(name)
    only = Candidates.of([[[Found("a", 9.0)], []]]).fuse(fusion, (0.5, 0.5))
    assert only == pytest.approx({"a": alone / 2})
    both = Candidates.of([[[Found("a", 9.0), Found("b", 9.0)], []]]).fuse(fusion, (1.0, 0.0))
    assert list(both.values()) == pytest.approx(equal)
    assert Candidates.of([[[], []]]).fuse(fusion, (0.5, 0.5)) == {}


def test_several_shards_share_the_scale_and_the_ranks() -> None:
    shards = [[[Found("a", 8.0, 0), Found("b", 4.0, 1)], []], [[Found("c", 6.0, 0)], [Found("c", 2.0, 0)]]]
    candidates = Candidates.of(shards)
    found = candidates.fuse(Fusion("min_max"), (0.5, 0.5))
    assert found == pytest.approx({"c": 0.75, "a": 0.5, "b": 0.0005})
    ranked = candidates.fuse(Fusion("rrf", rank_constant=1), (0.5, 0.5))
    assert ranked == pytest.approx({"c": 0.5 / 3 + 0.5 / 2, "a": 0.5 / 2, "b": 0.5 / 4})


def test_equal_scores_stand_as_javas_hash_table_has_their_numbers() -> None:
    """Of 16 places, 17 shares the second with 1, and the newcomer comes first; 32 stands before both."""
    listed = [Found("one", 5.0, 1), Found("seventeen", 5.0, 17), Found("three", 5.0, 3), Found("32", 5.0, 32)]
    fusion = Fusion("rrf", rank_constant=10_000)
    sides = [[found] for found in listed]  # each side finds another one, all at rank 1
    assert list(Candidates.of([sides]).fuse(fusion, [0.25] * 4)) == ["32", "seventeen", "one", "three"]
    unknown = [[Found(found.id, found.score)] for found in listed]
    assert list(Candidates.of([unknown]).fuse(fusion, [0.25] * 4)) == ["one", "seventeen", "three", "32"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("min_max", "min_max"), ("l2:arithmetic_mean", "l2"), ("rrf", "rrf:60"), ("rrf:5", "rrf:5")],
)
def test_a_fusion_is_read_as_it_is_written(text: str, name: str) -> None:
    assert Fusion.parse(text).name == name
    assert Fusion.parse(name) == Fusion.parse(text)


@pytest.mark.parametrize(
    "text", ["max", "min_max:median", "z_score:geometric", "rrf:0", "rrf:10001", "rrf:x", "rrf:geometric", ""]
)
def test_what_opensearch_refuses_is_refused_here(text: str) -> None:
    with pytest.raises(UsageError):
        Fusion.parse(text)


def test_an_unknown_fusion_is_named_as_it_was_given() -> None:
    for given in ("", "min_max,", "max:geometric"):
        with pytest.raises(UsageError, match=f"^unknown fusion '{given}'"):
            Fusion.parse(given)
