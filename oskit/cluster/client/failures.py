"""What opensearch-py, urllib3 and ssl raise, turned into one line that says what to do."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opensearchpy.exceptions import (
    ConnectionError as TransportFailure,
)
from opensearchpy.exceptions import (
    ConnectionTimeout,
    ImproperlyConfigured,
    SerializationError,
    TransportError,
)
from opensearchpy.exceptions import (
    SSLError as TransportTlsFailure,
)

from oskit.errors import (
    ClusterAuthError,
    ClusterConnectionError,
    ClusterError,
    ClusterSettingsError,
)

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


@contextmanager
def cluster_errors(action: str, error: type[ClusterError] = ClusterError) -> Iterator[None]:
    """Turn what the client raises inside the block into errors of oskit.

    Args:
        action: What was tried, as in "cannot ...": ``"create the index 'articles'"``.
        error: Class of what the cluster refuses for another reason than connection or permission.

    Raises:
        ClusterConnectionError: Unreachable, TLS, time-out, or not OpenSearch.
        ClusterAuthError: 401 and 403.
        ClusterSettingsError: A block (disk full, read-only index) or a memory breaker is in the way.
        ClusterError: Anything else, as ``error``.
    """
    try:
        yield
    except (TransportError, SerializationError, ImproperlyConfigured) as failure:
        raise translate(failure, action, error) from failure


def translate(failure: Exception, action: str, error: type[ClusterError] = ClusterError) -> ClusterError:
    """The error of oskit that says what ``failure`` means; see :func:`cluster_errors`."""
    if isinstance(failure, TransportFailure):
        return _connection_error(failure, action)
    if isinstance(failure, TransportError) and isinstance(failure.status_code, int):
        return _response_error(failure, action, error)
    if isinstance(failure, SerializationError):
        return ClusterConnectionError(
            f"Cannot {action}: the answer is not OpenSearch's JSON", hint="Check the address in --url"
        )
    return error(f"Cannot {action}: {_shorten(str(failure))}")


def error_reason(failure: BaseException) -> str:
    """The cluster's own words for a failed request, in one line: root cause first, then what it led to."""
    info = getattr(failure, "info", None)
    if isinstance(failure, TransportFailure):
        return _shorten(str(info))
    detail = info.get("error") if isinstance(info, dict) else None
    if isinstance(detail, str):
        return _shorten(detail)
    if isinstance(detail, dict):
        return _shorten("; caused by: ".join(_reasons(detail)))
    # What is not OpenSearch's own, such as a gateway of AWS, has a message alone.
    if isinstance(info, dict) and (message := info.get("message") or info.get("Message")):
        return _shorten(str(message))
    if isinstance(failure, TransportError) and len(failure.args) > 1:
        return _shorten(_page_title(str(failure.args[1])) or f"status {failure.args[0]}")
    return _shorten(str(failure))


def _page_title(text: str) -> str:
    """The title of a proxy's error page; any other text as it is."""
    found = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    return found[1] if found else text


def _reasons(detail: dict[str, Any]) -> list[str]:
    """The distinct reasons along the chain of ``caused_by``; the root cause's where there is no other."""
    reasons: list[str] = []
    cause: Any = detail
    while isinstance(cause, dict):
        reason = cause.get("reason") or cause.get("type") or ""
        if reason and str(reason) not in reasons:
            reasons.append(str(reason))
        cause = cause.get("caused_by")
    for root in detail.get("root_cause") or []:
        reason = str(root.get("reason") or "") if isinstance(root, dict) else ""
        if reason and not any(reason in known for known in reasons):
            reasons.append(reason)
    return reasons or [json.dumps(detail)]


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


def _connection_error(failure: TransportFailure, action: str) -> ClusterConnectionError:
    url = getattr(failure, "oskit_url", "the cluster")
    problem, hint = _connection_problem(failure, url)
    return ClusterConnectionError(f"Cannot {action}: {url} {problem}", hint=hint)


def _connection_problem(failure: TransportFailure, url: str) -> tuple[str, str]:
    """What is wrong with the connection ("URL does ...") and what to do."""
    causes = list(causes_of(failure))
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    if tls is not None or isinstance(failure, TransportTlsFailure):
        return _tls_problem(tls)
    if isinstance(failure, ConnectionTimeout) or any(isinstance(c, TimeoutError) for c in causes):
        return "did not answer in time", "Try again, or raise --timeout"
    if any(isinstance(cause, socket.gaierror) for cause in causes) or "NameResolutionError" in str(failure):
        return "has a host name that cannot be resolved", "Check --url"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "refuses connections: nothing listens there", _refused_hint(url)
    if any(isinstance(cause, ConnectionResetError | BrokenPipeError) for cause in causes) or any(
        name in str(failure) for name in ("RemoteDisconnected", "BadStatusLine", "IncompleteRead")
    ):
        hint = "Try again; the cluster's log says more"
        if url.startswith("http:"):
            hint = f"If the cluster expects TLS, write https: in --url. {hint}"
        return "closed the connection", hint
    return f"cannot be reached ({error_reason(failure)})", "Check --url and the network"


