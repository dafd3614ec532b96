"""A cluster of three nodes on one machine: data and ML roles apart, a node that dies, shards and replicas."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from archives import encoder_archive, graph
from incidents import Incident
from opensearchpy import OpenSearch
from own_nodes import OwnNode, archive, free_port
from tiny_models import QUERIES, documents

from oskit.archive.archive import open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.index.mapping import IndexSettings, delete_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.registry import ModelInfo, get_model, list_models, model_nodes, wait_until
from oskit.cluster.models.retire import delete_model
from oskit.cluster.search.search import search
from oskit.data.collection import Collection
from oskit.doctor.cluster import check_cluster

__all__ = ["archive"]

pytestmark = pytest.mark.integration

ROLES = {"first": ["cluster_manager", "data", "ingest"], "second": ["data", "ml"], "third": ["ml"]}


@dataclass
class ThreeNodes:
    """The cluster; the first node manages it and is the one that is asked."""

    run: str = field(default_factory=lambda: uuid.uuid4().hex[:6])
    nodes: dict[str, OwnNode] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # or those that did start would stay when one does not
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        ports = {name: free_port() for name in ROLES}
        for name, roles in ROLES.items():
            settings: dict[str, Any] = {
                "cluster.name": f"oskit-{self.run}",
                "node.name": name,
                "node.roles": roles,
                "transport.port": str(ports[name]),
                "discovery.type": "zen",
                "discovery.seed_hosts": [f"127.0.0.1:{port}" for port in ports.values()],
                "cluster.initial_cluster_manager_nodes": ["first"],
                "plugins.ml_commons.only_run_on_ml_node": True,
                # Else the cluster plans anew for the nodes that are left, and nothing is missing.
                "plugins.ml_commons.model_auto_redeploy.enable": False,
            }
            self.nodes[name] = stack.enter_context(OwnNode(name, settings=settings))

    def client(self) -> OpenSearch:
        return connect(ConnectionSettings(url=self.nodes["first"].url))


@pytest.fixture(scope="module")
def three() -> Iterator[ThreeNodes]:
    with ThreeNodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def several(three: ThreeNodes) -> OpenSearch:
    return three.client()


@pytest.fixture(scope="module")
def model(several: OpenSearch, archive: Path) -> Iterator[ModelInfo]:
    deployed = deploy_archive(several, open_archive(archive), configure_cluster=True)
    found = get_model(several, deployed.model_id)
    assert found is not None
    yield found
    delete_model(several, found.model_id, own=True)


def test_a_model_is_deployed_on_all_ml_nodes(several: OpenSearch, model: ModelInfo) -> None:
    assert (model.state, model.current, model.planned) == ("DEPLOYED", 2, 2)
    nodes = model_nodes(several, model)
    assert (nodes.running, nodes.missing) == (("second", "third"), ())


@pytest.mark.parametrize("mode", ["client", "cluster"])
@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
def test_scores_are_exact_over_shards_and_replicas(
    several: OpenSearch, model: ModelInfo, archive: Path, kind: Any, mode: Any
) -> None:
    index = f"several-{uuid.uuid4().hex[:8]}"
    encoder = ArchiveEncoder.open(archive)
    docs = documents(60)
    try:
        report = ingest(
            several,
            index,
            docs,
            encode=mode,
            encoder=encoder if mode == "client" else None,
            model_id=model.model_id if mode == "cluster" else None,
            settings=IndexSettings(kind, shards=3, replicas=1),
        )
        assert (report.read, report.indexed, report.refused) == (60, 60, 0)
        health = several.cluster.health(index=index, params={"wait_for_status": "green"})
        assert (health["status"], health["active_shards"]) == ("green", 6)
        exact = (
            encoder.query_matrix(QUERIES) @ encoder.document_matrix([doc.passage for doc in docs]).T
        ).toarray()
        for row, query in enumerate(QUERIES):
            hits = search(several, index, query, encoder=encoder, size=60).hits
            scores = {hit.id: hit.score for hit in hits}
            for column, doc in enumerate(docs):
                # rank_features keeps 9 significant bits of a weight.
                assert scores.get(doc.id, 0.0) == pytest.approx(exact[row, column], rel=2**-7, abs=1e-5)
    finally:
        delete_index(several, index)


@pytest.mark.parametrize("by", [(), ("--by", "model", "--model")], ids=["tokens", "model"])
def test_the_proof_agrees_over_shards(
    three: ThreeNodes,
    several: OpenSearch,
    model: ModelInfo,
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    by: tuple[str, ...],
) -> None:
    index = f"several-{uuid.uuid4().hex[:8]}"
    asked = {f"q{number}": query for number, query in enumerate(QUERIES)}
    folder = Collection(asked, {query: {"d1": 1} for query in asked}, tuple(documents(60))).write(
        tmp_path / "b"
    )
    there = ("--archive", str(archive), "--url", three.nodes["first"].url)
    try:
        assert main(["ingest", index, str(folder), "--shards", "3", "--replicas", "1", *there]) == 0
        capsys.readouterr()
        how = (*by, model.model_id) if by else ()
        assert main(["verify", str(folder), "--index", index, "--json", *how, *there]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["passed"], report["failures"], report["missing_documents"]) == (True, [], [])
    finally:
        delete_index(several, index)


def models_and_doctor_miss_it_on_third(
    url: str, model: ModelInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    """What two commands say of a model that only the second node has."""
    capsys.readouterr()
    assert main(["models", "--url", url]) == 0
    assert "1 of 2 nodes" in capsys.readouterr().out
    (finding,) = [
        found for found in check_cluster(ConnectionSettings(url=url)) if model.model_id in found.detail
    ]
    assert finding.status == "warning"
    assert "on second, not on third" in finding.detail
    assert "--redeploy" in (finding.advice or "")


def deploy_misses_it_on_third(url: str, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model goes on answering from the second node, and the command says what is missing."""
    assert main(["deploy", str(archive), "--url", url]) == 0
    told = capsys.readouterr().err
    assert "on 1 of 2 nodes: on second, not on third" in told
    assert "--redeploy" in told


