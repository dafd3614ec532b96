"""A load on a local Ray: two encoders, one of them killed; and the account of it all."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from archives import encoder_archive
from incidents import Incident
from opensearchpy import OpenSearch
from scipy.sparse import csr_matrix
from tiny_models import documents, index, indexed

from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.token_weights import DelegatingEncoder
from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.ingest.load import IngestInterrupted, ingest
from oskit.cluster.ingest.ray_encoders import RayJob
from oskit.data.documents import Document
from oskit.encoder.opening import open_encoder
from oskit.errors import IndexingError

ray = pytest.importorskip("ray", exc_type=ImportError)

__all__ = ["index"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    """One Ray for all tests; loads use what is connected."""
    there = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}  # for the classes below
    cpus = None if os.environ.get("RAY_ADDRESS") else 2
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, runtime_env=there)
    yield
    ray.shutdown()


class Hanging(DelegatingEncoder[ArchiveEncoder]):
    """The first process that encodes writes its id into a file, and waits to be killed."""

    def __init__(self, archive: str, flag: str) -> None:
        super().__init__(ArchiveEncoder.open(archive))
        self.archive = self._encoder.archive
        self._flag = Path(flag)

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        try:
            with self._flag.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return super().document_matrix(texts)
        time.sleep(600)
        raise AssertionError("nobody came")


def url_of(client: OpenSearch) -> str:
    return str(client.transport.connection_pool.connections[0].host)


def job(client: OpenSearch, archive: Path, flag: Path | None = None) -> RayJob:
    where = functools.partial(connect, ConnectionSettings(url=url_of(client)))
    if flag is not None:
        return RayJob(where, functools.partial(Hanging, str(archive), str(flag)), encoders=2)
    return RayJob(where, functools.partial(open_encoder, str(archive)), encoders=2)


@pytest.mark.incident(
    during="`ingest --ray`",
    what="a process that encodes is killed",
    then="its documents are encoded by another, each is stored once, the account is whole",
)
def test_one_of_two_encoders_is_killed(
    client: OpenSearch, index: str, tmp_path: Path, incident: Incident
) -> None:
    archive, flag, docs = encoder_archive(tmp_path / "encoder.zip"), tmp_path / "pid", documents(300)
    encoder, killed, done = open_encoder(archive), [], []

    def kill() -> None:
        while not (flag.exists() and flag.read_text()):
            time.sleep(0.1)
        killed.append(int(flag.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    incident.begins()
    threading.Thread(target=kill, daemon=True).start()
    stream = [*docs, docs[3], Document("bad", "x", fields={"_routing": 1})]
    on_ray = job(client, archive, flag)
    report = ingest(client, index, stream, encoder=encoder, ray=on_ray, progress=done.append)
    assert killed and killed[0] != os.getpid()
    assert (report.read, report.indexed, report.refused, report.duplicates) == (302, 300, 1, 1)
    assert report.truncation is not None and report.truncation.texts >= 300
    assert sum(done) == 302 and 0 < (report.encoder_busy or 0) <= 1
    incident.said("")
    hits = indexed(client, index)
    incident.documents([doc.id for doc in docs], [hit["_id"] for hit in hits])
    exact = encoder.document_weights([hit["_source"]["passage"] for hit in hits])
    for hit, weights in zip(hits, exact, strict=True):
        assert hit["_source"].get("embedding", {}) == pytest.approx(weights, abs=1e-5)

    again = ingest(client, index, docs, encoder=encoder, ray=job(client, archive))
    assert (again.indexed, again.unchanged) == (300, 300)
    assert ingest(client, index, docs, encoder=encoder).unchanged == 300, "the marks are those of any load"


def test_ctrl_c_and_another_archive(client: OpenSearch, index: str, tmp_path: Path) -> None:
    archive, docs = encoder_archive(tmp_path / "encoder.zip"), documents(200)
    encoder = open_encoder(archive)

    def interrupted() -> Iterator[Document]:
        yield from docs
        raise KeyboardInterrupt

    with pytest.raises(IngestInterrupted) as caught:
        ingest(client, index, interrupted(), encoder=encoder, ray=job(client, archive))
    assert caught.value.report.read == caught.value.report.indexed <= 200
    other = encoder_archive(tmp_path / "other.zip", seed=1)
    with pytest.raises(IndexingError, match="the encoder of a machine of Ray's is not the one here"):
        ingest(client, index, docs, encoder=encoder, ray=job(client, other))


def test_the_command(
    client: OpenSearch, index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the cluster refuses comes home with its reason; and a new index in the place of another."""
    archive, letters = encoder_archive(tmp_path / "encoder.zip"), tmp_path / "letters.jsonl"
    source = tmp_path / "docs.jsonl"
    rows = [{"_id": str(n), "text": f"fox {n}", "when": {"y": 1} if n else "2020-01-01"} for n in range(40)]
    command = ["ingest", index, str(source), "--archive", str(archive), "--url", url_of(client)]
    command += ["--dead-letter", str(letters), "--json"]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    assert main(command) == 0
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main([*command, "--encoders", "2", "--ray"]) == 10
    told = json.loads(capsys.readouterr().out)
    assert (told["read"], told["indexed"], told["unchanged"], told["refused"]) == (40, 1, 1, 39)
    reasons = {line["_id"]: line["_oskit"] for line in map(json.loads, letters.read_text().splitlines())}
    assert sorted(reasons, key=int) == [str(n) for n in range(1, 40)]
    assert all(note["status"] == 400 and "when" in note["reason"] for note in reasons.values())
    assert main([*command, "--recreate", "--ray"]) == 10
    told = json.loads(capsys.readouterr().out)
    # `when` is what the first document has that arrives: a date, or an object as in all others.
    assert told["indexed"] in (1, 39)
    assert (told["read"], told["refused"], told["unchanged"]) == (40, 40 - told["indexed"], 0)
