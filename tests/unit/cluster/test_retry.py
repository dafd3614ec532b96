"""What is worth another attempt."""

from __future__ import annotations

import ssl

import pytest
from opensearchpy.exceptions import (
    AuthenticationException,
    ConnectionError,
    ConnectionTimeout,
    RequestError,
    SSLError,
    TransportError,
)

from oskit.cluster import retry
from oskit.cluster.retry import RetryPolicy, is_transient, with_retries

QUICK = RetryPolicy(attempts=3, first_wait_s=0, max_wait_s=0)
BUSY = TransportError(503, "unavailable", {})
BREAKER = TransportError(429, "circuit_breaking_exception", {"error": {"reason": "[parent] Data too large"}})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BUSY, True),
        (TransportError(429, "busy", {}), True),
        (TransportError(500, "bug", {}), False),
        (RequestError(400, "bad", {}), False),
        (AuthenticationException(401, "no", {}), False),
        (ConnectionError("N/A", "refused", OSError()), True),
        (ConnectionTimeout("TIMEOUT", "slow", OSError()), True),
        (SSLError("N/A", "certificate", ssl.SSLError()), False),
        (ConnectionError("N/A", "NameResolutionError(no such host)", OSError()), False),
        (ValueError("ours"), False),
    ],
)
def test_what_passes_by_itself(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected


class Request:
    """Fails with each of ``failures`` in turn, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def test_it_is_sent_again_until_it_succeeds() -> None:
    request, told = Request(BUSY, BUSY), list[str]()
    assert with_retries(request, policy=QUICK, on_retry=told.append) == "done"
    assert request.calls == 3
    assert [line.rsplit("; ", 1)[1] for line in told] == ["attempt 2 of 3", "attempt 3 of 3"]


def test_the_last_failure_comes_through_untouched() -> None:
    last = TransportError(502, "gateway", {})
    request = Request(BUSY, BUSY, last)
    with pytest.raises(TransportError) as raised:
        with_retries(request, policy=QUICK)
    assert raised.value is last
    assert request.calls == 3


def test_a_refusal_is_final() -> None:
    request = Request(RequestError(400, "bad", {}))
    with pytest.raises(RequestError):
        with_retries(request, policy=QUICK)
    assert request.calls == 1


def test_a_full_heap_is_given_time_for_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    with_retries(Request(BUSY, BREAKER), policy=QUICK)
    assert waits == [0, retry.HEAP_PAUSE_S]
