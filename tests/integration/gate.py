"""A gate in front of a real node: lets some requests pass, and refuses the others as services do."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable

from http_server import HttpServer, Reply, Request


class Gate(HttpServer):
    """``with Gate(upstream, refusal) as gate``: forwards what ``refusal`` has no answer for.

    Attributes:
        passed: Requests that went through, as ``GET /path``.
        refused: The others.
    """

    def __init__(self, upstream: str, refusal: Callable[[str, str], Reply | None]) -> None:
        super().__init__(self._answer)
        self._upstream = upstream
        self._refusal = refusal
        self.passed: list[str] = []
        self.refused: list[str] = []

    def _answer(self, request: Request) -> Reply:
        path = request.path.partition("?")[0]
        refusal = self._refusal(request.method, path)
        (self.passed if refusal is None else self.refused).append(f"{request.method} {path}")
        return self._forwarded(request) if refusal is None else refusal

    def _forwarded(self, request: Request) -> Reply:
        kind = request.headers.get("Content-Type", "application/json")
        forwarded = urllib.request.Request(
            self._upstream + request.path,
            request.body or None,
            {"Content-Type": kind},
            method=request.method,
        )
        try:
            with urllib.request.urlopen(forwarded) as answer:
                return Reply(answer.status, answer.read(), {"Content-Type": answer.headers["Content-Type"]})
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read(), {"Content-Type": error.headers.get("Content-Type", "")})
