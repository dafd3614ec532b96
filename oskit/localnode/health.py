"""Ask a node how it is, over HTTP, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from oskit.errors import NodeError

# A proxy of the environment is for the network, not for this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)


def ask(url: str, path: str, *, body: Any = None, timeout: float = 5) -> Any:
    """The node's JSON answer to a request, or None if it does not (yet) answer with success."""
    try:
        return _send(url, path, body, timeout)
    except _NO_ANSWER:
        return None


def is_ready(url: str) -> bool:
    """Whether the cluster has its shards and ML Commons answers.

    Raises:
        NodeError: It runs on a Java with which no index can ever be created.
    """
    health = ask(url, "/_cluster/health?wait_for_status=yellow&timeout=2s")
    if not health or health["timed_out"] or ask(url, "/_plugins/_ml/stats") is None:
        return False
    # A trimmed Java has no Thai locale data; then every creation of an index fails, saying [thai].
    try:
        _send(url, "/_analyze", {"analyzer": "thai", "text": "ไทย"}, 30)
    except urllib.error.HTTPError as error:
        raise NodeError(
            f"This Java cannot run OpenSearch's analyzers ({error.read().decode(errors='replace')[:200]})",
            hint="It is a trimmed runtime; name a full JDK 21 or newer in OSKIT_JAVA_HOME.",
        ) from None
    except _NO_ANSWER:
        pass  # it stopped in between; the caller notices
    return True


def _send(url: str, path: str, body: Any, timeout: float) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310 - the url is ours
        url + path, data=data, headers={"Content-Type": "application/json"}
    )
    with _OPENER.open(request, timeout=timeout) as answer:
        return json.load(answer)
