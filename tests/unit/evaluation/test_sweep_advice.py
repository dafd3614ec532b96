"""Recall, the front and the advice of a sweep, by values worked out by hand."""

from __future__ import annotations

import pytest

from oskit.cluster.index.mapping import IndexInfo
from oskit.errors import UsageError
from oskit.evaluation.live.rounding import Storage
from oskit.evaluation.live.stored_ranking import rank_vectors
from oskit.evaluation.live.sweep_result import SettingFigures, SweepReport, front, recall
from oskit.evaluation.live.sweep_settings import Grid, Setting


def row(ms: float, at_10: float | None, **setting) -> SettingFigures:
    clock = {"p50": ms, "p99": ms, "mean": ms, "count": 1}
    return SettingFigures(Setting(**setting), {10: at_10}, None, 1.0, clock, clock, clock)


def report(*rows: SettingFigures, least: float) -> SweepReport:
    return SweepReport("", {}, {}, {}, {}, list(rows), least)


def test_recall_counts_documents_of_equal_scores_for_each_other():
    exact = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 2.0, "e": 1.0}
    assert recall(exact, ["a", "b", "c"], 3) == recall(exact, ["a", "b", "d"], 3) == 1.0
    assert recall(exact, ["d", "c", "a"], 2) == 0.0
    assert recall(exact, ["d", "c", "a"], 3) == 1.0
    assert recall(exact, ["a", "e", "x"], 3) == pytest.approx(1 / 3)
    assert recall(exact, ["a"], 10) == pytest.approx(1 / 5)
    assert recall(exact, [], 10) == 0.0
    assert recall({}, ["x"], 10) is None


def test_the_front_and_the_fastest_that_finds_enough():
    slow, middle, beaten, quick, tie = (
        row(9, 1.0), row(5, 0.96, top_n=20), row(6, 0.95, top_n=15), row(2, 0.7, top_n=5), row(2, 0.6, k=10),
    )  # fmt: skip
    unknown = row(1, None, k=5)
    rows = [slow, middle, beaten, quick, tie, unknown]
    assert front(rows) == [unknown, quick, middle, slow]
    assert report(*rows, least=0.95).best is middle
    assert report(*rows, least=0.97).best is slow
    assert report(*rows, least=0.5).best is quick
    said = report(quick, beaten, least=0.99)
    assert said.best is None and "the most is 0.950, by 'top_n 15' (6.0 ms)" in said.advice
    said = report(slow, middle, least=0.95)
    assert "take 'top_n 20': 5.0 ms" in said.advice and "'as it is' takes 9.0 ms" in said.advice
    advice = said.to_dict()["advice"]
    assert advice["request"] == {"method_parameters": {"top_n": 20}}


def test_exact_scores_are_of_the_weights_that_an_index_keeps():
    # 1 + 2^-9 is cut to 1, so that both documents are equal and keep their order.
    stored = [("a", {"x": 1.0, "z": 9.0}), ("b", {"x": 1 + 2**-9, "y": 0.5}), ("c", {"z": 1.0}), ("d", {})]
    queries = {"q": {"x": 2.0}, "r": {"y": 1.0, "x": 1.0}}
    ranking = rank_vectors(stored, queries, k=5)
    assert (ranking.documents, ranking.filled, ranking.rounded) == (4, 3, None)
    assert list(ranking.run["q"].items()) == [("a", 2.0), ("b", 2.0)]
    assert list(ranking.run["r"].items()) == [("b", 1.5), ("a", 1.0)]
    # Bytes of 255 for 0.6375: weights are clipped to it, in steps of 0.0025; queries in steps of 1.
    bytes_ = Storage(features=False, bytes=True, ceiling_ingest=0.6375, ceiling_search=255.0)
    rounded = rank_vectors(stored, queries, k=5, storage=bytes_).rounded
    assert rounded is not None and list(rounded["r"].items()) == [
        ("b", pytest.approx(1.1375)), ("a", pytest.approx(0.6375)),
    ]  # fmt: skip


def test_settings_fit_the_kind_and_how_it_is_searched():
    grid = Grid(top_n=[5, 10], k=[10], heap_factor=[1.0, 2.0], prune=["top_k:3"])
    assert len(grid.settings("sparse_vector", approximate=True)) == 8
    exact = grid.settings("sparse_vector", approximate=False)
    assert [setting.name for setting in exact] == ["as it is", "pruned top_k:3"]
    with pytest.raises(UsageError, match=r"top_n, k, heap_factor: only for sparse_vector"):
        grid.settings("rank_features", approximate=False)
    with pytest.raises(UsageError, match="prune_ratio: only for rank_features"):
        Grid(prune_ratio=[0.4]).settings("sparse_vector", approximate=True)
    with pytest.raises(UsageError, match="too many"):
        Grid(top_n=range(1, 300)).settings("sparse_vector", approximate=True)
    with pytest.raises(UsageError, match="pruning rule"):
        Grid(prune=["most"]).settings("rank_features", approximate=False)
    one, *others = Grid(prune=[], expansion_rate=[20]).settings("rank_features", approximate=False)
    assert one == Setting() and all(setting.phases for setting in others) and len(others) == 3
    deep = others[0]
    assert deep.finds(500) and not deep.finds(501)  # 20 times 501 are more than the window of 10,000
    body = deep.body(IndexInfo("i", "rank_features", "token"), {"fox": 1.0}, 10)
    assert body["query"] == {"neural_sparse": {"embedding": {"query_tokens": {"fox": 1.0}}}}
    (processor,) = body["search_pipeline"]["request_processors"]
    assert processor["neural_sparse_two_phase_processor"]["two_phase_parameter"]["expansion_rate"] == 20
