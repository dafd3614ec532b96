"""The retry policy, in one place: what is worth another attempt, how often and how far apart.

:class:`RetryingTransport` applies it to every request of a client of
:func:`oskit.cluster.client.connection.connect`, so that no caller has to think of it. Two things are left to
callers, with the same :class:`Patience`: bulk requests, whose documents are retried one by one
(:mod:`oskit.cluster.ingest.bulk`), and requests that must not be sent twice blindly (:func:`with_retries`).
docs/reliability.md explains it to users.
"""

from __future__ import annotations

import json
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from opensearchpy import OpenSearch, Transport
from opensearchpy.exceptions import ConnectionError as TransportFailure
from opensearchpy.exceptions import SerializationError, SSLError, TransportError

from oskit.cluster.client.aws import Service
from oskit.cluster.client.calls import PERMISSION_CHECK, READS, record_change
from oskit.cluster.client.failures import Answer, ForeignAnswer, causes_of, error_reason, heard
from oskit.cluster.client.server_words import ALREADY_THERE, Meaning

Result = TypeVar("Result")

RETRY_FOR_S = 120.0

_log = logging.getLogger("oskit.cluster")

_SAFE_POSTS = re.compile(rf"/_({READS}|flush|undeploy)$|/upload_chunk/\d+$")
"""Paths whose POST may be sent twice: they read, or leave the same behind."""

PLAIN_TEXT = re.compile(r"/_cat(/|$)|/hot_threads$")
"""Paths that OpenSearch itself answers with something else than JSON."""

_BY_INDEX = re.compile(r"/_(mapping|settings|alias)(/|$)")
"""Paths that OpenSearch answers with an object for each index."""

_OWN_RETRIES = re.compile(r"/_bulk$")
"""Paths whose caller decides about every document."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how far apart.

    The wait after failure n is random in 0 … min(max_wait_s, first_wait_s · 2^(n-1)), "full jitter", so that
    clients that failed together do not come back together.

    Attributes:
        retry_for_s: Seconds from the first failure in a row after which no attempt begins; 0 for no second
            attempt. A node takes 20 to 40 s to restart.
        first_wait_s: Upper limit of the first wait, in seconds.
        max_wait_s: Upper limit of every wait, in seconds.
        attempts: Attempts in all, the first included; bounds what answers at once.
    """

    retry_for_s: float = RETRY_FOR_S
    first_wait_s: float = 1.0
    max_wait_s: float = 15.0
    attempts: int = 30


DEFAULT_POLICY = RetryPolicy()


class Patience:
    """One request's failures in a row: whether to try again, and when."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._give_up_at = 0.0

    def wait_s(self, failure: Meaning | None = None) -> float | None:
        """Seconds to wait after one more failure; None if there is to be no other attempt.

        Args:
            failure: What the cluster's words mean, if it said any.
        """
        policy, now = self._policy, time.monotonic()
        if not self._failures:
            self._give_up_at = now + policy.retry_for_s
        self._failures += 1
        upper = min(policy.max_wait_s, policy.first_wait_s * 2.0 ** min(self._failures - 1, 30))
        wait = random.uniform(0, upper)  # noqa: S311 - not a secret
        wait = max(wait, failure.pause_s) if failure else wait
        if self._failures >= policy.attempts or now + wait >= self._give_up_at:
            return None
        return wait


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later.

    A TLS failure, an unknown host or a request that cannot be formed does not go away by itself; a refused or
    cut connection and a time-out may, and so may what the cluster says of itself
    (:mod:`oskit.cluster.client.server_words`).
    """
    if isinstance(error, TransportFailure):
        is_ours = isinstance(error.info, (ValueError, TypeError))
        return not (is_ours or isinstance(error, SSLError) or "NameResolutionError" in str(error))
    known = heard(error)
    return known is not None and known.passes == "soon"


def was_not_sent(error: BaseException) -> bool:
    """Whether nothing of the request can have reached the cluster: nobody listened."""
    return isinstance(error, TransportFailure) and any(
        isinstance(cause, ConnectionRefusedError) for cause in causes_of(error)
    )


