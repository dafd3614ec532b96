"""A service behind a remote model that fails, mixes up its answers or is killed: what oskit makes of it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import archives
import pytest
from faulty_proxy import Fault, FaultyProxy
from incidents import Incident
from opensearchpy import OpenSearch

from oskit.archive.archive import open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.text_encoder import KeyFormat
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.retry import RetryPolicy
from oskit.cluster.index.mapping import IndexKind, IndexSettings, delete_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.remote import Remote, deploy_remote
from oskit.cluster.models.retire import delete_model
from oskit.cluster.search.search import search
from oskit.data.documents import Document
from oskit.errors import ClusterError, IndexingError

pytestmark = pytest.mark.integration

COUNT = 80
LOAD = "`ingest --encode cluster`, a remote model"


class Service(ThreadingHTTPServer):
    """Answers as ``oskit serve`` does; the next ``times`` requests of several texts are spoiled."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, encoder: ArchiveEncoder) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.encoder = encoder
        self.times = 0
        self.status = 0  # of all answers, if it is one
        self.spoils: Callable[[Handler, list[Any]], list[Any] | None] = lambda _, rows: rows
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.status:
            self.answer(self.server.status, {"error": "on purpose"})
            return
        key = "id" if asked["sparse_embedding_format"] == "TOKEN_ID" else "token"
        rows: list[Any] | None = list(self.server.encoder.document_weights(asked["texts"], key=key))
        if self.server.times > 0 and len(asked["texts"]) > 1:
            self.server.times -= 1
            rows = self.server.spoils(self, rows or [])
        if rows is not None:
            self.answer(200, rows)

    def answer(self, status: int, body: Any, **headers: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def busy(status: int, **headers: str) -> Callable[[Handler, list[Any]], None]:
    return lambda handler, _: handler.answer(status, {"error": "on purpose"}, **headers)


def dead(handler: Handler, _: list[Any]) -> None:
    handler.close_connection = True
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)


def slow(_: Handler, rows: list[Any]) -> list[Any]:
    time.sleep(2)
    return rows


def swapped(_: Handler, rows: list[Any]) -> list[Any]:
    return rows[::-1]


def documents() -> list[Document]:
    draw = random.Random(0)
    return [
        Document(f"d{number}", " ".join(draw.sample(archives.WORDS, 5)) + f" word{number}")
        for number in range(COUNT)
    ]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archives.encoder_archive(tmp_path_factory.mktemp("bad-services") / "tiny.zip", 2000)


@pytest.fixture(scope="module")
def encoder(archive: Path) -> ArchiveEncoder:
    return ArchiveEncoder.open(archive, threads=1)


@pytest.fixture(scope="module")
def deployed(client: OpenSearch, archive: Path, encoder: ArchiveEncoder) -> Iterator[tuple[Service, str]]:
    with Service(encoder) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        remote = Remote(service.url, None)
        model = deploy_remote(
            client, open_archive(archive), remote, name="oskit-bad-services", configure_cluster=True
        )
        yield service, model.model_id
        delete_model(client, model.model_id, force=True)
        service.shutdown()


@pytest.fixture
def index(client: OpenSearch, request: pytest.FixtureRequest) -> Iterator[str]:
    name = "bad-services"
    delete_index(client, name)
    yield name
    delete_index(client, name)


def right(client: OpenSearch, index: str, encoder: ArchiveEncoder) -> list[str]:
    """Ids of what is there; each has the weights of its own text."""
    client.indices.refresh(index=index)
    hits = client.search(index=index, body={"size": 1000})["hits"]["hits"]
    is_id = all(token.isdecimal() for hit in hits for token in hit["_source"]["embedding"])
    key: KeyFormat = "id" if is_id else "token"
    wanted = encoder.document_weights([hit["_source"]["passage"] for hit in hits], key=key)
    for hit, weights in zip(hits, wanted, strict=True):
        assert hit["_source"]["embedding"] == pytest.approx(weights, abs=1e-4), hit["_id"]
    return [hit["_id"] for hit in hits]


@pytest.mark.incident(
    during=LOAD,
    what="the service answers 429 or 503, closes connections, or takes seconds",
    then="waits and sends what failed again",
)
def test_a_service_that_fails_for_a_while_costs_time_alone(
    client: OpenSearch, deployed: tuple[Service, str], index: str, encoder: ArchiveEncoder, incident: Incident
) -> None:
    service, model = deployed
    throttled = busy(503, x_amzn_errortype="ThrottlingException")
    faults = [busy(429), throttled, busy(503), dead, slow]
    service.spoils, service.times = lambda handler, rows: faults.pop(0)(handler, rows), len(faults)
    report = ingest(client, index, documents(), encode="cluster", model_id=model, bulk_documents=20)
    assert (report.indexed, report.refused, faults) == (COUNT, 0, [])
    incident.documents([doc.id for doc in documents()], right(client, index, encoder))
    incident.said("", "server is busy, so \\d+ of \\d+ documents wait", "server does not answer")


