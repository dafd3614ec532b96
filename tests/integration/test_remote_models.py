"""Models behind connectors: they give what local ones give, are one each, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from archives import encoder_archive
from faulty_proxy import Fault, FaultyProxy
from opensearchpy import OpenSearch
from served import TOKEN, serve, state
from tiny_models import TinyModels, documents, indexed, tiny

from oskit.archive.archive import open_archive
from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.index.mapping import IndexSettings, delete_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.configuration import PRIVATE, TRUSTED, Configuration
from oskit.cluster.models.connectors import Remote, connector_body, list_connectors
from oskit.cluster.models.deploy import DeployedModel
from oskit.cluster.models.predict import predict
from oskit.cluster.models.preflight import all_settings
from oskit.cluster.models.registry import existing_model, list_models, request, wait_until
from oskit.cluster.models.remote import deploy_remote
from oskit.cluster.models.remote_plan import registration
from oskit.cluster.models.retire import delete_model
from oskit.cluster.models.trust import have_trusted
from oskit.cluster.search.search import search
from oskit.data.documents import Document
from oskit.errors import ClusterSettingsError, ModelError, OskitError, PredictionMismatchError

__all__ = ["tiny"]

pytestmark = pytest.mark.integration

SPOILERS = [
    "the ${parameters.texts} fox",
    "${parameters.sparse_embedding_format} fox",
    "${parameters.unknown:-building permit}",
    "$${parameters.texts:-fox} \\${parameters.texts} $\\u007bparameters.texts}",
    "${${parameters.texts}} ${credential.key} ${parameters.input_docs_processed_step_size}",
    "\"quick\"\\ 'fox'\n\t\x01\x7f \u2028 \N{GRINNING FACE} </b> &amp;",
    "long fox " * 3000,
]
"""What a connector's substitutions, JSON or its escapes may change."""


@dataclass(frozen=True)
class Served:
    """Where two archives are served, the encoder twice."""

    url: str
    elsewhere: str
    other: str