@pytest.mark.incident(
    during="a deployed model, several nodes",
    what="one of the nodes is killed and comes back without the model",
    then="`deploy`, `models` and `doctor` say on which node it is missing; `--redeploy` mends it",
)
def test_a_node_that_dies_is_noticed_named_and_mended(
    three: ThreeNodes,
    several: OpenSearch,
    model: ModelInfo,
    archive: Path,
    capsys: pytest.CaptureFixture[str],
    incident: Incident,
) -> None:
    url = three.nodes["first"].url
    three.nodes["third"].kill()

    def count() -> tuple[int, int]:
        (found,) = [found for found in list_models(several) if found.model_id == model.model_id]
        return found.current, found.planned

    # The cluster counts anew, and plans for the nodes that are left; the one that comes back lacks the model.
    assert wait_until(lambda: count() == (1, 1) or None, wait_s=90), count()
    three.nodes["third"].start()
    assert wait_until(lambda: count() == (1, 2) or None, wait_s=90), count()
    models_and_doctor_miss_it_on_third(url, model, capsys)
    deploy_misses_it_on_third(url, archive, capsys)

    incident.begins()
    assert main(["deploy", str(archive), "--redeploy", "--url", url]) == 0
    incident.is_over()
    told = capsys.readouterr().err
    assert "not on third" not in told
    incident.said(told, "Changed in the cluster: POST .*_deploy")
    assert wait_until(lambda: count() == (2, 2) or None, wait_s=30), count()
    assert model_nodes(several, model).running == ("second", "third")
    incident.orphans([found.model_id for found in list_models(several) if found.model_id != model.model_id])


@pytest.mark.incident(
    during="`deploy`, several nodes",
    what="one of the nodes cannot load the model",
    then="it says on which node it is missing, and so do `models` and `doctor`; `--redeploy` mends it",
)
def test_a_node_that_cannot_load_a_model_is_named(
    three: ThreeNodes,
    several: OpenSearch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    incident: Incident,
) -> None:
    url = three.nodes["first"].url
    path = encoder_archive(tmp_path / "one-node-cannot.zip", model=graph(seed=11))
    # Where the third node would unpack it there is a file.
    cache = three.nodes["third"].folder / "data" / "ml_cache" / "models_cache"
    aside = cache.with_name("aside")
    cache.rename(aside)
    cache.write_text("in the way")

    deploy_misses_it_on_third(url, path, capsys)
    (model,) = [found for found in list_models(several) if found.name.startswith("one-node-cannot")]
    assert model.state == "PARTIALLY_DEPLOYED"
    models_and_doctor_miss_it_on_third(url, model, capsys)

    cache.unlink()
    aside.rename(cache)
    assert main(["deploy", str(path), "--redeploy", "--url", url]) == 0
    incident.said(capsys.readouterr().err, "Changed in the cluster: POST .*_deploy")
    mended = get_model(several, model.model_id)
    assert mended is not None
    assert (mended.state, model_nodes(several, mended).running) == ("DEPLOYED", ("second", "third"))
    incident.orphans([found.model_id for found in list_models(several) if found.state == "DEPLOY_FAILED"])
    delete_model(several, model.model_id, own=True)