@pytest.mark.incident(
    during=LOAD,
    what="the service gives texts each other's weights, or one more than it was asked for, or one less",
    then="ends the load and says so; what has others' weights is taken out again and loaded by the next run",
)
def test_what_mixes_up_its_answers_is_found_out(
    client: OpenSearch, deployed: tuple[Service, str], index: str, encoder: ArchiveEncoder, incident: Incident
) -> None:
    service, model = deployed
    wrong: list[Callable[[Handler, list[Any]], list[Any]]] = [
        swapped,
        lambda _, rows: [*rows[1:], rows[0]],
        lambda _, rows: [rows[0], *rows],
        lambda _, rows: rows[:-1],
    ]
    said = []
    kinds: tuple[IndexKind, ...] = ("rank_features", "sparse_vector")
    for kind in kinds:
        delete_index(client, index)
        load = partial(
            ingest,
            client,
            index,
            encode="cluster",
            model_id=model,
            settings=IndexSettings(kind=kind),
        )
        service.times = 999
        for service.spoils in wrong if kind == "rank_features" else wrong[:1]:
            with pytest.raises(IndexingError) as caught:
                load(documents())
            said.append(str(caught.value))
            right(client, index, encoder)
        service.spoils = lambda _, rows: [*rows, rows[0]]  # what is too much is left by the cluster
        load(documents())
        service.times = 0
        assert load(documents()).refused == 0
        incident.documents([doc.id for doc in documents()], right(client, index, encoder))
    assert [told for told in said if "gives texts the weights of others" not in told] == said[3:4]
    incident.said(said, "weights of others", "taken out", "one for each text")


@pytest.mark.incident(
    during=LOAD,
    what="the service mixes up its answers, and another load writes some of the same documents meanwhile",
    then="takes out what it has written itself, and leaves what came later",
)
def test_what_another_load_has_written_since_is_not_taken_out(
    client: OpenSearch, cluster_url: str, deployed: tuple[Service, str], index: str, encoder: ArchiveEncoder,
    incident: Incident,
) -> None:  # fmt: skip
    service, model = deployed
    how = partial(ingest, index=index, encode="cluster", model_id=model, bulk_documents=20)
    how(client, documents=documents()[20:])
    first, ends = documents()[:20], []
    service.spoils, service.times = swapped, 999
    with FaultyProxy(cluster_url, Fault("POST .*/_predict/", "delay", seconds=8, times=0)) as proxy:

        def spoiled() -> None:
            try:
                how(connect(ConnectionSettings(url=proxy.url)), documents=first)
            except IndexingError as error:
                ends.append(str(error))

        thread = threading.Thread(target=spoiled)
        thread.start()
        proxy.wait_for("POST .*/_mget.*")
        proxy.faults[0].times = 1  # its texts are asked for alone: what is compared has been read
        proxy.wait_for("POST .*/_predict/", count=proxy.count("POST .*/_predict/") + 1)
        service.times = 0
        how(client, documents=first[:10], reencode=True)
        thread.join()
    incident.said(ends, "weights of others", "but for 10 that somebody has written")
    assert sorted(right(client, index, encoder)) == sorted(doc.id for doc in [*first[:10], *documents()[20:]])
    how(client, documents=documents())
    incident.documents([doc.id for doc in documents()], right(client, index, encoder))


def test_searches_tell_what_their_service_does(
    cluster_url: str, client: OpenSearch, deployed: tuple[Service, str], index: str
) -> None:
    service, model = deployed
    ingest(client, index, documents(), encode="cluster", model_id=model)
    quick = connect(ConnectionSettings(url=cluster_url), policy=RetryPolicy(retry_for_s=0))
    wanted = [hit.id for hit in search(quick, index, "quick fox", size=5).hits]
    try:
        for service.status in (429, 503):
            with pytest.raises(ClusterError, match="server is busy"):
                search(quick, index, "quick fox", size=5)
    finally:
        service.status = 0
    assert [hit.id for hit in search(quick, index, "quick fox", size=5).hits] == wanted


@pytest.mark.incident(
    during=LOAD,
    what="`oskit serve` is killed (SIGKILL) and starts again seconds later",
    then="waits for it and goes on",
)
def test_sigkill_of_the_service_in_the_middle_of_a_load(
    client: OpenSearch, archive: Path, encoder: ArchiveEncoder, index: str, incident: Incident
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "oskit", "serve", str(archive), "--port", str(port), "--json", "--quiet"]

    def started() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        assert process.stdout is not None and process.stdout.readline()
        return process

    processes = [started()]
    url = f"http://127.0.0.1:{port}"
    model = deploy_remote(
        client, open_archive(archive), Remote(url, None), name="oskit-killed-service", configure_cluster=True
    ).model_id

    def killing() -> Iterator[Document]:
        for number, document in enumerate(documents()):
            if number == COUNT // 2:
                incident.begins()
                processes[0].send_signal(signal.SIGKILL)
                processes[0].wait()
                threading.Timer(3, lambda: processes.append(started())).start()
            yield document

    try:
        report = ingest(
            client, index, killing(), encode="cluster", model_id=model, recreate=True, bulk_documents=20
        )
        incident.is_over()
        assert (report.indexed, report.refused) == (COUNT, 0)
        incident.documents([doc.id for doc in documents()], right(client, index, encoder))
        incident.said("", "does not answer")
    finally:
        delete_model(client, model, force=True)
        for process in processes:
            process.kill()
            process.wait()
