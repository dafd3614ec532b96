"""A sweep on a real index: exact searches find all, approximate ones do not, and nothing is left behind."""

from __future__ import annotations

import json
import uuid

import pytest
from opensearchpy import OpenSearch

from benchmarks.sweep import SpelledEncoder, load
from oskit.cli.main import main
from oskit.cluster.client.calls import changes
from oskit.cluster.index.mapping import delete_index
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.errors import SearchError
from oskit.evaluation.live.sweep import sweep
from oskit.evaluation.live.sweep_settings import Grid
from oskit.evaluation.reports.sweep import write_sweep

pytestmark = pytest.mark.integration

SMALL = {"queries": 12, "rounds": 1}


@pytest.fixture
def made(client: OpenSearch):
    """Makes an index of 300 documents, and its queries."""
    names = []

    def make(kind: str, threshold: int = 1_000_000) -> tuple[str, Collection]:
        names.append(f"oskit-test-sweep-{uuid.uuid4().hex[:8]}")
        return names[-1], load(client, names[-1], kind, 300, threshold)

    yield make
    for name in names:
        delete_index(client, name)


def recalls(report, name: str) -> dict[int, float | None]:
    return next(row.recall for row in report.rows if row.name == name)


def pipelines(client: OpenSearch) -> dict:
    try:
        return client.transport.perform_request("GET", "/_search/pipeline")
    except Exception:  # there is none
        return {}


def test_rank_features_through_an_alias_beside_a_pipeline_of_others(
    client, made, tmp_path, cluster_url, capsys
):
    name, collection = made("rank_features")
    alias, pipeline = f"{name}-alias", f"{name}-pipeline"
    client.indices.put_alias(index=name, name=alias)
    theirs = {"request_processors": [{"neural_sparse_two_phase_processor": {"enabled": True}}]}
    client.http.put(f"/_search/pipeline/{pipeline}", body=theirs)
    try:
        client.indices.put_settings(index=name, body={"index.search.default_pipeline": pipeline})
        before = pipelines(client)
        with changes() as made_calls:
            report = sweep(client, alias, collection, SpelledEncoder(), **SMALL)
        assert not made_calls.calls and pipelines(client) == before
        client.indices.put_settings(index=name, body={"index.search.default_pipeline": None})
    finally:
        client.http.delete(f"/_search/pipeline/{pipeline}")
    assert recalls(report, "as it is") == {10: 1.0, 100: 1.0, 1000: 1.0}
    assert report.rows[0].ndcg == pytest.approx(1.0, abs=0.2)
    assert 0.2 < recalls(report, "pruned top_k:5")[10] < 1
    assert recalls(report, f"pipeline {pipeline}")[10] is not None
    assert recalls(report, "two phases, ratio 0.2, rate 20")[1000] is None, "the window is too small"
    row = report.rows[0]
    assert row.wall["count"] == row.took["count"] == row.warm_up["count"] == 12
    saved = json.loads(write_sweep(report, tmp_path)[0].read_text())
    assert saved["schema"] == "oskit.sweep/1" and len(saved["settings"]) == len(report.rows)
    assert (tmp_path / "sweep.html").read_text().count("<svg") == 1
    # By the command, whose queries and judgements are read from a folder; the weights are in the index.
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "0", "text": "x"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "fox"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n")
    command = ["sweep", alias, str(tmp_path), "--url", cluster_url]
    assert main([*command, "--top-n", "5", "--model", "none-such"]) == 2
    assert "only for sparse_vector" in capsys.readouterr().err
    assert main(command) == 7
    assert "which model encodes the queries" in capsys.readouterr().err


def test_sparse_vector_is_exact_below_its_threshold_and_approximate_above(client, made):
    name, collection = made("sparse_vector")
    report = sweep(client, name, collection, SpelledEncoder(), **SMALL)
    assert [row.name for row in report.rows] == ["as it is"]
    assert report.rows[0].recall == {10: 1.0, 100: 1.0, 1000: 1.0}
    assert (
        "searched exactly" in report.warnings[0]
        and "--approximate-threshold 300 or less" in report.warnings[0]
    )
    name, collection = made("sparse_vector", 50)
    grid = Grid(top_n=[1, 50], k=[10, 100], heap_factor=[1.0, 1e6])
    report = sweep(client, name, collection, SpelledEncoder(), grid=grid, **SMALL)
    assert len(report.rows) == 8 and not report.warnings
    least, most = (
        recalls(report, "top_n 1, k 10, heap_factor 1"), recalls(report, "top_n 50, k 100, heap_factor 1e+06")
    )  # fmt: skip
    assert most[10] > 0.95 > least[10] > 0  # weights are rounded to a byte
    assert (least[100], least[1000], most[1000]) == (None, None, None)
    # Against the encoder's own weights it is the same.
    hits = client.search(index=name, body={"size": 300})["hits"]["hits"]
    vectors = {hit["_id"]: hit["_source"]["embedding"] for hit in hits}
    spelled = {
        one: " ".join(f"{token}:{weight}" for token, weight in vectors[one].items()) for one in vectors
    }
    documents = tuple(Document(one, text) for one, text in spelled.items())
    corpus = Collection(collection.queries, collection.qrels, documents)
    again = sweep(client, name, corpus, SpelledEncoder(), grid=grid, exact="encoder", **SMALL)
    assert [row.recall for row in again.rows] == [row.recall for row in report.rows]


def test_an_interrupt_leaves_nothing_and_a_replaced_index_gives_no_figures(client, made):
    name, collection = made("rank_features")
    before = pipelines(client)

    def interrupt(what: str) -> None:
        if what.startswith("timing"):
            raise KeyboardInterrupt

    with changes() as calls, pytest.raises(KeyboardInterrupt):
        sweep(client, name, collection, SpelledEncoder(), on_step=interrupt, **SMALL)
    assert not calls.calls and pipelines(client) == before

    def replace(what: str) -> None:
        if what.startswith("warming"):
            load(client, name, "rank_features", 20)

    with pytest.raises(SearchError, match="deleted and made anew"):
        sweep(client, name, collection, SpelledEncoder(), on_step=replace, **SMALL)
