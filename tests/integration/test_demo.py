"""The demo, the example and the commands of the proof, with a trained encoder on a real OpenSearch."""

from __future__ import annotations

import importlib.util
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from opensearchpy import OpenSearch

from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings
from oskit.cluster.index.mapping import delete_index
from oskit.cluster.models.registry import list_models
from oskit.cluster.models.retire import delete_model
from oskit.data.collection import Collection
from oskit.demo import cluster_job, run
from oskit.demo.data import demo_collection, demo_encoder
from oskit.demo.export import DemoArchives, export_demo
from oskit.demo.result import DemoReport
from oskit.demo.run import DemoOptions, run_demo
from oskit.demo.steps import Steps
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import UsageError

pytestmark = pytest.mark.integration

QUERIES = 40
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small() -> Collection:
    """The first questions of the demo's collection and their answers."""
    whole = demo_collection()
    queries = dict(list(whole.queries.items())[:QUERIES])
    qrels = {query: whole.qrels[query] for query in queries}
    wanted = {document for judged in qrels.values() for document in judged}
    corpus = tuple(document for document in whole.documents() if document.id in wanted)
    return Collection(queries=queries, qrels=qrels, corpus=corpus, name="faq-head")


@pytest.fixture(scope="module")
def archives(small: Collection, tmp_path_factory: pytest.TempPathFactory) -> DemoArchives:
    """The demo's archives, exported once."""
    encoder = NeuralSparseEncoder.from_pretrained(demo_encoder())
    report = DemoReport("", {}, {}, {})
    steps = Steps(lambda _: None)
    return export_demo(encoder, small, tmp_path_factory.mktemp("archives"), ("onnx",), report, steps)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, small: Collection, archives: DemoArchives) -> None:
    """A demo of the small collection that does not export again."""

    def exported(encoder, collection, folder, formats, report, steps):  # the signature of export_demo
        return archives

    monkeypatch.setattr(run, "demo_collection", lambda: small)
    monkeypatch.setattr(run, "export_demo", exported)


def _left_behind(client: OpenSearch) -> list[str]:
    indexes = [item["index"] for item in client.cat.indices(params={"format": "json"})]
    models = [model.name for model in list_models(client)]
    return [name for name in indexes + models if name.startswith("oskit-demo")]


