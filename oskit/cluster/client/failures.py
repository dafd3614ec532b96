"""What opensearch-py, urllib3 and ssl raise, turned into one line that says what to do."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from opensearchpy import exceptions as raised
from opensearchpy.exceptions import SerializationError, TransportError

from oskit.cluster.client.server_words import FOREIGN, Fault, Meaning, Scope, meaning
from oskit.errors import ClusterAuthError, ClusterConnectionError, ClusterError, ClusterSettingsError

MAX_REASON_LENGTH = 400

# OpenSSL's X509_V_ERR_* codes
CERTIFICATE_PROBLEMS = {
    9: ("its certificate is not valid yet", "Check the clocks of both machines"),
    10: ("its certificate has expired", "Renew it on the cluster"),
    18: ("its certificate is self-signed", "Give it (or its authority) with --ca-certs"),
    19: ("the authority that signed its certificate is not trusted", "Give the authority with --ca-certs"),
    20: ("the authority that signed its certificate is unknown", "Give the authority with --ca-certs"),
    21: ("the authority that signed its certificate is unknown", "Give the authority with --ca-certs"),
    62: ("its certificate is for another host name", "Use a name in the certificate in --url"),
    64: ("its certificate is for another address", "Use a name in the certificate in --url"),
}


REDIRECTS = (301, 302, 303, 307, 308)


class ForeignAnswer(SerializationError):
    """An answer that means success and is none of OpenSearch's, as a gateway's login page.

    Args:
        status: Of the answer.
        kind: Its content type.
        text: What it says.
        url: Who says it.
    """

    def __init__(self, status: int, kind: str, text: str, url: str) -> None:
        said = (
            f"{text[:100]}{'…' if len(text) > 100 else ''}"
            if (text := _page_words(text))
            else "an empty answer"
        )
        super().__init__(f"{url} says, as {kind or 'no content type'} with the status {status}: {said}")


class NoSuchKey(ClusterConnectionError, KeyError):
    """An answer lacks what OpenSearch always has in it."""


class Answer(dict[str, Any]):
    """An answer to a request. What is looked for and not there is told as an error of oskit.

    Args:
        answer: What was answered.
        url: By whom.
    """

    def __init__(self, answer: dict[str, Any], url: str) -> None:
        super().__init__(answer)
        self._url = url

    def __missing__(self, key: str) -> NoReturn:
        failure = ForeignAnswer(200, "JSON", json.dumps(self), self._url)
        raise NoSuchKey(f"{FOREIGN.means} ({failure}; no {key!r} in it)", hint=FOREIGN.do)


@contextmanager
def cluster_errors(
    action: str, error: type[ClusterError] = ClusterError, scope: Scope = "request"
) -> Iterator[None]:
    """Turn what the client raises inside the block into errors of oskit.

    Args:
        action: What was tried, as in "cannot ...": ``"create the index 'articles'"``.
        error: Class of what the cluster refuses for another reason than those below.
        scope: Of what the cluster speaks (:mod:`oskit.cluster.client.server_words`).

    Raises:
        ClusterConnectionError: Unreachable, TLS, time-out, or not OpenSearch.
        ClusterAuthError: 401 and 403.
        ClusterSettingsError: A setting, a block (disk full, read-only index) or a breaker is in the way.
        ClusterError: Anything else, as ``error``.
    """
    try:
        yield
    except (raised.OpenSearchException, raised.ImproperlyConfigured) as failure:
        raise _translate(failure, action, error, scope) from failure


def _translate(failure: Exception, action: str, error: type[ClusterError], scope: Scope) -> ClusterError:
    if isinstance(failure, raised.ConnectionError):
        url = getattr(failure, "oskit_url", "the cluster")
        problem, hint = _connection_problem(failure, url)
        return ClusterConnectionError(f"Cannot {action}: {url} {problem}", hint=hint)
    status, reason = getattr(failure, "status_code", None), error_reason(failure)
    known = heard(failure, scope)
    if known is None:
        return error(f"Cannot {action}: {reason}" + (f" ({status})" if status else ""))
    said = f"{status}: {reason}" if status else reason
    detail = _detail(failure)
    index = detail.get("index") if isinstance(detail, dict) else None
    return error_class(known, error)(f"Cannot {action}: {known.means} ({said})", hint=known.advice(index))


def heard(failure: object, scope: Scope = "request") -> Meaning | None:
    """What a failed request's answer means; None if there was no answer, or nobody knows."""
    if isinstance(failure, SerializationError):  # of a status that means success
        return FOREIGN
    if isinstance(failure, TransportError) and isinstance(failure.status_code, int):
        detail = _detail(failure)
        words = error_words(detail) if isinstance(detail, dict) else error_reason(failure)
        return meaning(words, failure.status_code, scope)
    return None


def error_class(known: Meaning, otherwise: type[ClusterError]) -> type[ClusterError]:
    """Class of the error that tells this; ``otherwise`` where the caller's own says most."""
    return _CLASSES.get(known.fault, otherwise)


_CLASSES: dict[Fault, type[ClusterError]] = {
    "configuration": ClusterSettingsError,
    "credentials": ClusterAuthError,
    "gateway": ClusterConnectionError,
}


