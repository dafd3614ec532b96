"""A small HTTP server for tests, on a port of its own: one function answers every request."""

from __future__ import annotations

import gzip
import json
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Request:
    """What was asked.

    Attributes:
        method: Such as ``GET``.
        path: With the query, as it was sent.
        headers: Their names in any case.
        body: Empty where there is none; what came compressed (gzip) is not any more.
    """

    method: str
    path: str
    headers: Message
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What is answered.

    Attributes:
        body: Bytes, or what becomes JSON.
        headers: Beside ``Content-Length`` and, for JSON, ``Content-Type``.
        cut_after: Bytes of the body after which the connection breaks off.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None


class HttpServer:
    """``with HttpServer(answer) as server``: serves until the block ends, several requests at once.

    Args:
        answer: Called for each request; None closes the connection without a word.
        tls: For https.

    Attributes:
        url: Where it listens.
    """

    def __init__(
        self, answer: Callable[[Request], Reply | None], *, tls: ssl.SSLContext | None = None
    ) -> None:
        self._server = _Server(("127.0.0.1", 0), _handler_of(answer))
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Silent about clients that hang up, not about mistakes of the function that answers."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _handler_of(answer: Callable[[Request], Reply | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def handle_it(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            reply = answer(Request(self.command, self.path, self.headers, body))
            if reply is None:
                return
            is_json = not isinstance(reply.body, bytes)
            content = json.dumps(reply.body).encode() if is_json else reply.body
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if is_json:
                self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: reply.cut_after])

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_it

        def log_message(self, *_: object) -> None:
            pass

    return Handler
