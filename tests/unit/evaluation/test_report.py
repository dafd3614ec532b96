"""The report: verdict, JSON, and a page that needs nothing else."""

from __future__ import annotations

import io
import json
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console
from small_collection import SmallCollection, WordEncoder

from oskit import extras
from oskit.errors import DataError, MissingDependencyError, VerificationError
from oskit.evaluation.live.comparison import compare
from oskit.evaluation.live.examples import build_examples, choose_examples, contributions, shorten
from oskit.evaluation.live.result import StoredVectors, VerificationReport
from oskit.evaluation.offline.evaluate import evaluate
from oskit.evaluation.offline.result import RunFigures
from oskit.evaluation.reports.evaluation import evaluation_page
from oskit.evaluation.reports.page import render
from oskit.evaluation.reports.terminal import print_evaluation, print_examples, print_verification
from oskit.evaluation.reports.verification import percent, verification_page, write_verification


class NamedEncoder(WordEncoder):
    """With weights by name, for the examples."""

    def document_weights(self, texts, *, key="token"):
        """Weights by word."""
        rows = self.document_matrix(texts).toarray()
        return [{w: float(x) for w, x in zip(self.vocabulary.words, row, strict=True) if x} for row in rows]

    query_weights = document_weights


@pytest.fixture
def named() -> NamedEncoder:
    """Four words."""
    return NamedEncoder(["cat", "dog", "cow", "eel"])


@pytest.fixture
def make(named, collection):
    """Makes a report of what a cluster returned."""

    def report(cluster=None, failures=(), **index):
        if cluster is None:
            cluster = {"q1": {"d1": 3.5, "d4": 3.5, "d2": 2.0, "d3": 0.5}, "q2": {}, "q3": {"d3": 3.0}}
        found = compare(cluster, named, collection, k=10)
        chosen = choose_examples(cluster, 2)
        passages = {name: [text] for name, text in collection.texts.items()} | {"d1": ["cat:1.5 dog:0.5"]}
        examples = build_examples(chosen, cluster, collection.queries, collection.qrels, passages, named)
        runs = [
            RunFigures.measure(
                "cluster",
                cluster,
                collection.qrels,
                k=10,
                exact=found.exact,
                took=[1.0, 2.0],
                wall=[2.0, 3.0],
            ),
            RunFigures.measure("exact", found.exact, collection.qrels, k=10),
            RunFigures.measure("BM25", cluster, collection.qrels, k=10, took=[1.0], wall=[2.0]),
        ]
        return VerificationReport(
            created="2026-01-01T00:00:00Z",
            cluster={"distribution": "opensearch", "version": "3.6.0"},
            index={
                "name": "<script>alert(1)</script>", "kind": "rank_features", "search": "exact",
                "documents": 5, "bytes": 1000, **index,
            },
            collection={"name": "small", "split": "test", "documents": 5, "queries": 3},
            encoder={"name": "words", "architecture": "symmetric", "sha256": None},
            search={"by": "tokens", "model_id": None, "k": 10},
            runs=runs,
            comparison=found,
            missing_documents=[],
            vectors=StoredVectors(5, []),
            examples=examples,
            failures=list(failures),
            warnings=[],
            took=[1.0, 2.0],
            wall=[2.0, 3.0],
        )  # fmt: skip

    return report


def test_json_has_a_schema_and_every_figure(make):
    data = json.loads(json.dumps(make().to_dict()))
    assert data["schema"] == "oskit.verification/1"
    assert data["passed"] is True
    cluster = data["runs"][0]
    assert cluster["quality"] == data["runs"][1]["quality"]
    assert cluster["overlap_at_10"] == cluster["recall_of_exact"] == 1.0
    assert cluster["wall"]["p50"] == 2.5
    assert data["comparison"]["counts"] == {"score": 0, "missing": 0, "unknown": 0, "rank": 0}
    assert data["comparison"]["sparsity"]["postings"] == 7


def test_the_page_is_self_contained_and_escaped(make):
    html = render(verification_page(make()))
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", html)
    assert not re.search(r"@import|url\((?!#)", html)
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(svgs) == 4
    ids = [name for svg in svgs for name in re.findall(r' id="([^"]+)"', svg) if name.startswith(("p", "m"))]
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert "var(--ink-2)" in svg
        assert "#010203" not in svg
    clip_paths = [name for name in ids if not name.startswith(("patch", "matplotlib"))]
    assert len(clip_paths) == len(set(clip_paths))


