"""`oskit` itself is killed or interrupted, and the same command is typed again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import incidents
import pytest
from archives import encoder_archive
from faulty_proxy import Fault, FaultyProxy
from incidents import Incident
from leftovers import models_of, nothing_is_left, orphaned_chunks
from opensearchpy import OpenSearch
from tiny_models import TinyModels, documents, index, indexed, tiny, write_documents

from oskit.archive.archive import Archive, open_archive
from oskit.cluster.models.registry import get_model
from oskit.cluster.models.retire import delete_model

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

CHUNK = r"POST .*/upload_chunk/"
SIGNALS = {
    "SIGKILL": "`oskit` is killed (SIGKILL)",
    "SIGINT": "Ctrl-C",
    "SIGTERM": "`oskit` is asked to end (SIGTERM)",
    "SIGHUP": "the terminal closes (SIGHUP)",
}

Start = Callable[..., "subprocess.Popen[str]"]


def signals(during: str, killed: str, interrupted: str, *names: str) -> pytest.MarkDecorator:
    """A test for SIGKILL and for each other signal, as a row of the table."""
    return pytest.mark.parametrize(
        "name",
        [
            incidents.fault(name, during=during, what=SIGNALS[name], then=then)
            for name, then in (("SIGKILL", killed), *((name, interrupted) for name in names))
        ],
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `oskit` as a shell would."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "oskit", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
            # A shell's background job ignores Ctrl-C, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str], name: str, incident: Incident) -> str:
    """Send the signal; what it said on stderr."""
    incident.begins()
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    number = signal.Signals[name]
    assert process.returncode == (-number if name == "SIGKILL" else 128 + number)
    assert "Traceback" not in said
    return said


@pytest.fixture
def two_chunks(tmp_path: Path, client: OpenSearch) -> Iterator[Archive]:
    archive = open_archive(encoder_archive(tmp_path / "oskit-test-killed.zip", size=1800, seed=21))
    assert archive.total_chunks == 2
    yield archive
    for model_id in models_of(client, archive):
        delete_model(client, model_id, own=True)


def check_model(client: OpenSearch, archive: Archive, incident: Incident) -> None:
    """One model, deployed, and no parts of others; after its deletion nothing is left."""
    (model_id,) = models_of(client, archive)
    model = get_model(client, model_id)
    assert model is not None
    assert model.state == "DEPLOYED"
    incident.orphans(orphaned_chunks(client))
    delete_model(client, model_id, own=True)
    assert nothing_is_left(client, archive)


@signals(
    "`deploy`, the upload",
    "the same command again sends the chunks that are missing",
    "it tells which model is unfinished; the same command again sends the chunks that are missing",
    "SIGINT",
    "SIGTERM",
)
def test_an_upload(
    client: OpenSearch, cluster_url: str, start: Start, two_chunks: Archive, name: str, incident: Incident
) -> None:
    with FaultyProxy(cluster_url, Fault(CHUNK + "1", "hang")) as proxy:
        first = start("deploy", str(two_chunks.path), "--configure-cluster", "--url", proxy.url)
        proxy.wait_for(CHUNK + "1")
        said = end(first, name, incident)
        (unfinished,) = models_of(client, two_chunks)
        told = "" if name == "SIGKILL" else f"The model {unfinished} is unfinished: the same command goes on"
        assert told in said
    with FaultyProxy(cluster_url) as proxy:
        again = start("deploy", str(two_chunks.path), "--url", proxy.url)
        _, said = again.communicate(timeout=120)
        incident.is_over()
        assert again.returncode == 0, said
        incident.said(said, f"Going on with the interrupted upload of {unfinished}")
        assert (proxy.count(CHUNK), proxy.count(CHUNK + "1")) == (1, 1)
    assert models_of(client, two_chunks) == [unfinished]
    check_model(client, two_chunks, incident)


@signals(
    "`deploy`, the deployment",
    "the same command again finds the model and waits for it",
    "it tells which model is unfinished; the same command again finds the model and waits for it",
    "SIGINT",
    "SIGHUP",
)
def test_a_deployment(
    client: OpenSearch, cluster_url: str, start: Start, two_chunks: Archive, name: str, incident: Incident
) -> None:
    task = r"GET .*/_ml/tasks/"
    with FaultyProxy(cluster_url, Fault(task, "hang")) as proxy:
        first = start("deploy", str(two_chunks.path), "--configure-cluster", "--url", proxy.url)
        proxy.wait_for(task)
        said = end(first, name, incident)
        (unfinished,) = models_of(client, two_chunks)
        told = "" if name == "SIGKILL" else f"The model {unfinished} is unfinished: the same command goes on"
        incident.said(said, told)
    again = start("deploy", str(two_chunks.path), "--json", "--url", cluster_url)
    answer, said = again.communicate(timeout=120)
    incident.is_over()
    assert again.returncode == 0, said
    assert json.loads(answer)[0]["model_id"] == unfinished
    check_model(client, two_chunks, incident)


@pytest.mark.parametrize("mode", ["client", "cluster"])
@signals(
    "`ingest`",
    "the same command again loads all; no document comes twice",
    "it tells what was done; the same command again loads all; no document comes twice",
    "SIGINT",
    "SIGTERM",
    "SIGHUP",
)
def test_a_load(
    client: OpenSearch,
    cluster_url: str,
    tiny: TinyModels,
    index: str,
    start: Start,
    tmp_path: Path,
    name: str,
    mode: str,
    incident: Incident,
) -> None:
    incident.during += {"client": ", encoded here", "cluster": ", encoded by the cluster"}[mode]
    docs = documents(200)
    source = write_documents(tmp_path / "docs.jsonl", docs)
    how = ["--archive", str(tiny.archive)] if mode == "client" else ["--model", tiny.encoder_id]
    options = [*how, "--encode", mode, "--bulk-size", "10", "--workers", "1"]
    command = ["ingest", index, str(source), *options]
    bulk = r"POST .*_bulk"
    with FaultyProxy(cluster_url) as proxy:
        proxy.faults.append(Fault(bulk, "delay", times=1000, seconds=0.1))
        first = start(*command, "--url", proxy.url)
        proxy.wait_for(bulk, count=5)
        said = end(first, name, incident)
        told = [] if name == "SIGKILL" else ["interrupted after", "Run the same command again"]
        incident.said(said, *told)
    client.indices.refresh(index=index)
    assert 10 <= client.count(index=index)["count"] < len(docs)
    again = start(*command, "--json", "--url", cluster_url)
    answer, said = again.communicate(timeout=120)
    incident.is_over()
    assert again.returncode == 0, said
    report = json.loads(answer)
    assert (report["read"], report["indexed"], report["refused"]) == (200, 200, 0)
    incident.documents([doc.id for doc in docs], [hit["_id"] for hit in indexed(client, index)])
