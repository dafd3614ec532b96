"""An HTTP server that answers bulk requests by a script, in the form in which OpenSearch does.

A real cluster cannot be made to refuse single items with 429 on request; the integration tests do the rest
on a real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opensearchpy import OpenSearch

from oskit.cluster.connection import ConnectionSettings, connect
from oskit.cluster.retry import RetryPolicy

Answer = tuple[int, dict[str, Any]]


class ScriptedBulk:
    """Use as a context manager.

    Args:
        script: Called with the ids of a request; gives a status for the whole request, or one for each item.

    Attributes:
        requests: The ids of each request so far.
    """

    def __init__(self, script: Callable[[list[str]], int | list[int]]) -> None:
        self.requests: list[list[str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                actions = [json.loads(line) for line in body.splitlines()[::2]]
                ids = [action["index"]["_id"] for action in actions]
                outer.requests.append(ids)
                status, answer = _answer(script(ids))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True  # the client keeps its connections open
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def client(self, policy: RetryPolicy) -> OpenSearch:
        """A client of it."""
        settings = ConnectionSettings(url=f"http://127.0.0.1:{self._server.server_address[1]}")
        return connect(settings, policy=policy)


def _answer(statuses: int | list[int]) -> Answer:
    if isinstance(statuses, int):
        reason = {"type": "some_exception", "reason": f"whole request {statuses}"}
        return statuses, {"error": {"root_cause": [reason], **reason}, "status": statuses}
    return 200, {"items": [{"index": _item(status)} for status in statuses]}


def _item(status: int) -> dict[str, Any]:
    if status < 300:
        return {"status": status}
    cause = {"type": "illegal_argument_exception", "reason": "because"}
    return {
        "status": status,
        "error": {"type": "item_exception", "reason": f"item {status}", "caused_by": cause},
    }
