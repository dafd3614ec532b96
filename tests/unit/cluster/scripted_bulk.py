"""An HTTP server that answers bulk requests by a script, in the form in which OpenSearch does.

A real cluster cannot be made to refuse single items with 429 on request; the integration tests do the rest
on a real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from opensearchpy import OpenSearch

from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.retry import RetryPolicy
from tests.http_server import HttpServer, Reply, Request

Item = int | tuple[int, str]


class ScriptedBulk(HttpServer):
    """Use as a context manager.

    Args:
        script: Called with the ids of a request; gives a reply or a status for the whole request, or for each
            item a status, or a status and the cluster's words.

    Attributes:
        requests: The ids of each request so far.
    """

    def __init__(self, script: Callable[[list[str]], Reply | int | Sequence[Item]]) -> None:
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


def _reply(answer: Reply | int | Sequence[Item]) -> Reply:
    if isinstance(answer, Reply):
        return answer
    if isinstance(answer, int):
        reason = {"type": "some_exception", "reason": f"whole request {answer}"}
        return Reply(answer, {"error": {"root_cause": [reason], **reason}, "status": answer})
    return Reply(body={"items": [{"index": _item(item)} for item in answer]})


def _item(item: Item) -> dict[str, Any]:
    if isinstance(item, tuple):
        return {"status": item[0], "error": {"type": "some_exception", "reason": item[1]}}
    status = item
    if status < 300:
        return {"status": status}
    cause = {"type": "illegal_argument_exception", "reason": "because"}
    return {
        "status": status,
        "error": {"type": "item_exception", "reason": f"item {status}", "caused_by": cause},
    }
