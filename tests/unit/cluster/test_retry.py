"""What is worth another attempt, and what is sent again."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from opensearchpy.exceptions import (
    AuthenticationException,
    ConnectionError,
    ConnectionTimeout,
    NotFoundError,
    RequestError,
    SSLError,
    TransportError,
)

from oskit.cli.main import main
from oskit.cluster.client import retry
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.retry import Patience, RetryPolicy, is_transient, with_retries
from oskit.cluster.client.server_words import HEAP_PAUSE_S, meaning
from tests.http_server import HttpServer, Reply, Request

QUICK = RetryPolicy(attempts=3, first_wait_s=0, max_wait_s=0)
BUSY = TransportError(503, "unavailable", {})
BREAKER = meaning("circuit_breaking_exception: [parent] Data too large", 429, "request")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BUSY, True),
        (TransportError(429, "busy", {}), True),
        (TransportError(500, "bug", {}), False),
        (
            TransportError(
                500, "x", {"error": {"reason": "No shard available for [get [.plugins-ml-task]]"}}
            ),
            True,
        ),
        (RequestError(400, "bad", {}), False),
        (AuthenticationException(401, "no", {}), False),
        (ConnectionError("N/A", "refused", OSError()), True),
        (ConnectionTimeout("TIMEOUT", "slow", OSError()), True),
        (ConnectionError("N/A", "no such option", ValueError()), False),
        (SSLError("N/A", "certificate", ssl.SSLError()), False),
        (ConnectionError("N/A", "NameResolutionError(no such host)", OSError()), False),
        (ValueError("ours"), False),
    ],
)
def test_what_passes_by_itself(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected


class Attempt:
    """Fails with each of ``failures`` in turn, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def test_it_is_called_again_until_it_succeeds() -> None:
    request = Attempt(BUSY, BUSY)
    assert with_retries(request, QUICK) == "done"
    assert request.calls == 3


def test_the_last_failure_comes_through_untouched() -> None:
    last = TransportError(502, "gateway", {})
    request = Attempt(BUSY, BUSY, last)
    with pytest.raises(TransportError) as raised:
        with_retries(request, QUICK)
    assert raised.value is last
    assert request.calls == 3


def test_a_refusal_is_final() -> None:
    request = Attempt(RequestError(400, "bad", {}))
    with pytest.raises(RequestError):
        with_retries(request, QUICK)
    assert request.calls == 1


def test_waits_grow_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda _, upper: upper)
    patience = Patience(RetryPolicy(retry_for_s=120, first_wait_s=1, max_wait_s=15))
    assert [patience.wait_s() for _ in range(6)] == [1, 2, 4, 8, 15, 15]


def test_patience_ends_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    patience = Patience(RetryPolicy(retry_for_s=60, first_wait_s=1, max_wait_s=1))
    assert patience.wait_s() is not None
    now = 1058.9
    assert patience.wait_s() is not None
    now = 1060.0
    assert patience.wait_s() is None


def test_no_patience_is_no_second_attempt() -> None:
    assert Patience(RetryPolicy(retry_for_s=0)).wait_s() is None


def test_a_full_heap_is_given_time_for_garbage_collection() -> None:
    patience = Patience(RetryPolicy(first_wait_s=0, max_wait_s=0))
    assert [patience.wait_s(), patience.wait_s(BREAKER)] == [0, HEAP_PAUSE_S]


Answer = int | str
"""A status, or ``lost`` for a connection that is cut before the answer."""


class Server(HttpServer):
    """Answers each request by the next word of a script, and afterwards with 200.

    Attributes:
        lines: ``METHOD /path`` of each request.
    """

    def __init__(self, *script: Answer, error: str = "some_exception") -> None:
        super().__init__(self._answer)
        self.script = list(script)
        self.error = error
        self.lines: list[str] = []

    def _answer(self, request: Request) -> Reply | None:
        self.lines.append(f"{request.method} {request.path}")
        status = self.script.pop(0) if self.script else 200
        if isinstance(status, str):
            return None
        if status == 200:
            version = {"distribution": "opensearch", "number": "3.6.0"}
            return Reply(body={"version": version, "hits": {"hits": []}})
        return Reply(status, {"error": {"type": self.error, "reason": "because"}})


