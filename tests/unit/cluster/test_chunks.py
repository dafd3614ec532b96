"""Sending an archive's chunks side by side, against a server that watches how they come."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from oskit.archive.archive import CHUNK_SIZE, Archive
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.models import chunks
from oskit.cluster.models.upload import upload
from oskit.errors import ArchiveError, ClusterError
from tests.http_server import HttpServer, Reply, Request

COUNT = 9


class Cluster:
    """Takes chunks; ``refuse`` makes the status of a refusal from a chunk's number and its turn."""

    def __init__(self, refuse: Any = lambda number, turn: None) -> None:
        self.refuse = refuse
        self.stored: dict[int, bytes] = {}
        self.turns: Counter[int] = Counter()
        self.beside: list[tuple[int, int]] = []  # of each request: its chunk, and how many were under way
        self._under_way = 0
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Reply:
        found = re.search(r"/upload_chunk/(\d+)$", request.path)
        if found is None:
            state = "REGISTERED" if COUNT - 1 in self.stored else "REGISTERING"
            return Reply(body={"name": "m", "model_state": state, "algorithm": "SPARSE_ENCODING"})
        number = int(found[1])
        with self._lock:
            self._under_way += 1
            self.turns[number] += 1
            self.beside.append((number, self._under_way))
            status = self.refuse(number, self.turns[number])
        time.sleep(0.05)
        with self._lock:
            self._under_way -= 1
            if status is None:
                self.stored[number] = request.body
        return Reply(status or 200, {"status": "Uploaded"} if status is None else {"error": "on purpose"})


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Nine chunks, the last one shorter."""
    size = 1000
    for module in ("oskit.archive.archive", "oskit.cluster.models.chunks", "oskit.cluster.models.upload"):
        monkeypatch.setattr(f"{module}.CHUNK_SIZE", size)
    assert CHUNK_SIZE == 10_000_000
    path = tmp_path / "archive.zip"
    path.write_bytes(b"".join(bytes([number]) * size for number in range(COUNT - 1)) + b"end")
    return Archive(
        path, "encoder", "ONNX", "SPARSE_ENCODING", "0" * 64, path.stat().st_size, "m", "1", "", "model.onnx"
    )


def send(cluster: Cluster, archive: Archive, present: frozenset[int] = frozenset()) -> list[int]:
    """Upload; what the progress said."""
    told: list[int] = []
    with HttpServer(cluster) as server:
        client = connect(ConnectionSettings(url=server.url, retry_for=30))
        client.info()
        upload(client, archive, "m", lambda what, done, _: told.append(done) if done else None, present)
    return told


def test_side_by_side_and_the_last_one_last_and_alone(archive: Archive) -> None:
    cluster = Cluster()
    told = send(cluster, archive, frozenset({2, 5, COUNT - 1}))
    assert (
        b"".join(cluster.stored.get(n, bytes([n]) * 1000) for n in range(COUNT)) == archive.path.read_bytes()
    )
    assert cluster.turns == dict.fromkeys([0, 1, 3, 4, 6, 7, 8], 1), "what is there is not sent again"
    assert cluster.beside[-1] == (COUNT - 1, 1)
    assert max(beside for _, beside in cluster.beside) in (2, 3, 4)
    assert told == [*range(2000, 8001, 1000), archive.size]


def test_a_refused_chunk_is_sent_again_with_fewer_beside_it(archive: Archive) -> None:
    cluster = Cluster(lambda number, turn: 503 if number == 4 and turn <= 2 else None)
    send(cluster, archive)
    assert b"".join(cluster.stored[n] for n in range(COUNT)) == archive.path.read_bytes()
    assert cluster.turns[4] == 3
    assert sum(cluster.turns.values()) == COUNT + 2
    again = max(at for at, (number, _) in enumerate(cluster.beside) if number == 4)
    assert max(beside for _, beside in cluster.beside[again + 1 :]) <= 2


def test_after_an_error_nothing_is_under_way(archive: Archive) -> None:
    cluster = Cluster(lambda number, turn: 400 if number == 3 else None)
    with HttpServer(cluster) as server:
        client = connect(ConnectionSettings(url=server.url))
        client.info()
        with pytest.raises(ClusterError, match="chunk 4 of 9"):
            upload(client, archive, "m", lambda *told: None)
        requests = len(cluster.beside)
        assert len(cluster.stored) == requests - 1
        time.sleep(0.2)
        assert len(cluster.beside) == requests
    assert COUNT - 1 not in cluster.turns


def test_a_slow_link_takes_one_chunk_at_a_time(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "ARRIVES_WITHIN_S", 0.01)
    cluster = Cluster()
    send(cluster, archive)
    assert {beside for _, beside in cluster.beside} == {1}


def test_a_file_that_changes_meanwhile(archive: Archive) -> None:
    archive.path.write_bytes(archive.path.read_bytes()[:4500])
    with pytest.raises(ArchiveError, match="changed while it was uploaded"):
        send(Cluster(), archive)
