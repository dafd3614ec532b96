"""Models that serve: whoever takes one away is told who uses it, and nothing that encodes is taken away."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from archives import encoder_archive, graph
from incidents import Incident
from leftovers import orphaned_chunks
from opensearchpy import OpenSearch
from own_nodes import OwnNode, archive, client
from tiny_models import graph_that_keeps_words

from oskit.archive.archive import open_archive
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.pause import SETTING, local_models_paused, transient_settings
from oskit.cluster.models.predict import predict
from oskit.cluster.models.registry import ModelInfo, get_model, wait_until
from oskit.cluster.models.retire import delete_model, undeploy_model
from oskit.errors import ModelError, OskitError

__all__ = ["archive", "client"]


@pytest.fixture(scope="module")
def node() -> Iterator[OwnNode]:
    """One that a mistake may kill."""
    with OwnNode("in-use") as started:
        yield started


@pytest.fixture
def model(client: OpenSearch, archive: Path) -> Iterator[ModelInfo]:
    """A deployed ONNX encoder that nobody uses."""
    model_id = deploy_archive(client, open_archive(archive), configure_cluster=True).model_id
    found = get_model(client, model_id)
    assert found is not None and found.format == "ONNX"
    yield found
    if get_model(client, model_id):
        delete_model(client, model_id, own=True)


@contextmanager
def traffic(node: OwnNode, model: ModelInfo, loops: int = 3) -> Iterator[Counter[str]]:
    """Predictions in parallel, counted by what became of them."""
    told: Counter[str] = Counter()
    stop = threading.Event()

    def go_on() -> None:
        own = connect(ConnectionSettings(url=node.url, retry_for=0))
        while not stop.is_set():
            try:
                predict(own, model, ["how long does it take to get a building permit " * 20] * 8)
                told["answered"] += 1
            except OskitError as error:
                told[str(error)] += 1
                time.sleep(0.05)

    threads = [threading.Thread(target=go_on) for _ in range(loops)]
    for thread in threads:
        thread.start()
    try:
        while told.total() < loops:
            time.sleep(0.05)
        yield told
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def oskit(node: OwnNode, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "oskit", *args, "--url", node.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.incident(
    during="oskit undeploy, delete, deploy --replace",
    what="the model is encoding for others",
    then="refused with what it is doing, or waited for; the node lives and no request fails",
)
def test_an_onnx_model_that_encodes_stays(
    node: OwnNode,
    client: OpenSearch,
    model: ModelInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    incident: Incident,
) -> None:
    monkeypatch.setattr("oskit.cluster.models.deploy.DRAIN_S", 3.0)
    other = encoder_archive(tmp_path / f"{model.name}.zip", model=graph(seed=3))
    told: list[str] = []
    with traffic(node, model) as answers:
        for take_away in (undeploy_model, delete_model):
            with pytest.raises(ModelError, match=r"is encoding|answered requests.*--pause-models"):
                take_away(client, model.model_id)
            with pytest.raises(ModelError, match=r"kills the node.*--pause-models"):
                take_away(client, model.model_id, force=True, wait_s=3)
        new = deploy_archive(client, open_archive(other), replace=True, notify=told.append)
    delete_model(client, new.model_id, own=True)
    assert list(answers) == ["answered"]
    assert new.kept == (model.model_id,) and new.replaced == ()
    incident.said(told, f"{model.model_id}.*stays")
    kept = get_model(client, model.model_id)
    assert kept is not None and kept.is_deployed
    incident.orphans(left_behind(client))


@pytest.mark.incident(
    during="oskit undeploy --pause-models",
    what="the models are encoding, and two such commands run at once",
    then="both models leave memory, the node lives, and the setting is what it was",
)
def test_a_pause_lets_models_that_encode_go(
    node: OwnNode, client: OpenSearch, model: ModelInfo, tmp_path: Path, incident: Incident
) -> None:
    second = deploy_archive(
        client, open_archive(encoder_archive(tmp_path / "second.zip", model=graph(seed=5)))
    ).model_id
    other = get_model(client, second)
    assert other is not None
    with traffic(node, model, 2) as answers, traffic(node, other, 2):
        runs = [oskit(node, "undeploy", model_id, "--pause-models") for model_id in (model.model_id, second)]
        said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    incident.said([words[1] for words in said], "all local models.*\n(.*\n)*.*all local models")
    assert not [name for name in transient_settings(client) if name == SETTING or "oskit" in name]
    for model_id in (model.model_id, second):
        found = get_model(client, model_id)
        assert found is not None and found.state == "UNDEPLOYED"
    assert answers["answered"]
    delete_model(client, second, own=True)
    incident.orphans(left_behind(client))


@pytest.mark.incident(
    during="oskit delete --pause-models",
    what="it is interrupted, or somebody has switched local models off already",
    then="the setting is what it was before",
)
def test_a_pause_leaves_the_setting_as_it_was(
    client: OpenSearch, model: ModelInfo, incident: Incident
) -> None:
    client.cluster.put_settings(body={"transient": {SETTING: False}})
    with pytest.raises(OskitError) as told:
        delete_model(client, model.model_id, pause=True, wait_s=1)
    incident.said(told.value, "switched off already")
    assert transient_settings(client)[SETTING] == "false"
    for before in ("true", None):
        client.cluster.put_settings(body={"transient": {SETTING: before}})
        with pytest.raises(ModelError, match="is used by stored script"), stored_script(client, model):
            delete_model(client, model.model_id, pause=True)
        with pytest.raises(KeyboardInterrupt), local_models_paused(client, wait_s=1, notify=print):
            assert transient_settings(client)[SETTING] == "false"
            raise KeyboardInterrupt
        assert transient_settings(client).get(SETTING) == before
    incident.orphans(left_behind(client))


def left_behind(client: OpenSearch) -> set[str]:
    """Chunks without a model; searches see a deletion a second later."""
    wait_until(lambda: not orphaned_chunks(client), wait_s=5)
    return orphaned_chunks(client)


@contextmanager
def stored_script(client: OpenSearch, model: ModelInfo) -> Iterator[None]:
    neural = {"f": {"model_id": model.model_id, "query_text": "{{q}}"}}
    source = json.dumps({"query": {"neural_sparse": neural}})
    client.put_script(id="in-use", body={"script": {"lang": "mustache", "source": source}})
    try:
        yield
    finally:
        client.delete_script(id="in-use")


@pytest.mark.incident(
    during="oskit undeploy, delete, deploy --replace",
    what="something refers to the model: pipelines, indexes (closed, blocked), fields, templates, agents",
    then="refused with all that refer to it, before the first model is changed",
)
def test_whatever_refers_to_a_model_is_told(
    node: OwnNode, client: OpenSearch, model: ModelInfo, tmp_path: Path, incident: Incident
) -> None:
    model_id = model.model_id
    encode = {"sparse_encoding": {"model_id": model_id, "field_map": {"a": "b"}}}
    client.ingest.put_pipeline(id="inner", body={"processors": [encode]})
    client.ingest.put_pipeline(id="outer", body={"processors": [{"pipeline": {"name": "inner"}}]})
    enricher = {"neural_query_enricher": {"neural_field_default_id": {"f": model_id}}}
    client.transport.perform_request("PUT", "/_search/pipeline/asks", body={"request_processors": [enricher]})
    defaults = {"index.default_pipeline": "outer", "index.search.default_pipeline": "asks"}
    bodies: dict[str, dict[str, Any]] = {
        "u-pipelines": {"settings": defaults},
        "u-documents": {"mappings": {"_meta": {"oskit": {"model_id": model_id}}}},
        "u-client": {"mappings": {"_meta": {"oskit": {"encoder_sha256": model.sha256, "encode": "client"}}}},
        "u-tokenizer": {
            "mappings": {
                "_meta": {"oskit": {"encoder_sha256": model.sha256, "architecture": "inference-free"}}
            }
        },
        "u-field": {
            "mappings": {
                "properties": {"deep": {"properties": {"x": {"type": "semantic", "model_id": model_id}}}}
            }
        },
        "u-nothing": {"mappings": {"properties": {"model_id": {"type": "keyword"}}}},
    }
    for name, body in bodies.items():
        client.indices.create(index=name, body=body)
    client.indices.close(index="u-documents")
    client.indices.put_settings(index="u-documents", body={"index.blocks.metadata": True})
    client.cluster.put_component_template(
        name="u-part", body={"template": {"settings": {"index.default_pipeline": "inner"}}}
    )
    tool = {"type": "NeuralSparseSearchTool", "parameters": {"model_id": model_id, "index": "u"}}
    client.transport.perform_request(
        "POST", "/_plugins/_ml/agents/_register", body={"name": "u-agent", "type": "flow", "tools": [tool]}
    )
    expected = [
        "ingest pipeline 'inner'",
        "ingest pipeline 'outer'",
        "search pipeline 'asks'",
        "index 'u-client' (queries, which no other deployed model encodes)",
        "index 'u-documents' (closed, documents)",
        "index 'u-field' (field 'deep.x')",
        "index 'u-pipelines' (default_pipeline 'outer', search.default_pipeline 'asks')",
        "component template 'u-part'",
        "agent 'u-agent'",
    ]
    idle = deploy_archive(
        client, open_archive(encoder_archive(tmp_path / "idle.zip", model=graph(seed=9)))
    ).model_id
    dry = oskit(node, "delete", idle, model_id, "--dry-run", "--json").communicate(timeout=60)
    told = json.loads(dry[0])
    real = oskit(node, "delete", idle, model_id, "--yes")
    said = real.communicate(timeout=60)[1]
    assert real.returncode == 7, said
    incident.said(said, "is used by")
    users = next(one["users"] for one in told["models"] if one["model_id"] == model_id)
    assert [user.partition(" (2")[0] for user in users[:-1]] == expected[:-1]
    assert users[-1].startswith(expected[-1]) and told["models"][0]["users"] == []
    assert "; " not in said.partition("is used by")[0] and all(user in said for user in expected[:8])
    assert [call["method"] for call in told["calls"]][:4] == ["POST", "POST", "DELETE", "DELETE"]
    for there in (idle, model_id):
        found = get_model(client, there)
        assert found is not None and found.is_deployed
    delete_model(client, idle)
    assert get_model(client, idle) is None
    incident.orphans(left_behind(client))


def test_a_model_that_rests_is_replaced(client: OpenSearch, tmp_path: Path) -> None:
    paths = [encoder_archive(tmp_path / name / "same.zip", model=made)
             for name, made in (("a", graph(seed=1)), ("b", graph_that_keeps_words()))]  # fmt: skip
    old = deploy_archive(client, open_archive(paths[0]))
    new = deploy_archive(client, open_archive(paths[1]), replace=True)
    assert new.replaced == (old.model_id,) and get_model(client, old.model_id) is None
    delete_model(client, new.model_id, own=True)
