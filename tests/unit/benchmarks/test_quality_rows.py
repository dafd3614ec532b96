"""The benchmark's verdicts follow from what was measured, and from nothing else."""

from __future__ import annotations

import json
import lzma
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.quality.data import ASIDE, DEV, FAQ_ENGLISH, FAQ_SWEDISH, MEDQUAD, Workspace
from benchmarks.quality.measure import BUDGET, MAX_RATIO, Measured, Point
from benchmarks.quality.rows import ROWS, Claim, spread
from benchmarks.quality.runs import BM25, DENSE, Result
from benchmarks.quality.tables import lines, markdown
from benchmarks.quality.variants import SCALES, VARIANTS, at_weights
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.training.recipe.file import load_recipe


def measured(ndcg: float, *points: Point, queries: int = 20) -> Measured:
    values = {f"q{number}": ndcg + (0.001 if number % 2 else -0.001) for number in range(queries)}
    whole = points or (Point("none", ndcg, 2.0, 1000, 100.0), Point(MAX_RATIO, ndcg, 1.5, 600, 60.0))
    return Measured({"nDCG@10": ndcg}, values, 50, list(whole), query_active=10.0, query_ms=1.0)


def result(name: str, ndcg: float, *points: Point, seed: int = 0, collection: str = MEDQUAD) -> Result:
    return Result(name, seed, {collection: measured(ndcg, *points)})


def claims(number: str, results: list[Result]) -> list[Claim]:
    by_name: dict[str, list[Result]] = {name: [] for name in (*ROWS[number].variants, *VARIANTS, BM25, DENSE)}
    for found in results:
        by_name[found.variant].append(found)
    return ROWS[number].claims(by_name)


def verdicts(number: str, results: list[Result]) -> list[bool | None]:
    return [claim.holds for claim in claims(number, results)]


def test_from_nothing() -> None:
    references = [result(BM25, 0.4), result(DENSE, 0.6)]
    assert verdicts("1", [*references, result("minilm-stage-1", 0.55)]) == [True, True]
    assert verdicts("1", [*references, result("minilm-stage-1", 0.53)]) == [True, False]
    assert verdicts("1", [*references, result("minilm-stage-1", 0.39)]) == [False, False]


def test_a_training_that_failed_is_not_judged() -> None:
    failed = Result("minilm-stage-1", 0, {}, failure="it collapsed")
    found = [result(BM25, 0.4), result(DENSE, 0.6), failed]
    assert verdicts("1", found) == [None, None]
    by_name = {found.variant: [found] for found in found}
    by_name["minilm-lexical"] = []
    assert any("it collapsed" in line[2] for line in lines(ROWS["1"], by_name))


def test_better_means_significantly_better() -> None:
    before, after = (result(name, ndcg) for name, ndcg in (("tiny", 0.4), ("tiny-stage-1", 0.5)))
    faq = result("tiny-faq", 0.5, collection=FAQ_ENGLISH)
    before = replace(before, measured={**before.measured, FAQ_ENGLISH: measured(0.6)})
    assert verdicts("2", [before, after, faq]) == [True, False]


def test_recipes_are_compared_by_curves_of_all_their_weights() -> None:
    def curve(recipe: str, height: float, shift: float) -> list[Result]:
        """Quality grows by .05 with each doubling of the cost."""
        costs = (2.0 * shift, 4.0 * shift, 1.0 * shift)
        return [
            result(name, height + 0.05 * math.log2(cost), Point("none", 0.0, cost, 100, 10.0))
            for name, cost in zip(at_weights(recipe), costs, strict=True)
        ]

    plain = curve("tiny-stage-1", 0.5, 1.0)
    for others, verdict in (
        (curve("tiny-idf", 0.5, 2.0), False),  # better at each weight, and along the same curve
        (curve("tiny-idf", 0.52, 0.5), True),  # worse at each weight, and above it
        (curve("tiny-idf", 0.6, 16.0), None),  # costs nowhere the same
        ([*curve("tiny-idf", 0.52, 0.5), Result("tiny-idf", 1, {}, failure="it collapsed")], None),
    ):
        assert verdicts("3", [*plain, *others]) == [verdict]


def test_results_are_read_as_they_were_written() -> None:
    found = measured(0.6, Point("none", 0.6, 4.0, 1, 1.0), Point(MAX_RATIO, 0.4, 1.0, 1, 1.0))
    assert Measured.from_dict(found.to_dict()) == found