class RetryingTransport(Transport):
    """opensearch-py's transport, with our policy in the place of its own retries.

    It waits and sends again what is idempotent where the failure :func:`is_transient`, and anything
    where :func:`was_not_sent`. A cluster that has not answered yet is not waited for: its address is probably
    wrong, and people want to know that at once.

    Args:
        policy: How long and how far apart.
        own_timeout: Whether somebody chose the limit of a request.
        service: Who runs the cluster.
    """

    def __init__(
        self,
        *args: Any,
        policy: RetryPolicy = DEFAULT_POLICY,
        own_timeout: bool = False,
        service: Service = "self-managed",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{**kwargs, "max_retries": 0})
        self.own_timeout = own_timeout
        self.service = service
        self._policy = policy
        self._of_thread = threading.local()
        self._has_answered = False

    @property
    def policy(self) -> RetryPolicy:
        """What holds for requests of this thread."""
        return getattr(self._of_thread, "policy", self._policy)

    @policy.setter
    def policy(self, policy: RetryPolicy) -> None:
        self._of_thread.policy = policy

    def perform_request(
        self, method: str, url: str, params: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """See :class:`opensearchpy.Transport`; raises the last failure, untouched.

        Raises:
            ForeignAnswer: The answer is none of OpenSearch's, such as a gateway's page, or empty.
        """
        if self.service == "aoss":
            if url.endswith("/_refresh"):  # it refreshes by itself, and has no such path
                return Answer({"_shards": {}}, self._address)
            method, url = _as_serverless_has_it(method, url)
        patience = Patience(self.policy)
        answer_was_lost = False
        while True:
            try:
                # The base class takes things out of the dictionary that it is given.
                answer = super().perform_request(method, url, dict(params or {}), *args, **kwargs)
            except TransportError as failure:
                self._has_answered |= isinstance(failure.status_code, int)
                if answer_was_lost and _was_done_before(method, failure):
                    return {"acknowledged": True}
                wait = self._wait_s(method, url, failure, patience)
                if wait is None:
                    raise
                answer_was_lost |= not was_not_sent(failure) and failure.status_code != 429
                tell(failure, wait)
                time.sleep(wait)
            except ForeignAnswer:
                raise
            except SerializationError as failure:
                raise self._foreign(failure.args[0] if failure.args else "") from failure
            else:
                self._has_answered = True
                if not _is_an_answer(method, url, answer):
                    raise self._foreign(answer if isinstance(answer, str) else json.dumps(answer))
                if PERMISSION_CHECK not in (params or {}):
                    record_change(method, url)
                return Answer(answer, self._address) if isinstance(answer, dict) else answer

    @property
    def _address(self) -> str:
        connection = self.connection_pool.connections[0]
        return f"{connection.host}{connection.url_prefix}"

    def _foreign(self, text: object) -> ForeignAnswer:
        return ForeignAnswer(200, "JSON", str(text), self._address)

    def _wait_s(self, method: str, url: str, failure: TransportError, patience: Patience) -> float | None:
        if not self._has_answered or not is_transient(failure) or _OWN_RETRIES.search(url):
            return None
        idempotent = method in ("GET", "HEAD", "PUT", "DELETE") or _SAFE_POSTS.search(url)
        return patience.wait_s(heard(failure)) if idempotent or was_not_sent(failure) else None


def _as_serverless_has_it(method: str, url: str) -> tuple[str, str]:
    """A request in the form that the documentation of Amazon OpenSearch Serverless lists."""
    if method == "GET" and url.endswith("/_alias") and url != "/_alias":
        return method, url.removesuffix("/_alias")  # whose answer has the aliases, and more
    return ("GET" if re.search(r"/_(mget|msearch|validate/query)$", url) else method), url


def _is_an_answer(method: str, url: str, answer: Any) -> bool:
    """Whether OpenSearch may have answered that, as far as can be told without knowing what is looked for."""
    if method == "HEAD" or PLAIN_TEXT.search(url):
        return True
    if not isinstance(answer, dict) or not answer or method != "GET" or not _BY_INDEX.search(url):
        return isinstance(answer, dict)
    return any(isinstance(one, dict) for one in answer.values())


def request_timeout(client: OpenSearch, default_s: float) -> float | None:
    """Limit of a request that takes longer than others, in seconds; None where somebody chose one."""
    return None if getattr(client.transport, "own_timeout", False) else default_s


def limit_of(client: OpenSearch) -> float:
    """Limit of the client's requests, in seconds."""
    return float(getattr(client.transport.connection_pool.connections[0], "timeout", None) or 60)


def policy_of(client: OpenSearch) -> RetryPolicy:
    """The policy of a client; the default one for a client that we did not make."""
    policy = getattr(client.transport, "policy", None)
    return policy if isinstance(policy, RetryPolicy) else DEFAULT_POLICY


@contextmanager
def impatient(client: OpenSearch, retry_for_s: float = 0) -> Iterator[None]:
    """Inside the block requests of this thread are tried again for so long only, as for cleaning up.

    A client that we did not make goes by its own rules.
    """
    transport = client.transport
    if not isinstance(transport, RetryingTransport):
        yield
        return
    policy = transport.policy
    transport.policy = RetryPolicy(retry_for_s)
    try:
        yield
    finally:
        transport.policy = policy


def _was_done_before(method: str, failure: TransportError) -> bool:
    """Whether the refusal of a repeated request means that the first one, whose answer was lost, was done."""
    if method == "DELETE":
        return bool(failure.status_code == 404)
    return method == "PUT" and heard(failure) is ALREADY_THERE


def tell(failure: BaseException | str, wait_s: float) -> None:
    """Log in one line why there is a pause; the command line shows it on stderr.

    Args:
        failure: What was raised, or what is the matter in words.
        wait_s: Until the next attempt, in seconds.
    """
    problem = failure if isinstance(failure, str) else _problem(failure)
    _log.warning("%s; trying again in %.1f s", problem, wait_s)


def tell_once(problem: str, policy: RetryPolicy) -> None:
    """Log in one line what is waited for, and for how long at most."""
    _log.warning("%s; waiting until that changes, %.0f s at most", problem, policy.retry_for_s)


def _problem(failure: BaseException) -> str:
    if was_not_sent(failure):
        return "The cluster refuses connections"
    if known := heard(failure):
        said = f"{getattr(failure, 'status_code', '')}: {error_reason(failure)}"
        return f"{known.means[0].upper()}{known.means[1:]} ({said})"
    return f"The cluster did not answer ({error_reason(failure)})"


def with_retries(request: Callable[[], Result], policy: RetryPolicy) -> Result:
    """Call ``request`` until it succeeds, fails for good, or patience ends.

    For requests that :class:`RetryingTransport` does not repeat; ``request`` finds out by itself whether an
    earlier attempt was carried out.

    Args:
        request: Safe to call twice.
        policy: How long and how far apart; see :func:`policy_of`.

    Raises:
        Exception: The last failure, untouched.
    """
    patience = Patience(policy)
    while True:
        try:
            return request()
        except TransportError as failure:
            # Where nothing was sent, the transport has been patient already.
            passes = is_transient(failure) and not was_not_sent(failure)
            wait = patience.wait_s(heard(failure)) if passes else None
            if wait is None:
                raise
            tell(failure, wait)
            time.sleep(wait)
