"""Whether the cluster lets its connectors reach a service."""

from __future__ import annotations

import ipaddress
import random
import re
import socket
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from opensearchpy import OpenSearch

from oskit.cluster.models.configuration import PRIVATE, TRUSTED, Configuration
from oskit.cluster.models.preflight import SettingProblem, all_settings, changing_call, in_force, is_true
from oskit.errors import ClusterError, ClusterSettingsError

_PAUSES_S = (0.1, 0.3, 0.6, 1.0, 1.5)
"""Between two looks at a list that somebody else may be writing too: it can only be replaced as a whole."""


def trust_problems(client: OpenSearch, url: str) -> list[SettingProblem]:
    """What keeps connectors from a URL; empty if nothing does, or if we may not look."""
    try:
        known = all_settings(client)
    except ClusterError:  # services of Amazon show no settings; the connector's creation tells
        return []
    now, found = in_force(known), []
    trusted = now.get(TRUSTED) or []
    trusted = [trusted] if isinstance(trusted, str) else list(trusted)
    parts = urlsplit(url)
    if not any(_matches(pattern, url) for pattern in trusted):
        # The list replaces the one before it, wherever it was set.
        added = f"^{re.escape(f'{parts.scheme}://{parts.netloc}/')}.*$"
        problem = f"its connectors may not call {parts.scheme}://{parts.netloc}"
        found.append(
            SettingProblem(TRUSTED, problem, [*trusted, added], transient=TRUSTED in known["transient"])
        )
    if not is_true(now.get(PRIVATE, False)) and _is_private(parts.hostname or ""):
        problem = f"its connectors may not call private addresses, as that of {parts.hostname} is"
        found.append(SettingProblem(PRIVATE, problem, True, transient=PRIVATE in known["transient"]))
    return found


def have_trusted(client: OpenSearch, url: str, configuration: Configuration | None) -> None:
    """See to it that connectors may call a URL.

    Args:
        configuration: Changes what is in the way; None refuses it.

    Raises:
        ClusterSettingsError: Settings are in the way; the hint has the call that helps.
    """
    for pause_s in _PAUSES_S:
        problems = trust_problems(client, url)
        if not problems:
            return
        if configuration is None:
            break
        configuration.change(problems)
        time.sleep(random.uniform(0, pause_s))  # noqa: S311 - not a secret
    refuse_untrusted(url, problems)


def refuse_untrusted(url: str, problems: Sequence[SettingProblem]) -> None:
    """Refuse a URL that connectors may not call.

    Raises:
        ClusterSettingsError: There are problems; the hint has the call that helps.
    """
    if not problems:
        return
    told = " and ".join(problem.problem for problem in problems)
    raise ClusterSettingsError(
        f"The cluster does not let its connectors reach {url}: {told}",
        hint=f"Give --configure-cluster, or send: {changing_call(problems)}",
    )


def _matches(pattern: str, url: str) -> bool:
    try:
        return re.fullmatch(pattern, url) is not None
    except re.error:  # Java's
        return False


def _is_private(host: str) -> bool:
    """Whether a host is in a private network, as far as that is seen from here."""
    try:
        found = [place[0] for *_, place in socket.getaddrinfo(host, None)]
        return any(not ipaddress.ip_address(str(one).partition("%")[0]).is_global for one in found)
    except (OSError, UnicodeError, ValueError):
        return True
