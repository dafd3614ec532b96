"""A small HTTP proxy in front of a real cluster that fails on request."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import dataclass
from typing import Literal, Self
from urllib.parse import urlsplit

Kind = Literal["status", "reset", "lose-answer", "delay"]


@dataclass
class Fault:
    """What goes wrong with requests that match.

    Attributes:
        pattern: Regular expression, searched in ``"METHOD /path"``.
        kind: ``status`` answers with :attr:`status`; ``reset`` cuts the connection in the middle of the
            request's body; ``lose-answer`` forwards the request and cuts the connection before the answer;
            ``delay`` forwards it after :attr:`seconds`.
        times: How many requests it spoils.
        status: Status to answer with.
        seconds: How long to wait.
    """

    pattern: str
    kind: Kind = "status"
    times: int = 1
    status: int = 503
    seconds: float = 0.0


class FaultyProxy:
    """Forwards to ``upstream``, except where a fault says otherwise. Use it as a context manager.

    Attributes:
        url: Where it listens.
        faults: What goes wrong; the first that matches and has times left.
        requests: ``"METHOD /path"`` of all requests so far.
    """

    def __init__(self, upstream: str, *faults: Fault) -> None:
        parts = urlsplit(upstream)
        self._host, self._port = parts.hostname or "localhost", parts.port or 80
        self.faults = list(faults)
        self.requests: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_server(self._handle, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def count(self, pattern: str) -> int:
        """How many requests so far match."""
        return sum(bool(re.search(pattern, line)) for line in self.requests)

    def _fault_for(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, line):
                fault.times -= 1
                return fault
        return None

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
            line = f"{method} {path}"
            self.requests.append(line)
            fault = self._fault_for(line)
            length = int((re.search(rb"(?i)\r\ncontent-length: *(\d+)", head) or [b"", b"0"])[1])
            if fault is not None and fault.kind == "reset":
                await reader.readexactly(length // 2)
                writer.transport.abort()
                return
            body = await reader.readexactly(length)
            if fault is not None and fault.kind == "status":
                answer = b'{"error":{"type":"faulty_proxy","reason":"on purpose"}}'
                writer.write(
                    b"HTTP/1.1 %d Faulty\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                    b"connection: close\r\n\r\n%s" % (fault.status, len(answer), answer)
                )
                await writer.drain()
                return
            if fault is not None and fault.kind == "delay":
                await asyncio.sleep(fault.seconds)
            answer = await self._forward(head, body)
            if fault is not None and fault.kind == "lose-answer":
                writer.transport.abort()
                return
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            closing = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)
            writer.write(closing.replace(b"\r\n", b"\r\nconnection: close\r\n", 1) + body)
            await writer.drain()
            answer = await reader.read()
            # Else the client keeps a connection that is about to be closed, and may send into the void.
            return answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
        finally:
            writer.close()
