"""An HTTP server that answers bulk requests by a script, in the form in which OpenSearch does.

A real cluster cannot be made to refuse single items with 429 on request; the integration tests do the rest
on a real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from opensearchpy import OpenSearch

from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.retry import RetryPolicy
from tests.http_server import HttpServer, Reply, Request


class ScriptedBulk(HttpServer):
    """Use as a context manager.

    Args:
        script: Called with the ids of a request; gives a status for the whole request, or one for each item.

    Attributes:
        requests: The ids of each request so far.
    """

    def __init__(self, script: Callable[[list[str]], int | list[int]]) -> None:
        super().__init__(self._answer)
        self.requests: list[list[str]] = []
        self._script = script

    def _answer(self, request: Request) -> Reply:
        actions = [json.loads(line) for line in request.body.splitlines()[::2]]
        ids = [action["index"]["_id"] for action in actions]
        self.requests.append(ids)
        return _reply(self._script(ids))

    def client(self, policy: RetryPolicy) -> OpenSearch:
        """A client of it."""
        settings = ConnectionSettings(url=self.url)
        return connect(settings, policy=policy)


def _reply(statuses: int | list[int]) -> Reply:
    if isinstance(statuses, int):
        reason = {"type": "some_exception", "reason": f"whole request {statuses}"}
        return Reply(statuses, {"error": {"root_cause": [reason], **reason}, "status": statuses})
    return Reply(body={"items": [{"index": _item(status)} for status in statuses]})


def _item(status: int) -> dict[str, Any]:
    if status < 300:
        return {"status": status}
    cause = {"type": "illegal_argument_exception", "reason": "because"}
    return {
        "status": status,
        "error": {"type": "item_exception", "reason": f"item {status}", "caused_by": cause},
    }
