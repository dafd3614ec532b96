"""A node that is killed in the middle of a command, and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archives import encoder_archive
from incidents import Incident
from leftovers import models_of, orphaned_chunks
from opensearchpy import OpenSearch
from own_nodes import OwnNode, archive, client
from tiny_models import documents, indexed

from oskit.archive.archive import Archive, open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.registry import list_models
from oskit.cluster.models.retire import delete_model
from oskit.cluster.search.search import search
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.evaluation.live.verify import verify

__all__ = ["archive", "client"]

pytestmark = pytest.mark.integration

COUNT = 400
KILLED = "the node is killed (SIGKILL) and restarted"


@pytest.fixture(scope="module")
def node() -> Iterator[OwnNode]:
    with OwnNode("killed") as made:
        yield made


def killing(docs: list[Document], node: OwnNode, incident: Incident) -> Iterator[Document]:
    """The documents, and a kill after half of them."""
    for number, doc in enumerate(docs):
        if number == len(docs) // 2:
            incident.begins()
            node.kill_and_restart()
        yield doc


def check(
    client: OpenSearch, index: str, docs: list[Document], encoder: ArchiveEncoder, incident: Incident
) -> None:
    """Every document is there exactly once, with the encoder's weights."""
    hits = indexed(client, index)
    incident.documents([doc.id for doc in docs], [hit["_id"] for hit in hits])
    found = {hit["_id"]: hit["_source"].get("embedding", {}) for hit in hits}
    for doc, weights in zip(docs, encoder.document_weights([doc.passage for doc in docs]), strict=True):
        assert found[doc.id] == pytest.approx(weights, abs=1e-5)


@pytest.mark.incident(
    during="`ingest`, encoded here", what=KILLED, then="the load waits for the node and goes on"
)
def test_a_load_goes_on_when_the_node_is_back(
    node: OwnNode, client: OpenSearch, archive: Path, incident: Incident
) -> None:
    encoder, docs = ArchiveEncoder.open(archive), documents(COUNT)
    report = ingest(client, "client-mode", killing(docs, node, incident), encoder=encoder, bulk_documents=10)
    incident.is_over()
    node.wait()
    assert (report.read, report.indexed, report.refused) == (COUNT, COUNT, 0)
    assert report.retries > 0
    incident.said("", "trying again")
    check(client, "client-mode", docs, encoder, incident)


@pytest.mark.incident(
    during="`ingest`, encoded by the cluster",
    what=KILLED,
    then="the load waits for the node and for the model, and goes on",
)
def test_a_load_that_the_cluster_encodes_goes_on_when_node_and_model_are_back(
    node: OwnNode, client: OpenSearch, archive: Path, incident: Incident
) -> None:
    deployed = deploy_archive(client, open_archive(archive), configure_cluster=True)
    encoder, docs = ArchiveEncoder.open(archive), documents(COUNT)
    options: dict[str, Any] = {"encode": "cluster", "model_id": deployed.model_id, "pipeline_batch_size": 8}
    report = ingest(client, "cluster-mode", killing(docs, node, incident), bulk_documents=10, **options)
    incident.is_over()
    node.wait()
    assert (report.read, report.indexed, report.refused) == (COUNT, COUNT, 0)
    incident.said("", "trying again|waiting")
    check(client, "cluster-mode", docs, encoder, incident)
    assert [model.model_id for model in list_models(client)] == [deployed.model_id]


@pytest.mark.incident(
    during="`verify`, by model",
    what=KILLED,
    then="it waits for the node, then for the model, and goes on; `search` likewise",
)
def test_a_verification_by_model_goes_on_when_the_node_is_back(
    node: OwnNode, client: OpenSearch, archive: Path, incident: Incident
) -> None:
    encoder, docs = ArchiveEncoder.open(archive), documents(COUNT)
    queries = {f"q{number}": f"quick {doc.text}" for number, doc in enumerate(docs[:60])}
    collection = Collection(queries=queries, qrels={"q0": {"d0": 1}}, corpus=tuple(docs))
    model = deploy_archive(client, open_archive(archive), configure_cluster=True)
    ingest(client, "cluster-mode", docs, encode="cluster", model_id=model.model_id)
    notes: list[str] = []

    def on_step(what: str) -> None:
        notes.append(what)
        if what.startswith("asking 60"):
            incident.begins()
            node.kill_and_restart()

    report = verify(client, "cluster-mode", collection, encoder, by="model", model_id=model.model_id, k=10,
                    baseline_bm25=False, sample=20, on_step=on_step)  # fmt: skip
    incident.is_over()
    node.wait()
    assert (report.failures, report.missing) == ([], 0)
    assert len([note for note in notes if "waiting for it" in note]) <= 1, "told once"
    incident.said(notes, "trying again")
    assert search(client, "cluster-mode", "quick fox").hits


class KillAt:
    """Kills the node at the first progress of a kind."""

    def __init__(self, node: OwnNode, incident: Incident, words: str) -> None:
        self._node = node
        self._incident = incident
        self._words = words
        self.done = False

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.done or not what.startswith(self._words) or (total and not done):
            return
        self.done = True
        self._incident.begins()
        self._node.kill_and_restart()


def check_model(client: OpenSearch, archive: Archive, model_id: str, incident: Incident) -> None:
    """It is the only one with its content, and there are no parts of others."""
    assert models_of(client, archive) == [model_id]
    incident.orphans(orphaned_chunks(client))
    # It answers, and as the archive does.
    assert deploy_archive(client, archive).max_difference == pytest.approx(0, abs=1e-4)
    delete_model(client, model_id, own=True)


@pytest.mark.incident(
    during="`deploy`, the upload", what=KILLED, then="the upload waits for the node and goes on"
)
def test_an_upload_goes_on_when_the_node_is_back(
    node: OwnNode, client: OpenSearch, tmp_path: Path, incident: Incident
) -> None:
    archive = open_archive(encoder_archive(tmp_path / "two-chunks.zip", size=1800))
    assert archive.total_chunks == 2
    kill = KillAt(node, incident, "Uploading")
    deployed = deploy_archive(client, archive, configure_cluster=True, progress=kill)
    incident.is_over()
    assert kill.done
    incident.said("", "trying again")
    node.wait()
    check_model(client, archive, deployed.model_id, incident)


@pytest.mark.incident(
    during="`deploy`, the deployment", what=KILLED, then="the deployment waits for the node and begins again"
)
def test_a_deployment_begins_again_when_the_node_is_back(
    node: OwnNode, client: OpenSearch, tmp_path: Path, incident: Incident
) -> None:
    archive = open_archive(encoder_archive(tmp_path / "deploying.zip", size=1500, seed=3))
    kill = KillAt(node, incident, "Deploying")
    notes: list[str] = []
    deployed = deploy_archive(client, archive, configure_cluster=True, progress=kill, notify=notes.append)
    incident.is_over()
    assert kill.done
    incident.said(notes, "trying again")
    node.wait()
    check_model(client, archive, deployed.model_id, incident)
