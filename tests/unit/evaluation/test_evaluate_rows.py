"""Rows of an evaluation: encoders, BM25, dense models; significance; pruning levels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from small_collection import SmallCollection, WordEncoder, blocks_of, exact_run

from oskit.archive.token_weights import Prune
from oskit.errors import DataError, EncoderError, EncoderNotFoundError, UsageError
from oskit.evaluation.offline.bm25 import Bm25Settings
from oskit.evaluation.offline.dense import DenseModel, rank_dense
from oskit.evaluation.offline.evaluate import evaluate
from oskit.evaluation.offline.metrics import quality
from oskit.evaluation.offline.pruning_levels import PrunedDocuments, parse_levels, rank_pruned
from oskit.evaluation.offline.result import EvaluationReport
from oskit.evaluation.reports.evaluation import evaluation_page, several_dict, write_evaluation
from oskit.evaluation.reports.page import render
from oskit.evaluation.reports.terminal import print_evaluation
from tests.unit.training.teacher_models_tiny import build_dense

WORDS = ["cat", "dog", "cow", "eel"]


class Axes:
    """A dense model: the first word decides the direction, and ``no`` turns it around."""

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), 4), dtype=np.float32)
        for row, text in enumerate(texts):
            word, _, weight = text.partition(" ")[0].partition(":")
            if word:
                rows[row, WORDS.index(word)] = float(weight or 1)
        return rows

    embed_documents = embed_queries


@pytest.fixture
def small() -> SmallCollection:
    found = SmallCollection(
        {"d1": "cat:2 dog:0.25", "d2": "dog:2 cat:0.5", "d3": "cow:1 cat:0.25", "d4": "eel:-1"},
        {"q1": "cat", "q2": "dog", "q3": "cow cat:2"},
        {"q1": {"d3": 1}, "q2": {"d2": 1}, "q3": {"d3": 1}, "q4": {"d1": 0}},
    )
    found.name, found.split = "small", "test"  # type: ignore[attr-defined]
    return found


def report_of(small: SmallCollection, **options: object) -> EvaluationReport:
    return evaluate(
        {"words": lambda: WordEncoder(WORDS)},  # type: ignore[dict-item, arg-type, return-value]
        small,  # type: ignore[arg-type]
        bm25=Bm25Settings(),
        dense={"axes": Axes},
        **{"k": 10, "resamples": 200, **options},  # type: ignore[arg-type]
    )


def test_rows_and_their_costs(small: SmallCollection) -> None:
    report = report_of(small)
    assert [(row.name, row.kind) for row in report.rows] == [
        ("words", "sparse"),
        ("BM25", "bm25"),
        ("axes", "dense"),
    ]
    sparse, lexical, dense = report.rows
    assert sparse.sparsity is not None
    assert sparse.index_bytes == 8 * sparse.sparsity.postings == 8 * 6
    assert lexical.sparsity is not None
    assert lexical.index_bytes == 8 * lexical.sparsity.postings
    assert (dense.sparsity, dense.flops, dense.index_bytes) == (None, 4, 4 * 4 * 4)
    assert report.collection == {"name": "small", "split": "test", "documents": 4, "queries": 3}
    assert all(not row.significance and not row.pruning for row in report.rows)


def test_dense_ranking_has_every_document(small: SmallCollection) -> None:
    found = rank_dense(Axes(), small, k=10)
    assert found.run["q1"] == {"d1": 2.0, "d2": 0.0, "d3": 0.0, "d4": 0.0}
    assert list(rank_dense(Axes(), small, k=2).run["q2"]) == ["d2", "d1"]
    assert (found.documents, found.dimensions) == (4, 4)


def test_baseline_is_compared_with_every_other_row(small: SmallCollection) -> None:
    report = report_of(small, baseline="bm25")
    assert report.baseline == "BM25"
    assert report.row("BM25").significance == []
    for name in ("words", "axes"):
        row = report.row(name)
        assert [item.measure for item in row.significance] == list(row.figures.quality)
        for item in row.significance:
            gain = row.figures.quality[item.measure] - report.row("BM25").figures.quality[item.measure]
            assert item.difference == pytest.approx(gain)


def test_pruning_levels_are_what_pruned_documents_give(small: SmallCollection) -> None:
    rules = parse_levels("0.2,top_k:1")
    encoder = WordEncoder(WORDS)
    with blocks_of(3):
        whole, pruned = rank_pruned(encoder, small, rules, k=10)  # type: ignore[arg-type]
    assert whole.run == exact_run(encoder, small, k=10)  # type: ignore[arg-type]
    assert list(pruned) == ["max_ratio:0.2", "top_k:1"]
    for rule, (run, cost) in pruned.items():
        other = PrunedDocuments(encoder, rule)  # type: ignore[arg-type]
        assert run == exact_run(other, small, k=10)
        assert cost.postings == other.document_matrix(list(small.texts.values())).nnz
    report = report_of(small, prune_levels=rules)
    points = report.row("words").pruning
    assert [point.rule for point in points] == ["none", "max_ratio:0.2", "top_k:1"]
    assert points[0].quality == report.row("words").figures.quality
    assert [point.postings_saved for point in points] == pytest.approx([0, 1 / 6, 0.5])
    full, last = (quality(run, small.qrels).mean["nDCG@10"] for run in (whole.run, pruned["top_k:1"][0]))
    assert points[2].quality_change == pytest.approx(last / full - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"baseline": "other"}, "no row is called 'other'"), ({"dense": {"words": Axes}}, "two rows")],
)
def test_what_cannot_be_compared_is_told_first(
    small: SmallCollection, options: dict[str, object], message: str
) -> None:
    def never() -> WordEncoder:
        raise AssertionError("it was opened")

    with pytest.raises(UsageError, match=message):
        evaluate({"words": never}, small, **options)  # type: ignore[dict-item, arg-type]
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate({}, small)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "a", "2", "top:3", ","])
def test_levels_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError):
        parse_levels(text)


def test_levels_are_ratios_or_rules() -> None:
    assert parse_levels("0.1, top_k:100") == [Prune("max_ratio", 0.1), Prune("top_k", 100)]


def test_page_and_terminal_show_all_tables(small: SmallCollection, tmp_path: Path) -> None:
    report = report_of(small, baseline="words", prune_levels=parse_levels("0.2"))
    html = render(evaluation_page(report))
    console = Console(file=io.StringIO(), width=200)
    print_evaluation(console, report)
    for text in (html, console.file.getvalue()):  # type: ignore[attr-defined]
        for expected in ("words", "BM25", "axes", "95 % interval", "max_ratio:0.2", "postings saved"):
            assert expected in text
    assert html.count("<svg") == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_evaluation(report, tmp_path / "file")


def test_means_over_collections(small: SmallCollection) -> None:
    reports = [report_of(small), report_of(small)]
    reports[1].row("words").figures.quality["nDCG@10"] = 0.0
    found = several_dict(reports)
    half = reports[0].row("words").figures.quality["nDCG@10"] / 2
    assert found["means"]["words"]["nDCG@10"] == pytest.approx(half)
    assert len(found["evaluations"]) == 2


def test_dense_model_is_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = build_dense(tmp_path / "dense")
    texts = ["a long bridge", "water"]
    reference = SentenceTransformer(str(folder), device="cpu")
    model = DenseModel(str(folder), query_prompt="what: ")
    expected = reference.similarity(
        reference.encode([f"what: {text}" for text in texts]), reference.encode(texts)
    )
    found = model.embed_queries(texts) @ model.embed_documents(texts).T
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_dense_model_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(tmp_path / "nowhere"), "nobody/nothing"):
        with pytest.raises(EncoderNotFoundError, match="no file or folder"):
            DenseModel(name)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        DenseModel(str(tmp_path))