@pytest.fixture(scope="module")
def served(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The tiny encoder with its tokenizer, at two addresses; and another one of the same name."""
    folder = tmp_path_factory.mktemp("served")
    other = encoder_archive(folder / tiny.archive.name, seed=3)
    queries = ("--query-archive", str(tiny.query_archive))
    with (
        serve(str(tiny.archive), *queries) as (url, _),
        serve(f"a={tiny.archive}", f"b={other}") as (second, _),
    ):
        yield Served(url, f"{second}/models/a", f"{second}/models/b")


@pytest.fixture
def cluster(client: OpenSearch) -> Iterator[OpenSearch]:
    """The cluster, which is as before afterwards: settings, models, groups, connectors."""
    before = state(client)
    yield client
    for model in list_models(client):
        if model.model_id not in before[1]["models"]:
            delete_model(client, model.model_id, own=True)
    for connector in list_connectors(client):
        if connector not in before[1]["connectors"]:
            request(client, "DELETE", f"/connectors/{connector}")
    values = {name: before[0]["persistent"].get(name) for name in (TRUSTED, PRIVATE)}
    client.cluster.put_settings(body={"persistent": values})
    time.sleep(1.2)  # searches lag behind
    assert state(client) == before


def deploy(client: OpenSearch, archive: Path, url: str, **options: Any) -> DeployedModel:
    options = {"configure_cluster": True, "name": "oskit-test-remote", **options}
    return deploy_remote(client, open_archive(archive), Remote(url, TOKEN), **options)


def ours(client: OpenSearch) -> tuple[list[str], list[str]]:
    """Ids of the remote models of these tests, and of connectors."""
    models = [model for model in list_models(client) if model.name.startswith("oskit-test-remote")]
    return [model.model_id for model in models], list(list_connectors(client))


@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
def test_remote_and_local_models_give_the_same_hits(
    cluster: OpenSearch, tiny: TinyModels, served: Served, kind: str
) -> None:
    """Whatever the texts are, through the concrete index and an alias; the weights are the archive's own.

    One kind by our own paths, the other by the one that SageMaker has.
    """
    url = served.url if kind == "rank_features" else f"{served.url}/invocations"
    encoder = deploy(cluster, tiny.archive, url)
    queries = deploy(cluster, tiny.query_archive, url, name="oskit-test-remote-q")
    docs = [*documents(), *(Document(f"s{n}", text) for n, text in enumerate(SPOILERS))]
    sides = {"remote": (encoder.model_id, queries.model_id), "local": (tiny.encoder_id, tiny.tokenizer_id)}
    names = {side: f"ingtest-{side}-{uuid.uuid4().hex[:8]}" for side in sides}
    try:
        for side, (model, query_model) in sides.items():
            half = len(docs) // 2
            settings = IndexSettings(kind)
            load: Any = {"encode": "cluster", "model_id": model, "query_model_id": query_model}
            load["settings"] = settings
            done = ingest(cluster, names[side], docs[:half], **load)
            cluster.indices.put_alias(index=names[side], name=f"{names[side]}-alias")
            done = ingest(cluster, f"{names[side]}-alias", docs[half:], **load)
            assert not done.refused, done.reasons
        key = "token" if kind == "rank_features" else "id"
        for hit in indexed(cluster, names["remote"]):
            doc = next(doc for doc in docs if doc.id == hit["_id"])
            (wanted,) = tiny.encoder.document_weights([doc.passage], key=key)
            assert hit["_source"].get("embedding", {}) == pytest.approx(wanted, rel=1e-5)
        for query in ["building permit", "quick brown fox .", *SPOILERS]:
            for which in (0, 1):
                found = {
                    side: search(cluster, f"{names[side]}-alias", query, by="model", model_id=models[which])
                    for side, models in sides.items()
                }
                hits = {side: [(hit.id, hit.score) for hit in one.hits] for side, one in found.items()}
                assert len(hits["remote"]) == 10
                assert dict(hits["remote"]) == pytest.approx(dict(hits["local"]), rel=1e-5)
    finally:
        for name in names.values():
            delete_index(cluster, name)


def test_runs_at_the_same_time_make_one_model_each_and_keep_each_others_settings(
    cluster: OpenSearch, cluster_url: str, tiny: TinyModels, served: Served
) -> None:
    """Two runs of one archive, a third of another archive at another address, all from nothing."""
    clients = [connect(ConnectionSettings(url=cluster_url)) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        one, same, other = pool.map(
            lambda each: deploy(clients[each[0]], each[1], each[2], name=each[3]),
            [
                (0, tiny.archive, served.url, "oskit-test-remote"),
                (1, tiny.archive, served.url, "oskit-test-remote"),
                (2, tiny.archive, served.elsewhere, "oskit-test-remote-2"),
            ],
        )
    assert one.model_id == same.model_id != other.model_id and one.shared != same.shared
    time.sleep(1.2)  # a connector that was deleted is found for as long
    models, connectors = ours(cluster)
    assert sorted(models) == sorted([one.model_id, other.model_id]) and len(connectors) == 2
    trusted = all_settings(cluster)["persistent"][TRUSTED]
    assert len(trusted) == 14, "the twelve of the cluster, and two"


def test_a_failed_deployment_leaves_everything_as_it_was(
    cluster: OpenSearch, tiny: TinyModels, served: Served
) -> None:
    """But for what somebody else added to the list of addresses meanwhile."""
    before = state(cluster)
    with pytest.raises(ClusterSettingsError, match="does not let its connectors reach"):
        deploy(cluster, tiny.archive, served.url, configure_cluster=False)
    with pytest.raises(PredictionMismatchError, match="does not predict"):
        deploy(cluster, tiny.archive, served.other, group="oskit-test-remote-group")
    with pytest.raises(ModelError, match=r"401.*asks http") as refused:
        deploy_remote(
            cluster, open_archive(tiny.archive), Remote(served.url, "wrong"), configure_cluster=True
        )
    assert TOKEN not in str(refused.value)
    with pytest.raises(ModelError, match=r"Connection refused.*Is http://127.0.0.1:9 up"):
        deploy(cluster, tiny.archive, "http://127.0.0.1:9")
    time.sleep(1.2)
    assert state(cluster) == before
    theirs = "^https://theirs\\.example/.*$"

    def somebody_else(said: str) -> None:
        if "by adding" in said:
            now = all_settings(cluster)["persistent"][TRUSTED]
            cluster.cluster.put_settings(body={"persistent": {TRUSTED: [theirs, *now]}})

    with pytest.raises(PredictionMismatchError):
        deploy(cluster, tiny.archive, served.other, notify=somebody_else)
    defaults = next(iter([all_settings(cluster)["persistent"][TRUSTED]]))
    assert defaults[0] == theirs and len(defaults) == 13


def test_a_service_that_moves_is_followed_while_the_model_answers(
    cluster: OpenSearch, tiny: TinyModels, served: Served
) -> None:
    """A wrong address changes nothing; what a killed run left is taken away; a foreign connector stays."""
    first = deploy(cluster, tiny.archive, served.url)
    with pytest.raises(ModelError, match=r"is served at .*--replace"):
        deploy(cluster, tiny.archive, served.elsewhere)
    theirs = _connector(cluster, tiny, served.url, description="somebody else's")
    _connector(cluster, tiny, served.url)  # as a killed run leaves one
    ended, failures = Event(), []

    def ask() -> int:
        asked = 0
        while not ended.is_set():
            try:
                assert len(predict(cluster, existing_model(cluster, first.model_id), ["fox", "quick"])) == 2
            except OskitError as error:
                failures.append(error)
            asked += 1
        return asked

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            with pytest.raises(PredictionMismatchError):
                deploy(cluster, tiny.archive, served.other, replace=True)
            assert _url(cluster, first.model_id).startswith(served.url)
            moved = deploy(cluster, tiny.archive, served.elsewhere, replace=True)
        finally:
            ended.set()
    assert not failures and asking.result() > 10
    assert moved.model_id == first.model_id and _url(cluster, first.model_id).startswith(served.elsewhere)
    models, connectors = ours(cluster)
    assert models == [first.model_id] and len(connectors) == 2 and theirs in connectors
    delete_model(cluster, first.model_id, own=True)
    assert list(list_connectors(cluster)) == [theirs]
    request(cluster, "DELETE", f"/connectors/{theirs}")


def test_a_service_that_is_dead_is_named_in_the_list(
    cluster: OpenSearch, cluster_url: str, tiny: TinyModels, capfd: pytest.CaptureFixture[str]
) -> None:
    have_trusted(cluster, "http://127.0.0.1:9/v1/sparse", Configuration(cluster, lambda _: None))
    connector = _connector(cluster, tiny, "http://127.0.0.1:9")
    body = registration(open_archive(tiny.archive), "oskit-test-remote", connector, None)
    model = request(cluster, "POST", "/models/_register?deploy=true", body)["model_id"]
    # The list is a search, and tells of a deployment a second later.
    wait_until(
        lambda: any(one.is_deployed for one in list_models(cluster) if one.model_id == model), wait_s=20
    )
    assert main(["models", "--url", cluster_url]) == 0
    told = " ".join(capfd.readouterr().out.split())
    assert "asks http://127.0.0.1:9/v1/sparse, which does not answer" in told and "Connection refused" in told


def _connector(client: OpenSearch, tiny: TinyModels, url: str, **changes: str) -> str:
    body = connector_body(open_archive(tiny.archive), Remote(url), "oskit-test-remote")
    return str(request(client, "POST", "/connectors/_create", {**body, **changes})["connector_id"])


def _url(client: OpenSearch, model_id: str) -> str:
    return list_connectors(client)[str(existing_model(client, model_id).connector_id)].url


STEPS = {
    "connector": r"POST .*/models/_register",
    "model": r"POST .*/_deploy",
    "deployed": r"POST .*/_predict/",
    "moved": r"PUT .*/models/",
}


@pytest.mark.parametrize(
    ("name", "step"),
    [*(("SIGKILL", step) for step in STEPS), *(("SIGTERM", s) for s in ("connector", "deployed", "moved"))],
)
def test_a_deployment_that_is_ended_is_gone_on_with(
    cluster: OpenSearch,
    cluster_url: str,
    tiny: TinyModels,
    served: Served,
    capsys: pytest.CaptureFixture[str],
    name: str,
    step: str,
) -> None:
    """What it left is seen with `oskit models`, and one model is there after the same command again."""
    words = [str(tiny.archive), "--name", "oskit-test-remote", "--configure-cluster", "--remote"]
    before = state(cluster)
    if step == "moved":
        deploy(cluster, tiny.archive, served.url)
        words += [served.elsewhere, "--replace"]
        before = state(cluster)
    else:
        words += [served.url]
    with FaultyProxy(cluster_url, Fault(STEPS[step], "hang")) as proxy:
        command = [sys.executable, "-m", "oskit", "deploy", *words, "--url", proxy.url]
        environment = {**os.environ, "OSKIT_SERVE_TOKEN": TOKEN}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            proxy.wait_for(STEPS[step])
            process.send_signal(getattr(signal, name))
            _, said = process.communicate(timeout=180)
            assert "Traceback" not in said
    time.sleep(1.2)
    if name == "SIGTERM":
        assert state(cluster) == before
    now = state(cluster)[1]
    left = {one for kind in ("models", "connectors") for one in now[kind] if one not in before[1][kind]}
    assert main(["models", "--json", "--url", cluster_url]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert left <= {one[key] for one in listed for key in ("model_id", "connector_id")}
    assert bool(left) == (name == "SIGKILL")
    os.environ["OSKIT_SERVE_TOKEN"] = TOKEN
    try:
        assert main(["deploy", *words, "--url", cluster_url, "--json"]) == 0
    finally:
        del os.environ["OSKIT_SERVE_TOKEN"]
    (made,) = json.loads(capsys.readouterr().out)
    models, connectors = ours(cluster)
    assert models == [made["model_id"]] and len(connectors) == 1
    assert _url(cluster, models[0]).startswith(words[5])