def test_the_demo_proves_and_reports_and_leaves_nothing(
    client: OpenSearch,
    cluster_url: str,
    small: Collection,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "demo_collection", lambda: small)
    arguments = ["demo", "--url", cluster_url, "--format", "onnx", "-o", str(tmp_path), "--configure-cluster"]
    code = main([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    data = json.loads(captured.out)
    assert data == json.loads((tmp_path / "demo.json").read_text())
    assert data["schema"] == "oskit.demo/1"
    assert data["passed"] is True
    assert data["load"]["tier"] == "local"
    assert [archive["model_format"] for archive in data["archives"] if archive["kind"] == "encoder"] == [
        "ONNX"
    ]
    assert all(archive["parity_max_difference"] <= 1e-4 for archive in data["archives"])
    assert all(archive["parity_texts"] >= 200 for archive in data["archives"])
    assert {model["state"] for model in data["models"]} == {"DEPLOYED"}
    assert {model["function_name"] for model in data["models"]} == {"SPARSE_ENCODING", "SPARSE_TOKENIZE"}
    assert len(data["indexes"]) == 5
    for index in data["indexes"]:
        proof = index["verification"]
        assert (index["ingest"]["indexed"], index["ingest"]["refused"]) == (QUERIES, 0)
        assert proof["comparison"]["hits"] > 0
        assert len(proof["examples"]) == 3
        assert all(hit["matched"] for example in proof["examples"] for hit in example["hits"])
        cluster, exact = (run["quality"]["nDCG@10"] for run in proof["runs"][:2])
        assert cluster == pytest.approx(exact, abs=0.02)
        assert cluster > 0.6
    assert {index["verification"]["index"]["kind"] for index in data["indexes"]} == {
        "rank_features", "sparse_vector",
    }  # fmt: skip
    assert {index["encode"] for index in data["indexes"]} == {"client", "cluster"}
    assert {run["name"] for run in data["indexes"][0]["verification"]["runs"]} == {
        "cluster", "exact", "two-phase", "BM25",
    }  # fmt: skip
    html = (tmp_path / "demo.html").read_text()
    assert "5 indexes agree with the exact scores" in html
    assert html.count("<svg") >= 4
    assert "1. Make a collection" in captured.err
    assert Collection.open(tmp_path / "collection").queries == small.queries
    assert _left_behind(client) == []


def test_an_interrupted_demo_leaves_nothing_on_a_cluster_of_yours(
    client: OpenSearch, cluster_url: str, quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[list[str]] = []

    def interrupted(*_args, **_kwargs):
        seen.append(_left_behind(client))
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster_job, "verify", interrupted)
    code = main(
        ["demo", "--url", cluster_url, "--format", "onnx", "-o", str(tmp_path), "--configure-cluster"]
    )
    assert code == 130
    assert len(seen[0]) == 3  # an index and two models were there when it was interrupted
    assert _left_behind(client) == []


def test_a_node_of_its_own_is_stopped_when_a_step_fails(
    quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    urls: list[str] = []

    def failing(job, *, configure):
        urls.append(str(job.report.url))
        with urllib.request.urlopen(urls[0], timeout=10) as answer:
            assert answer.status == 200
        raise UsageError("a step that fails")

    monkeypatch.setattr(cluster_job.ClusterJob, "deploy", failing)
    lines: list[str] = []
    with pytest.raises(UsageError, match="a step that fails"):
        run_demo(DemoOptions(tmp_path, formats=("onnx",)), lines.append)
    assert any("Start OpenSearch" in line for line in lines)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(urls[0], timeout=10)


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="--keep-node"):
        DemoOptions(Path("x"), connection=ConnectionSettings(), keep_node=True)


@pytest.fixture
def example() -> ModuleType:
    """``examples/main_job.py`` as a module."""
    specification = importlib.util.spec_from_file_location("main_job", ROOT / "examples" / "main_job.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _forget(client: OpenSearch, index: str) -> None:
    delete_index(client, index)
    for model in list_models(client):
        if model.name == index:
            delete_model(client, model.model_id, own=True)


def test_the_example_and_the_commands_of_the_proof(
    client: OpenSearch,
    cluster_url: str,
    small: Collection,
    example: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = "oskit-test-example"
    folder = small.write(tmp_path / "collection")
    archive = str(tmp_path / "archives")
    try:
        quality = example.main_job(str(demo_encoder()), small, tmp_path, cluster_url, index=index)
        assert quality > 0.6
        printed = capsys.readouterr().out
        assert "DEPLOYED" in printed
        assert f"ingested {QUERIES} documents" in printed
        verify = ["verify", str(folder), "--index", index, "--url", cluster_url, "--quiet"]

        def run_json(*arguments: str, code: int = 0) -> dict:
            assert main([*verify, *arguments, "--json"]) == code
            return json.loads(capsys.readouterr().out)

        _check_commands(run_json, index, archive, tmp_path)
        assert main(["evaluate", str(folder), archive, str(demo_encoder()), "--json", "-k", "100"]) == 0
        evaluated = json.loads(capsys.readouterr().out)["encoders"]
        by_archive, by_model = (encoder["quality"]["nDCG@10"] for encoder in evaluated)
        assert by_archive == pytest.approx(by_model) == pytest.approx(quality, abs=0.02)

        lost = next(iter(small.documents())).id
        client.delete(index=index, id=lost, params={"refresh": "true"})
        report = run_json("--archive", archive, "--report", str(tmp_path / "proof"), code=9)
        assert report["missing_documents"] == [lost]
        assert (tmp_path / "proof" / "verification.html").is_file()
    finally:
        _forget(client, index)


def _check_commands(run_json: Callable[..., dict], index: str, archive: str, folder: Path) -> None:
    by_tokens = run_json("--archive", archive, "--two-phase")
    assert by_tokens["passed"] is True
    assert by_tokens["search"]["by"] == "tokens"
    by_model = run_json("--archive", archive, "--by", "model")  # the model is found by its content
    assert by_model["passed"] is True
    assert by_model["search"]["model_id"]
    by_torch = run_json("--model-encoder", str(demo_encoder()), "--no-bm25")
    assert by_torch["passed"] is True
    assert by_torch["runs"][0]["quality"] == by_tokens["runs"][0]["quality"]
    # The analyzer's weights are its own, so its hits are not this encoder's.
    by_analyzer = run_json("--archive", archive, "--analyzer", "bert-uncased", code=9)
    assert by_analyzer["comparison"]["counts"]["score"] > 0
    assert by_analyzer["stored_vectors"]["wrong"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["verify", "nowhere", "--index", "x", "--archive", "y"], 3, "nowhere is not a folder"),
        (["verify", "{faq}", "--index", "x"], 2, "--archive or --model-encoder"),
        (["verify", "{faq}", "--index", "x", "--archive", "nowhere"], 6, "no archive at nowhere"),
        (["verify", "{faq}", "--index", "x", "--archive", "y", "--split", "dev"], 3, "no judgements"),
        (["evaluate", "{faq}", "--report"], 2, "--report"),
    ],
)
def test_bad_input_is_one_line(
    small: Collection,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    folder = small.write(tmp_path / "faq")
    assert main([argument.format(faq=folder) for argument in arguments]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