def _refused_hint(url: str) -> str:
    if re.search(r":(80|443)(/|$)", url):
        return "A URL without a port means 80 or 443; OpenSearch usually listens on 9200"
    return "Check --url (OSKIT_URL), or start a local one with: oskit node start"


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


def _response_error(failure: TransportError, action: str, error: type[ClusterError]) -> ClusterError:
    status, reason = int(failure.status_code), error_reason(failure)
    if status == 401:
        return ClusterAuthError(
            f"Cannot {action}: the cluster refuses the user name or password (401)",
            hint="Set --username (OSKIT_USERNAME) and OSKIT_PASSWORD or --password-file",
        )
    if "index_closed_exception" in str(failure):
        return error(f"Cannot {action}: {reason}", hint=_closed_hint(failure))
    if "cluster_block_exception" in str(failure) or "blocked by:" in reason:
        return ClusterSettingsError(f"Cannot {action}: {reason}", hint=_block_hint(reason))
    if status == 403:
        return _forbidden(reason, action)
    if "no handler found for uri" in reason:
        return error(
            f"Cannot {action}: the cluster does not know this API ({reason})",
            hint=_missing_plugin_hint(reason),
        )
    if status == 400 and "plain HTTP request was sent to HTTPS port" in str(failure):
        return ClusterConnectionError(
            f"Cannot {action}: the cluster expects TLS", hint="Write https: in --url"
        )
    if status == 400 and "SSL certificate" in reason:  # nginx speaks HTTP even then
        return ClusterConnectionError(
            f"Cannot {action}: the cluster wants another client certificate, or one at all ({reason})",
            hint="Give --client-cert and --client-key",
        )
    if "circuit_breaking_exception" in str(failure) or "Memory Circuit Breaker" in reason:
        return ClusterSettingsError(
            f"Cannot {action}: the cluster is short of memory ({reason})",
            hint="Send less at once, free memory on its nodes, or give OpenSearch a larger heap",
        )
    if status == 413:
        return error(
            f"Cannot {action}: the request is too large for the cluster or a proxy in front of it ({reason})",
            hint="Allow 10 MB: http.max_content_length in OpenSearch, client_max_body_size in nginx",
        )
    if status == 429:
        return error(
            f"Cannot {action}: the cluster is busy ({reason})", hint="Try again later or with less at once"
        )
    if status in (502, 503, 504):
        return error(
            f"Cannot {action}: the cluster is not available ({status}: {reason})", hint="Try again later"
        )
    return error(f"Cannot {action}: {reason} ({status})")


_SIGNATURE_HINTS = (
    (r"security token", "The credentials are not valid (any more): log in again"),
    (r"signature (expired|not yet current)|too skewed", "Check the clock of this machine"),
    (r"signature .* does not match", "Check --aws-region and --aws-service, and the secret key"),
    (r"credential should be scoped", "Check --aws-region and --aws-service"),
)
"""What AWS says about a signature, and what to do."""


def _forbidden(reason: str, action: str) -> ClusterAuthError:
    for words, hint in _SIGNATURE_HINTS:
        if re.search(words, reason, re.IGNORECASE):
            return ClusterAuthError(f"Cannot {action}: AWS refuses the signature: {reason}", hint=hint)
    # The user's description that follows is long and none of our business.
    permission = re.search(r"no permissions for \[([^\]]*)\]", reason)
    if permission:
        return ClusterAuthError(
            f"Cannot {action}: the user lacks the permission {permission[1]} (403)",
            hint="Ask the cluster's administrator for a role with it",
        )
    return ClusterAuthError(f"Cannot {action}: the cluster forbids it (403): {reason}")


def _closed_hint(failure: TransportError) -> str:
    detail = failure.info.get("error") if isinstance(failure.info, dict) else None
    name = detail.get("index") if isinstance(detail, dict) else None
    return f"Open the index: POST {name or 'INDEX'}/_open"


def _block_hint(reason: str) -> str:
    if "disk usage" in reason or "flood" in reason:
        return "Free disk space on the nodes; the block goes away by itself"
    if "create-index blocked" in reason:
        # The disk monitor keeps its verdict for a minute and looks every half a minute; until then it sets a
        # block again that somebody lifts.
        return (
            "Mostly all nodes are short of disk space: free some; then the block goes away by itself within "
            "two minutes, unless somebody has set cluster.blocks.create_index"
        )
    return "Lift the block on the index or the cluster first"


def _missing_plugin_hint(reason: str) -> str:
    plugin = "opensearch-ml" if "_plugins/_ml" in reason else "the plugin it belongs to"
    return f"Check the address in --url and that the cluster has {plugin}: GET _cat/plugins"