def test_a_failure_is_raised_with_its_reason_and_shown(make):
    report = make(failures=["the index lacks document 'd9' of the corpus", "more"])
    with pytest.raises(
        VerificationError, match=r"lacks document 'd9' of the corpus \(and 1 more\)"
    ) as caught:
        report.raise_for_disagreement()
    assert caught.value.exit_code == 9
    html = render(verification_page(report))
    assert "The cluster disagrees" in html
    assert "lacks document &#39;d9&#39;" in html
    make().raise_for_disagreement()


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict", "words"),
    [
        (0.5, 0.8, "worse", "BM25 in this index is better than the encoder by 0.200 nDCG@10 (p < 0.001,"),
        (0.8, 0.5, "better", "encoder is better than BM25 in this index by 0.400 nDCG@10 (p < 0.001,"),
        (0.5, 0.6, "no difference", "no difference between the encoder and BM25 in this index: "),
    ],
)
def test_point_15_quality_is_a_second_verdict(make, ours, theirs, verdict, words):
    report = make()
    cluster, bm25 = (
        RunFigures(name, {}, {f"q{n}": {"nDCG@10": value + sign * (n % 2) / 10} for n in range(40)})
        for name, value, sign in (("cluster", ours, 1), ("BM25", theirs, -1))
    )
    report.against_bm25 = cluster.against(bm25)
    assert report.passed, "whether the cluster is right has nothing to do with it"
    data = report.to_dict()["quality"]
    assert (data["verdict"], data["queries"], data["baseline"]) == (verdict, 40, "BM25")
    console = Console(file=io.StringIO(), width=160)
    print_verification(console, report)
    for text in (data["text"], console.file.getvalue(), render(verification_page(report))):
        assert words.replace("<", "&lt;") in text or words in text
    assert ('class="verdict warn"' in render(verification_page(report))) == (verdict == "worse")
    if verdict == "worse":
        with pytest.raises(VerificationError, match="BM25 in this index is better") as caught:
            report.raise_for_quality()
        assert caught.value.exit_code == 9
    else:
        report.raise_for_quality()
    report.raise_for_disagreement()


def test_point_15_without_bm25_quality_is_not_known(make):
    report = make()
    assert report.to_dict()["quality"] is None
    assert "Quality: " not in render(verification_page(report))
    with pytest.raises(VerificationError, match="not known"):
        report.raise_for_quality()


def test_what_an_approximate_search_skips_is_not_wrong(make):
    cluster = {"q1": {"d1": 3.5, "d4": 3.5}, "q2": {}, "q3": {}}
    assert make(cluster).wrong_hits == 3
    approximate = make(cluster, search="approximate")
    assert approximate.wrong_hits == 0
    assert "skipped by the approximate search" in render(verification_page(approximate))


def test_files_are_written_and_a_bad_folder_is_one_line(make, tmp_path):
    paths = write_verification(make(), tmp_path / "a" / "b")
    assert [path.name for path in paths] == ["verification.json", "verification.html"]
    assert json.loads(paths[0].read_text())["passed"] is True
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_verification(make(), tmp_path / "file")


def test_without_matplotlib_the_json_is_there(make, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "is_installed", lambda name: name != "matplotlib")
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        write_verification(make(), tmp_path)
    assert json.loads((tmp_path / "verification.json").read_text())["passed"] is True


def test_the_terminal_shows_the_same(make):
    console = Console(file=io.StringIO(), width=160)
    report = make({"q1": {"d1": 9.5}, "q2": {}, "q3": {"d3": 3.0}}, failures=["[bold]wrong[/bold]"])
    print_verification(console, report)
    print_examples(console, report.examples)
    text = console.file.getvalue()
    for expected in ("nDCG@10", "BM25", "Wrong: [bold]wrong[/bold]", "9.5000", "<script>alert(1)</script>"):
        assert expected in text


def test_examples_tell_why_a_document_matches(named, collection):
    run = {"q1": {"d1": 3.5, "d3": 0.5}, "q2": {}}
    assert choose_examples(run, 3) == ["q1"]
    passages = {name: ["dog:0.1", text] for name, text in collection.texts.items()}  # the best of two is told
    (example,) = build_examples(["q1"], run, collection.queries, {"q1": {"d1": 1}}, passages, named)
    assert example.tokens == [("cat", 2.0), ("dog", 1.0)]
    assert [hit.matched for hit in example.hits] == [[("cat", 3.0), ("dog", 0.5)], [("cat", 0.5)]]
    assert [sum(share for _, share in hit.matched) for hit in example.hits] == [3.5, 0.5]
    assert [hit.relevant for hit in example.hits] == [True, False]


def test_examples_are_spread_over_the_queries():
    run = {f"q{i}": {"d": 1.0} for i in range(100)}
    assert choose_examples(run, 3) == ["q16", "q50", "q83"]
    assert choose_examples({}, 3) == []


def test_contributions_and_shortening():
    assert contributions({"a": 2.0, "b": 1.0}, {"b": 5.0, "c": 9.0, "a": 1.0}) == [("b", 5.0), ("a", 2.0)]
    assert shorten("one  two\nthree", 100) == "one two three"
    assert shorten("one two three", 9) == "one two …"


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100 %"), (0.99999, "> 99.9 %"), (0.5, "50 %"), (0.123, "12.3 %"), (None, "-")]
)
def test_a_hundred_percent_is_only_shown_if_it_is(value, text):
    assert percent(value) == text


def test_encoders_beside_each_other(named):
    collection = SmallCollection({"d1": "cat", "d2": "dog"}, {"q1": "cat:2 dog"}, {"q1": {"d1": 1}})
    collection.name, collection.split = "small", "test"
    other = WordEncoder(["dog", "cat"])
    other.document_matrix = lambda texts, **_: other.query_matrix([t.replace("cat", "dog") for t in texts])
    report = evaluate({"good": lambda: named, "bad": lambda: other}, collection, k=10)
    assert [run.quality["MRR@10"] for run in (row.figures for row in report.rows)] == [1.0, 1.0]
    assert report.to_dict()["schema"] == "oskit.evaluation/1"
    assert report.to_dict()["encoders"][0]["sparsity"]["query_active"] == 2.0
    html = render(evaluation_page(report))
    console = Console(file=io.StringIO(), width=160)
    print_evaluation(console, report)
    for text in (html, console.file.getvalue()):
        assert "good" in text
        assert "bad" in text
        assert "FLOPS" in text
