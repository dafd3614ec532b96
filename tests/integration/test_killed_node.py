"""A node that is killed in the middle of a load, and comes back."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archives import encoder_archive
from opensearchpy import OpenSearch
from tiny_models import documents, graph_that_keeps_words

from oskit.cluster.connection import ConnectionSettings, connect
from oskit.cluster.deploy import deploy_archive
from oskit.cluster.ingest import ingest
from oskit.cluster.models import list_models
from oskit.cluster.node import LocalNode
from oskit.data.documents import Document
from oskit.encoder.archive import open_archive
from oskit.encoder.runtime import ArchiveEncoder
from oskit.errors import ClusterError

pytestmark = pytest.mark.integration

COUNT = 400


@pytest.fixture(scope="module")
def node() -> Iterator[LocalNode]:
    made = LocalNode(f"test-killed-{uuid.uuid4().hex[:6]}", heap="768m")
    try:
        made.start()
        yield made
    finally:
        folder = made.status().folder
        made.stop()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def client(node: LocalNode) -> OpenSearch:
    return connect(ConnectionSettings(url=node.url))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_archive(tmp_path_factory.mktemp("killed") / "killed.zip", model=graph_that_keeps_words())


class Restart:
    """Kills the node and starts it again, at the same address and with the same data."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._thread = threading.Thread(target=self._run)
        self.was_killed = threading.Event()

    def _run(self) -> None:
        pid, url = self._node.status().pid, self._node.url
        assert pid is not None
        os.killpg(os.getpgid(pid), signal.SIGKILL)
        self.was_killed.set()
        self._node.start()
        assert self._node.url == url

    def now(self) -> None:
        """Kill it, and return once it is dead; the start goes on in the background."""
        self._thread.start()
        assert self.was_killed.wait(10)

    def join(self) -> None:
        """Wait until it runs again."""
        self._thread.join(300)
        assert not self._thread.is_alive()


def killing(docs: list[Document], restart: Restart) -> Iterator[Document]:
    """The documents, and a kill after half of them."""
    for number, doc in enumerate(docs):
        if number == len(docs) // 2:
            restart.now()
        yield doc


def check(client: OpenSearch, index: str, docs: list[Document], encoder: ArchiveEncoder) -> None:
    """Every document is there exactly once, with the encoder's weights."""
    client.indices.refresh(index=index)
    hits = client.search(index=index, body={"size": 1000, "query": {"match_all": {}}})["hits"]["hits"]
    found = {hit["_id"]: hit["_source"].get("embedding", {}) for hit in hits}
    assert len(hits) == len(found) == len(docs)
    for doc, weights in zip(docs, encoder.document_weights([doc.passage for doc in docs]), strict=True):
        assert found[doc.id] == pytest.approx(weights, abs=1e-5)


def test_a_load_goes_on_when_the_node_is_back(node: LocalNode, client: OpenSearch, archive: Path) -> None:
    encoder, docs, restart = ArchiveEncoder.open(archive), documents(COUNT), Restart(node)
    report = ingest(
        client, "client-mode", killing(docs, restart), encoder=encoder, batch_size=8, bulk_documents=10
    )
    restart.join()
    assert (report.read, report.indexed, report.refused) == (COUNT, COUNT, 0)
    assert report.retries > 0
    check(client, "client-mode", docs, encoder)


def test_a_load_that_the_cluster_encodes_is_whole_after_a_second_try(
    node: LocalNode, client: OpenSearch, archive: Path
) -> None:
    deployed = deploy_archive(client, open_archive(archive), configure_cluster=True)
    encoder, docs, restart = ArchiveEncoder.open(archive), documents(COUNT), Restart(node)
    options: dict[str, Any] = {"encode": "cluster", "model_id": deployed.model_id, "batch_size": 8}
    try:
        ingest(client, "cluster-mode", killing(docs, restart), bulk_documents=10, **options)
    except ClusterError as error:  # the model is in memory again only some time after the node
        assert error.hint
    restart.join()
    report = ingest(client, "cluster-mode", docs, **options)
    assert (report.read, report.indexed, report.refused) == (COUNT, COUNT, 0)
    check(client, "cluster-mode", docs, encoder)
    assert [model.model_id for model in list_models(client)] == [deployed.model_id]
