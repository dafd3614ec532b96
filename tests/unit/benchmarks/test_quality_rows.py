"""The benchmark's verdicts follow from what was measured, and from nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.quality.data import FAQ_ENGLISH, MEDQUAD, MEDQUAD_ALL_QUERIES
from benchmarks.quality.measure import MAX_RATIO, Measured, Point
from benchmarks.quality.rows import ROWS, spread
from benchmarks.quality.runs import BM25, DENSE, Result
from benchmarks.quality.tables import lines, markdown
from benchmarks.quality.variants import VARIANTS
from oskit.training.recipe.tree import merge


def measured(ndcg: float, *points: Point, queries: int = 20) -> Measured:
    values = {f"q{number}": ndcg + (0.001 if number % 2 else -0.001) for number in range(queries)}
    whole = points or (Point("none", ndcg, 2.0, 1000, 100.0), Point(MAX_RATIO, ndcg, 1.5, 600, 60.0))
    return Measured({"nDCG@10": ndcg}, values, 50, list(whole), query_active=10.0, query_ms=1.0)


def result(name: str, ndcg: float, *points: Point, seed: int = 0, collection: str = MEDQUAD) -> Result:
    return Result(name, seed, {collection: measured(ndcg, *points)})


def verdicts(number: str, results: list[Result]) -> list[bool | None]:
    by_name: dict[str, list[Result]] = {name: [] for name in (*ROWS[number].variants, *VARIANTS, BM25, DENSE)}
    for found in results:
        by_name[found.variant].append(found)
    return [claim.holds for claim in ROWS[number].claims(by_name)]


def test_from_nothing() -> None:
    references = [result(BM25, 0.4), result(DENSE, 0.6)]
    untrained = [result("minilm-random", 0.01), result("minilm-random-stage-1", 0.3)]
    assert verdicts("1", [*references, *untrained, result("minilm-stage-1", 0.55)]) == [
        True,
        True,
        True,
        True,
    ]
    assert verdicts("1", [*references, *untrained, result("minilm-stage-1", 0.53)]) == [
        True,
        True,
        False,
        True,
    ]


def test_a_training_that_failed_is_not_judged() -> None:
    failed = Result("minilm-random-stage-1", 0, {}, failure="it collapsed")
    found = [
        result(BM25, 0.4),
        result(DENSE, 0.6),
        result("minilm-random", 0.01),
        result("minilm-stage-1", 0.6),
    ]
    assert verdicts("1", [*found, failed]) == [True, True, True, None]
    by_name = {found.variant: [found] for found in [*found, failed]}
    by_name["minilm-lexical"] = []
    assert any("it collapsed" in line[2] for line in lines(ROWS["1"], by_name))


def test_better_means_significantly_better() -> None:
    before, after = (
        result(name, ndcg, collection=MEDQUAD_ALL_QUERIES)
        for name, ndcg in (("tiny", 0.4), ("tiny-stage-1", 0.5))
    )
    faq = result("tiny-faq", 0.5, collection=FAQ_ENGLISH)
    before = replace(before, measured={**before.measured, FAQ_ENGLISH: measured(0.6)})
    assert verdicts("2", [before, after, faq]) == [True, False]


def test_costs_are_made_equal_before_quality_is_compared() -> None:
    cheap = (Point("none", 0.50, 1.0, 100, 10.0), Point("top_k:8", 0.40, 0.5, 50, 5.0))
    # Better with all its weights, which cost four times as much; at a cost of 1 it is worse.
    dear = (
        Point("none", 0.56, 4.0, 400, 40.0),
        Point("top_k:16", 0.46, 1.0, 100, 10.0),
        Point("top_k:8", 0.40, 0.5, 50, 5.0),
    )
    stages = [result("tiny-stage-1", 0.50, *cheap), result("tiny-stage-2", 0.56, *dear)]
    others = [
        result("tiny-idf", 0.5, *cheap),
        result("tiny-mined", 0.55, Point("none", 0.55, 1.0, 100, 10.0)),
    ]
    assert verdicts("3", [*stages, *others]) == [False, False, True]


def test_quality_between_two_pruning_levels_is_linear_in_the_logarithm_of_the_cost() -> None:
    found = measured(0.6, Point("none", 0.6, 4.0, 1, 1.0), Point("top_k:8", 0.4, 1.0, 1, 1.0))
    assert found.ndcg_at(2.0) == pytest.approx(0.5)
    assert found.ndcg_at(100.0) == pytest.approx(0.6)
    assert Measured.from_dict(found.to_dict()) == found


def test_pruning() -> None:
    names = ROWS["6"].variants
    assert verdicts("6", [result(name, 0.5) for name in names]) == [True, True] * len(names)
    costly = (Point("none", 0.5, 2.0, 1000, 100.0), Point(MAX_RATIO, 0.49, 1.5, 800, 80.0))
    assert verdicts("6", [result(name, 0.5, *costly) for name in names]) == [False, False] * len(names)


def test_seeds_are_one_line_with_mean_and_spread() -> None:
    results = {
        "tiny-stage-1": [
            result("tiny-stage-1", value, seed=seed) for seed, value in enumerate((0.4, 0.5, 0.6))
        ],
        "tiny-inference-free": [],
        BM25: [result(BM25, 0.45)],
        DENSE: [],
    }
    table = lines(ROWS["4"], results)
    assert [line[2:5] for line in table] == [["0.450", "0.000", "1"], ["0.500", "0.100", "3"]]
    assert "BERT-tiny, stage 1" in markdown({"4": ROWS["4"]}, results, {"4": ROWS["4"].claims(results)})
    assert math.isclose(spread([0.4, 0.5, 0.6]), 0.1)


def test_changes_of_a_recipe_are_merged_part_by_part() -> None:
    recipe = {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}
    assert merge(recipe, {"a": {"c": {"f": 3}}, "e": None}) == {
        "a": {"b": 1, "c": {"d": 2, "f": 3}},
        "e": None,
    }
    assert recipe == {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}


def test_rows_name_variants_that_there_are() -> None:
    assert {name for row in ROWS.values() for name in row.variants} == set(VARIANTS)
    for row in ROWS.values():
        assert any(set(row.collections) & set(VARIANTS[name].collections) for name in row.variants)