def connected(server: Server, policy: RetryPolicy = QUICK) -> Any:
    """A client whose cluster has answered once."""
    client = connect(ConnectionSettings(url=server.url), policy=policy)
    script, server.script = server.script, []
    client.info()
    server.script = script
    server.lines.clear()
    return client


def post(client: Any, path: str) -> Any:
    return client.transport.perform_request("POST", f"/_plugins/_ml/{path}", body={})


REPEATED: list[Callable[[Any], Any]] = [
    lambda client: client.indices.get_mapping(index="a"),
    lambda client: client.indices.exists(index="a"),
    lambda client: client.indices.put_mapping(index="a", body={}),
    lambda client: client.indices.delete(index="a"),
    lambda client: client.indices.refresh(index="a"),
    lambda client: client.search(index="a", body={}),
    lambda client: client.count(index="a"),
    lambda client: client.indices.analyze(index="a", body={}),
    lambda client: post(client, "models/_search"),
    lambda client: post(client, "_predict/sparse_encoding/x"),
    lambda client: post(client, "models/x/upload_chunk/0"),
]

ONCE: list[Callable[[Any], Any]] = [
    lambda client: client.bulk(index="a", body=b"{}\n"),
    lambda client: client.index(index="a", body={}),
    lambda client: post(client, "models/_register_meta"),
    lambda client: post(client, "models/x/_deploy"),
]


@pytest.mark.parametrize("failure", [429, 502, 503, 504, "lost"])
@pytest.mark.parametrize("request_", REPEATED)
def test_what_is_idempotent_is_sent_again(request_: Callable[[Any], Any], failure: Answer) -> None:
    with Server(failure, failure) as server:
        request_(connected(server))
    assert len(server.lines) == 3
    assert len(set(server.lines)) == 1


@pytest.mark.parametrize("failure", [429, 503, "lost"])
@pytest.mark.parametrize("request_", ONCE)
def test_what_is_not_is_sent_once(request_: Callable[[Any], Any], failure: Answer) -> None:
    with Server(failure) as server, pytest.raises(TransportError):
        request_(connected(server))
    assert len(server.lines) == 1


def test_what_nobody_can_have_received_is_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    with Server() as server:
        client = connected(server)
        server.stop()
        with pytest.raises(ConnectionError), caplog.at_level(logging.WARNING, "oskit"):
            client.index(index="a", body={})
    told = [
        line for line in caplog.messages if line.startswith("The cluster refuses connections; trying again")
    ]
    assert len(told) == QUICK.attempts - 1


@pytest.mark.parametrize("failure", [400, 401, 403, 404, 409, 500])
def test_a_refusal_is_not_repeated(failure: int) -> None:
    with Server(failure) as server, pytest.raises(TransportError):
        connected(server).search(index="a", body={})
    assert len(server.lines) == 1


def test_a_cluster_that_never_answered_is_not_waited_for() -> None:
    with Server("lost") as server:
        client = connect(ConnectionSettings(url=server.url), policy=QUICK)
        with pytest.raises(ConnectionError):
            client.info()
    assert len(server.lines) == 1


def test_a_deletion_whose_answer_was_lost_is_done() -> None:
    with Server("lost", 404) as server:
        assert connected(server).indices.delete(index="a") == {"acknowledged": True}
    with Server(404) as server, pytest.raises(NotFoundError):
        connected(server).indices.delete(index="a")


def test_a_creation_whose_answer_was_lost_is_done() -> None:
    with Server("lost", 400, error="resource_already_exists_exception") as server:
        assert connected(server).indices.create(index="a", body={}) == {"acknowledged": True}
    with Server(400, error="resource_already_exists_exception") as server, pytest.raises(RequestError):
        connected(server).indices.create(index="a", body={})


def test_attempts_are_bounded() -> None:
    with Server(*[503] * 9) as server, pytest.raises(TransportError):
        connected(server).search(index="a", body={})
    assert len(server.lines) == QUICK.attempts


def test_the_command_line_says_why_it_waits(capsys: pytest.CaptureFixture[str]) -> None:
    with Server(503) as server:
        assert main(["models", "--url", server.url]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Note: The cluster is not available (503: because); trying again in ")
    with Server(503) as server:
        assert main(["models", "--url", server.url, "--retry-for", "0"]) == 7


def test_waiting_can_be_switched_off() -> None:
    settings = ConnectionSettings(url="http://localhost:1", retry_for=0)
    assert retry.policy_of(connect(settings)).retry_for_s == 0