def test_forgetting() -> None:
    def found(name: str, *ndcg: float) -> Result:
        return Result(name, 0, {place: measured(value) for place, value in zip(ASIDE, ndcg, strict=True)})

    results = [found("tiny", 0.5, 0.9), found("tiny-stage-1", 0.45, 0.91), found("tiny-kept", 0.495, 0.7)]
    assert verdicts("7", results) == [False, True, True, False] + [None] * 4
    assert verdicts("7", results[:1]) == [None] * 8


def test_auto_is_compared_with_quick_and_with_the_targets() -> None:
    def found(variant: str, ndcg: float, collection: str, cost: float = 4.0) -> Result:
        points = (Point(rule, ndcg, cost, 1, 30 * cost) for rule in ("none", BUDGET))
        return result(variant, ndcg, *points, collection=collection)

    references = [
        Result(name, 0, {place: measured(value) for place, value in zip(DEV, values, strict=True)})
        for name, values in ((BM25, (0.5, 0.53, 0.47)), (DENSE, (0.53, 0.7, 0.2)))
    ]
    trained = [found(f"quick-{name}", 0.55, name) for name in DEV]
    trained += [found("auto-medquad-liveqa", 0.61, MEDQUAD), found("auto-faq-en", 0.65, FAQ_ENGLISH, 6.0)]
    trained += [found("auto-faq-sv", 0.5, FAQ_SWEDISH), found("aligned", 0.5, FAQ_SWEDISH)]
    trained += [found("titled", 0.61, MEDQUAD), found("minilm-dense", 0.65, FAQ_ENGLISH)]
    found_claims = claims("8", [*references, *trained])
    assert all(claim.holds is not None for claim in found_claims)
    assert [claim.text for claim in found_claims if not claim.holds] == [
        "auto above quick on faq-sv, significantly",
        "auto-faq-en: at 150 tokens a document",
        "auto-faq-en: and FLOPS 5",
    ]


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
        "quick-faq-en": [],
        "quick-inference-free": [],
        BM25: [result(BM25, 0.45)],
        DENSE: [],
    }
    table = lines(ROWS["4"], results)
    assert [line[2:5] for line in table] == [["0.450", "0.000", "1"], ["0.500", "0.100", "3"]]
    assert "BERT-tiny, stage 1" in markdown({"4": ROWS["4"]}, results, {"4": ROWS["4"].claims(results)})
    assert math.isclose(spread([0.4, 0.5, 0.6]), 0.1)


def test_rows_name_variants_that_there_are() -> None:
    assert {name for row in ROWS.values() for name in row.variants} == set(VARIANTS)
    for row in ROWS.values():
        assert any(set(row.collections) & set(VARIANTS[name].collections) for name in row.variants)


def test_every_training_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each scale, and the three of a curve differ in their weights alone."""
    pairs = [{"query": f"question {n}", "pos": [f"answer {n}"]} for n in range(300)]
    with lzma.open(tmp_path / "medquad-pairs.jsonl.xz", "wt") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    chosen = SimpleNamespace(yaml="name: auto\nencoder: {name: some/encoder}\ndata: {train: pairs.jsonl}\n")
    monkeypatch.setattr("benchmarks.quality.variants.first_layers", lambda *_: tmp_path)
    monkeypatch.setattr("benchmarks.quality.variants.choose", lambda *_, **__: chosen)
    for scale in SCALES.values():
        work = Workspace(tmp_path, tmp_path / scale.name)
        documents = (Document("d", "text", "title"),)
        Collection({"q": "asked"}, {"q": {"d": 1}}, documents).write(work.work / "collections" / MEDQUAD)
        made = {
            name: load_recipe({"name": name, **variant.recipe(work, scale)})
            for name, variant in VARIANTS.items()
            if variant.recipe is not None
        }
        lighter, heavier = (made[name] for name in at_weights("tiny-idf")[1:])
        for side in ("documents", "queries"):
            light, heavy = (getattr(one.sparsity, side).weight for one in (lighter, heavier))
            assert heavy == pytest.approx(9 * light)
        same = [one.model_dump(exclude={"name", "sparsity"}) for one in (lighter, heavier, made["tiny-idf"])]
        assert same[0] == same[1] == same[2]
