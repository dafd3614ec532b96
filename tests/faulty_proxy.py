"""A small HTTP proxy in front of a real cluster that fails on request."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from dataclasses import dataclass
from typing import Literal, Self
from urllib.parse import urlsplit

Kind = Literal[
    "status", "reset", "lose-answer", "swallow", "delay", "hang", "trickle", "refuse-items", "twice", "page"
]


@dataclass
class Fault:
    """What goes wrong with requests that match.

    Attributes:
        pattern: Regular expression, searched in ``"METHOD /path"``.
        kind: ``status`` answers with :attr:`status`; ``reset`` cuts the connection in the middle of the
            request's body; ``lose-answer`` forwards the request and cuts the connection before the answer;
            ``swallow`` forwards it and never answers; ``delay`` forwards it after :attr:`seconds`; ``hang``
            never answers and forwards nothing;
            ``trickle`` sends the answer in small pieces over :attr:`seconds`; ``page`` answers 200 with a
            login page; ``refuse-items`` forwards every second document of a bulk request and answers for the
            others with :attr:`status`; ``twice`` forwards it two times and gives the answer to the second.
        times: How many requests it spoils.
        status: Status to answer with.
        seconds: How long to wait.
        answer: Body to answer with.
    """

    pattern: str
    kind: Kind = "status"
    times: int = 1
    status: int = 503
    seconds: float = 0.0
    answer: bytes = b'{"error":{"type":"faulty_proxy","reason":"on purpose"}}'


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
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _end(self) -> None:
        self._server.close()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:  # such as requests that hang
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def count(self, pattern: str) -> int:
        """How many requests so far match."""
        return sum(bool(re.search(pattern, line)) for line in self.requests)

    def wait_for(self, pattern: str, *, count: int = 1, wait_s: float = 60) -> None:
        """Until so many requests matched."""
        end = time.monotonic() + wait_s
        while self.count(pattern) < count:
            assert time.monotonic() < end, f"no {pattern} in {self.requests}"
            time.sleep(0.01)

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
                writer.write(
                    b"HTTP/1.1 %d Faulty\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                    b"connection: close\r\n\r\n%s" % (fault.status, len(fault.answer), fault.answer)
                )
                await writer.drain()
                return
            if fault is not None and fault.kind == "page":
                page = b"<html><title>Log in first</title></html>"
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n"
                    b"connection: close\r\n\r\n%s" % (len(page), page)
                )
                await writer.drain()
                return
            if fault is not None and fault.kind == "hang":
                await reader.read()  # until the client goes away
                return
            if fault is not None and fault.kind == "delay":
                await asyncio.sleep(fault.seconds)
            if fault is not None and fault.kind == "twice":
                await self._forward(head, body)
            if fault is not None and fault.kind == "refuse-items":
                answer = await self._refuse_items(head, body, fault.status)
            else:
                answer = await self._forward(head, body)
            if fault is not None and fault.kind == "lose-answer":
                writer.transport.abort()
                return
            if fault is not None and fault.kind == "swallow":
                await reader.read()
                return
            pieces = 20 if fault is not None and fault.kind == "trickle" else 1
            size = -(-len(answer) // pieces)
            for start in range(0, len(answer), size):
                writer.write(answer[start : start + size])
                await writer.drain()
                if fault is not None and pieces > 1:
                    await asyncio.sleep(fault.seconds / pieces)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _refuse_items(self, head: bytes, body: bytes, status: int) -> bytes:
        """Forward the documents with even numbers, and put refusals of the others between their answers."""
        lines = body.splitlines(keepends=True)
        documents = [b"".join(lines[at : at + 2]) for at in range(0, len(lines), 2)]
        taken = b"".join(documents[::2])
        head = re.sub(rb"(?i)(\r\ncontent-length: *)\d+", rb"\g<1>%d" % len(taken), head)
        answer = await self._forward(head, taken)
        answers = iter(json.loads(answer.split(b"\r\n\r\n", 1)[1])["items"])
        error = {"type": "opensearch_rejected_execution_exception", "reason": "on purpose"}
        refused = {"index": {"status": status, "error": error}}
        items = [refused if number % 2 else next(answers) for number in range(len(documents))]
        content = json.dumps({"items": items}).encode()
        return (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (len(content), content)
        )

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
