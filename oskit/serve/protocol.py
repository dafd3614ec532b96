"""HTTP/1.1 as uvicorn speaks it, with an end to whatever a client may have one wait for.

uvicorn bounds how long an idle connection is kept after an answer, and nothing else: not a head that never
comes or never ends, nor an answer that nobody reads. A body's time is bounded by the application, which says
so; here by the end of the connection, where a client goes on sending what was refused.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from oskit.serve.refusals import Refusal

HEAD_BYTES = 65_536
"""Of a request's line and headers, but for what comes with the packet that crosses it."""


@dataclass(frozen=True)
class Patience:
    """How long clients may take, and how many there may be.

    Attributes:
        head: Seconds until all headers of a request are here; those of the first from the connection on.
        body: Seconds from there until all of its body is.
        reading: Seconds in which a client takes nothing of what is sent to it.
        connections: At once; more are refused.
    """

    head: float = 15.0
    body: float = 65.0
    reading: float = 60.0
    connections: int = 10_000


class BoundedProtocol(HttpToolsProtocol):
    """A connection."""

    _patience = Patience()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._late: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > self._patience.connections:
            self._refuse(Refusal("Overloaded", "too many connections", status=503, retry_after=5))
            return
        self._expect(self._patience.head)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._late, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES:
            message = f"the request's headers have more than {HEAD_BYTES:,} bytes"
            self._refuse(Refusal("Validation", message, status=431))

    def on_message_begin(self) -> None:
        self._expect(self._patience.head)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._expect(self._patience.body)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        if self._late is not None:
            self._late.cancel()
            self._late = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal("Validation", "this is no HTTP request", status=400))

    def _expect(self, seconds: float) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(seconds, self._end, seconds)

    def _end(self, seconds: float) -> None:
        if self._in_head:
            self._refuse(Refusal("Validation", f"no request was here after {seconds:g} s", status=408))
        else:  # and the application has said so
            self.transport.abort()

    def _watch_reader(self) -> None:
        if self._stuck is None and self.transport is not None:
            self._stuck = self.loop.call_later(self._patience.reading, self.transport.abort)

    def _refuse(self, refusal: Refusal) -> None:
        """Say why, unless something else is being said, and hang up."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
            return
        content = orjson.dumps(refusal.body)
        headers = {
            **refusal.headers,
            "content-type": "application/json",
            "content-length": str(len(content)),
            "connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[refusal.status] + lines.encode() + b"\r\n" + content)
        self.transport.close()
        self._watch_reader()


def bounded(patience: Patience) -> type[BoundedProtocol]:
    """Connections with so much patience."""
    return type("BoundedProtocol", (BoundedProtocol,), {"_patience": patience})