def _detail(failure: BaseException) -> Any:
    """What the cluster says of the error: a dictionary, or words; None if the answer is not its own."""
    info = getattr(failure, "info", None)
    return info.get("error") if isinstance(info, dict) else None


def error_reason(failure: BaseException) -> str:
    """The cluster's own words for a failed request, in one line: root cause first, then what it led to."""
    info = getattr(failure, "info", None)
    if isinstance(failure, raised.ConnectionError):
        return _shorten(str(info))
    if location := getattr(failure, "oskit_location", None):
        return f"to {_shorten(location)}"
    detail = _detail(failure)
    if isinstance(detail, str):
        return _shorten(detail)
    if isinstance(detail, dict):
        return _shorten("; caused by: ".join(_reasons(detail)))
    # What is not OpenSearch's own, such as a gateway of AWS, has a message alone.
    if isinstance(info, dict) and (message := info.get("message") or info.get("Message")):
        return _shorten(str(message))
    if isinstance(failure, TransportError) and len(failure.args) > 1:
        return _page_words(str(failure.args[1])) or f"status {failure.args[0]}"
    return _shorten(str(failure))


def _page_words(text: str) -> str:
    """What a proxy's page says, which is mostly in its title."""
    title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    return _shorten(title[1] if title else text)


def error_words(error: Any) -> str:
    """Types and reasons of an error of OpenSearch, in one line, outermost first."""
    if not isinstance(error, dict):
        return str(error or "no reason given")
    parts = dict.fromkeys(
        ": ".join(str(cause[key]) for key in ("type", "reason") if cause.get(key)) for cause in _chain(error)
    )
    return " ".join("; ".join(filter(None, parts)).split()) or "no reason given"


def _reasons(detail: dict[str, Any]) -> list[str]:
    """The distinct reasons along the chain."""
    reasons: list[str] = []
    for cause in _chain(detail):
        # The user's description that follows a missing permission is long and none of our business.
        reason = str(cause.get("reason") or cause.get("type") or "").partition(" and User [")[0]
        if reason and not any(reason in known for known in reasons):
            reasons.append(reason)
    return reasons or [json.dumps(detail)]


def _chain(error: Any) -> Iterator[dict[str, Any]]:
    """An error, what caused it, and the root causes that the chain leaves out."""
    roots = error.get("root_cause") or []
    while isinstance(error, dict):
        yield error
        error = error.get("caused_by")
    yield from (root for root in roots if isinstance(root, dict))


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_REASON_LENGTH else f"{line[: MAX_REASON_LENGTH - 1]}…"


def causes_of(failure: BaseException | None) -> Iterator[BaseException]:
    """``failure`` and everything below it: causes, contexts, wrapped exceptions in ``args`` and ``info``."""
    pending: list[Any] = [failure]
    seen: set[int] = set()
    while pending:
        current = pending.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [
            getattr(current, "info", None),
            getattr(current, "reason", None),
            *current.args,
            current.__cause__,
            current.__context__,
        ]


def _connection_problem(failure: raised.ConnectionError, url: str) -> tuple[str, str]:
    """What is wrong with the connection ("URL does ...") and what to do."""
    causes = list(causes_of(failure))
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    if tls is not None or isinstance(failure, raised.SSLError):
        return _tls_problem(tls)
    if isinstance(failure, raised.ConnectionTimeout) or any(isinstance(c, TimeoutError) for c in causes):
        return "did not answer in time", "Try again, or raise --timeout"
    if any(isinstance(cause, socket.gaierror) for cause in causes) or "NameResolutionError" in str(failure):
        return "has a host name that cannot be resolved", "Check --url"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        hint = "Check --url (OSKIT_URL), or start a local one with: oskit node start"
        if re.search(r":(80|443)(/|$)", url):
            hint = "A URL without a port means 80 or 443; OpenSearch usually listens on 9200"
        return "refuses connections: nothing listens there", hint
    if any(isinstance(cause, ConnectionResetError | BrokenPipeError) for cause in causes) or any(
        name in str(failure) for name in ("RemoteDisconnected", "BadStatusLine", "IncompleteRead")
    ):
        hint = "Try again; the cluster's log says more"
        if url.startswith("http:"):
            hint = f"If the cluster expects TLS, write https: in --url. {hint}"
        return "closed the connection", hint
    return f"cannot be reached ({error_reason(failure)})", "Check --url and the network"


def _tls_problem(error: ssl.SSLError | None) -> tuple[str, str]:
    text = " ".join(str(error).split()).upper()
    if isinstance(error, ssl.SSLCertVerificationError):
        known = CERTIFICATE_PROBLEMS.get(error.verify_code)
        problem, hint = known or (f"certificate: {error.verify_message}", "Check --ca-certs")
        return f"cannot be trusted: {problem}", f"{hint}; --insecure skips the check"
    if any(word in text for word in ("WRONG_VERSION", "RECORD_LAYER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST")):
        return "does not speak TLS", "Write http: instead of https: in --url"
    if "ALERT" in text and ("CERTIFICATE" in text or "UNKNOWN_CA" in text or "HANDSHAKE" in text):
        return "wants another client certificate, or one at all", "Give --client-cert and --client-key"
    return f"failed the TLS handshake ({_shorten(str(error))})", "Check --url, --ca-certs and --client-cert"
