"""An archive's upload over a link with delay, beside a serial loop: python -m benchmarks.upload."""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import click
from opensearchpy import OpenSearch

from oskit.archive.archive import CHUNK_SIZE, Archive
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.models.preflight import changing_call, model_setting_problems
from oskit.cluster.models.registry import list_models
from oskit.cluster.models.retire import delete_model
from oskit.cluster.models.upload import register, register_body, upload
from tests.http_server import HttpServer, Reply, Request

FIRST_WINDOW = 14_600
"""Bytes that a new connection may have under way: ten segments (RFC 6928)."""

IDLE_S = 0.2
"""A connection that was idle for so long begins anew (RFC 5681, as Linux does it)."""


class Link:
    """A proxy whose connections to ``upstream`` behave as TCP does over a link with delay.

    Of what a client sends, a window's bytes are under way in one direction, and their acknowledgement takes
    the other. The window doubles with each round trip, from ten segments to ``window`` bytes, and starts anew
    after a pause. The link itself has no limit.

    Args:
        upstream: Where it leads.
        delay_s: One way.
        window: The largest one, in bytes: what the socket buffers of both sides allow (Linux: 4 MiB to send).
    """

    def __init__(self, upstream: str, delay_s: float, window: int) -> None:
        parts = urlsplit(upstream)
        self._host, self._port = parts.hostname or "localhost", parts.port or 9200
        self._delay_s, self._window = delay_s, window
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_server(self._handle, "127.0.0.1", 0, limit=2**20)
        server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _end(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _handle(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * self._delay_s)  # the handshake
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            await asyncio.gather(self._carry(client, writer), self._carry(reader, answer))
        except (ConnectionError, asyncio.CancelledError):  # the latter at the end
            pass
        finally:
            writer.close()
            answer.close()

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """One direction: what is read arrives after the delay, and frees the window after another."""
        window, under_way, last = FIRST_WINDOW, 0, time.monotonic()
        acknowledged: deque[tuple[float, int]] = deque()
        arriving: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def arrive() -> None:
            while True:
                at, data = await arriving.get()
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                target.write(data)
                await target.drain()
                if not data:
                    target.write_eof()
                    return

        arrivals = asyncio.create_task(arrive())
        while True:
            while under_way >= window:
                await asyncio.sleep(max(0.0, acknowledged[0][0] - time.monotonic()))
                while acknowledged and acknowledged[0][0] <= time.monotonic():
                    size = acknowledged.popleft()[1]
                    under_way -= size
                    window = min(self._window, window + size)
            data = await source.read(min(2**16, window - under_way))
            now = time.monotonic()
            if now - last > IDLE_S:
                window, under_way = FIRST_WINDOW, 0
                acknowledged.clear()
            last = now
            under_way += len(data)
            acknowledged.append((now + 2 * self._delay_s, len(data)))
            arriving.put_nowait((now + self._delay_s, data))
            if not data:
                await arrivals
                return


def serial(client: OpenSearch, archive: Archive) -> None:
    """As the uploader of opensearch-py-ml does it: one request after the other."""
    model_id = _registered(client, archive)
    with archive.path.open("rb") as stream:
        for number in range(archive.total_chunks):
            path = f"/_plugins/_ml/models/{model_id}/upload_chunk/{number}"
            client.transport.perform_request("POST", path, body=stream.read(CHUNK_SIZE))


def side_by_side(client: OpenSearch, archive: Archive) -> None:
    """As `oskit deploy` does it."""
    upload(client, archive, _registered(client, archive), lambda *told: None)


CONTENDERS: dict[str, Callable[[OpenSearch, Archive], None]] = {
    "serial loop": serial,
    "oskit": side_by_side,
}


def _registered(client: OpenSearch, archive: Archive) -> str:
    return register(client, register_body(archive, archive.name, None))[0]


class TakesAll:
    """A cluster that stores a chunk in no time, so that the link is all there is to wait for."""

    def __init__(self) -> None:
        self._whole = False

    def __call__(self, request: Request) -> Reply:
        if request.path.endswith("_register_meta"):
            self._whole = False
            return Reply(body={"model_id": "noise", "status": "CREATED"})
        if "/upload_chunk/" in request.path:
            self._whole |= len(request.body) < CHUNK_SIZE  # the last one
            return Reply(body={"status": "Uploaded"})
        if request.path.endswith("/models/noise"):
            state = "REGISTERED" if self._whole else "REGISTERING"
            return Reply(body={"name": "noise", "model_state": state, "algorithm": "SPARSE_ENCODING"})
        return Reply(body={"hits": {"total": {"value": 0}, "hits": []}})


@click.command()
@click.option("--url", help="An OpenSearch that runs; without it a server that stores nothing.")
@click.option("--size", default=400, show_default=True, help="Of the archive, in MB.")
@click.option("--delay", default=20.0, show_default=True, help="Of the link, one way, in ms.")
@click.option("--window", default=4096, show_default=True, help="Of a connection at most, in KiB.")
@click.option("--repeats", default=3, show_default=True, help="Rounds; each contender runs once in a round.")
def main(url: str | None, size: int, delay: float, window: int, repeats: int) -> None:
    """Upload an archive through the link, in turns; models are deleted again."""
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "noise.zip"
        path.write_bytes(os.urandom(10**6) * size + b"end")
        is_real = url is not None
        url = url or stack.enter_context(HttpServer(TakesAll())).url
        near = connect(ConnectionSettings(url=url))
        if is_real and (problems := model_setting_problems(near, uploads=True)):
            near.cluster.put_settings(body=changing_call(problems).body)
        link = stack.enter_context(Link(url, delay / 1000, window * 1024))
        clients = {
            "serial loop": OpenSearch(link.url, timeout=120),
            "oskit": connect(ConnectionSettings(url=link.url)),
        }
        rounds: list[dict[str, float]] = []
        for number in range(repeats):
            times = {}
            for name, send in CONTENDERS.items():
                archive = _noise(path, f"{name} {number} {time.time()}")
                start = time.perf_counter()
                send(clients[name], archive)
                times[name] = time.perf_counter() - start
                for model in list_models(near, {"term": {"model_content_hash_value": archive.sha256}}):
                    delete_model(near, model.model_id, own=True)
            rounds.append(times)
            click.echo("  ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items()))
    ratio = statistics.median(times["serial loop"] / times["oskit"] for times in rounds)
    click.echo(f"\nserial loop / oskit, median over the rounds: {ratio:.2f}   (at least 2)")


def _noise(path: Path, content: str) -> Archive:
    """An archive that no cluster knows."""
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return Archive(
        path=path,
        kind="encoder",
        model_format="ONNX",
        function_name="SPARSE_ENCODING",
        sha256=sha256,
        size=path.stat().st_size,
        name="oskit-benchmark",
        version="1",
        description="noise",
    )


if __name__ == "__main__":
    main()
