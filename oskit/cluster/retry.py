"""The retry policy, in one place: what is worth another attempt, how often and how far apart.

opensearch-py's own retries are off (:func:`oskit.cluster.connection.connect`), so that nothing is sent
again behind the back of a caller who must not send it twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from opensearchpy.exceptions import ConnectionError as TransportFailure
from opensearchpy.exceptions import SSLError, TransportError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from oskit.cluster.failures import error_reason

Result = TypeVar("Result")

TRANSIENT_STATUS = frozenset({429, 502, 503, 504})
"""Busy, or a node or proxy that is being restarted."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how far apart.

    The wait before attempt n+1 is random in 0 … min(max_wait_s, first_wait_s · 2^(n-1)), "full jitter",
    so that clients that failed together do not come back together.

    Attributes:
        attempts: Attempts in all, the first included.
        first_wait_s: Upper limit of the first wait, in seconds.
        max_wait_s: Upper limit of every wait, in seconds.
    """

    attempts: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 20.0


DEFAULT_POLICY = RetryPolicy()

HEAP_PAUSE_S = 5.5
"""Least wait after a node's heap was too full for a request. OpenSearch answers that by collecting garbage,
but at most every 5 s (``HierarchyCircuitBreakerService.createOverLimitStrategy``), and until then it refuses
everything."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later.

    A TLS failure or an unknown host does not go away by itself; a refused or cut connection, a time-out,
    429, 502, 503 and 504 may.
    """
    if isinstance(error, TransportFailure):
        return not isinstance(error, SSLError) and "NameResolutionError" not in str(error)
    return isinstance(error, TransportError) and error.status_code in TRANSIENT_STATUS


def with_retries(
    request: Callable[[], Result],
    *,
    policy: RetryPolicy | None = None,
    on_retry: Callable[[str], None] | None = None,
) -> Result:
    """Call ``request`` until it succeeds, fails for good, or the attempts are used up.

    Args:
        request: Must be safe to send twice (idempotent).
        policy: How often and how far apart; :data:`DEFAULT_POLICY` if None.
        on_retry: Told, in one line, why and when there is another attempt.

    Raises:
        Exception: The last failure, untouched.
    """

    chosen = policy or DEFAULT_POLICY
    jitter = wait_random_exponential(multiplier=chosen.first_wait_s, max=chosen.max_wait_s)

    def pause(state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome is not None else None
        return max(jitter(state), HEAP_PAUSE_S if "circuit_breaking_exception" in str(failure) else 0.0)

    def tell(state: RetryCallState) -> None:
        if on_retry is None or state.outcome is None or state.next_action is None:
            return
        failure = state.outcome.exception()
        reason = error_reason(failure) if failure is not None else ""
        on_retry(f"{reason}; attempt {state.attempt_number + 1} of {chosen.attempts}")

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(chosen.attempts),
        wait=pause,
        before_sleep=tell,
        reraise=True,
    )
    return retrying(request)
