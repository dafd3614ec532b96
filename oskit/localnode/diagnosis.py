"""Why a node did not start: the lines of its log that matter, and what to do about them."""

from __future__ import annotations

import re

from oskit.cluster.client.server_words import TABLE
from oskit.errors import NodeError


def start_error(problem: str, log: str, where: str) -> NodeError:
    """The error for a node that did not start.

    Args:
        problem: What was seen, for example that it ended with status 1.
        log: The end of what it wrote.
        where: Where all of it can be read.
    """
    said = [line.strip() for line in log.splitlines() if line.strip()]
    for known in TABLE:
        if known.scope == "node" and (line := next(filter(known.found_in, said), "")):
            message = f"OpenSearch did not start: {known.means} ({line[:300]})"
            return NodeError(message, hint=f"{known.do}. Log: {where}")
    lines = [line for line in said if re.search(r"ERROR|FATAL|[Ee]xception|error:", line)] or said[-3:]
    shown = " | ".join(line[:200] for line in lines[:3]) or "it wrote nothing"
    return NodeError(f"OpenSearch did not start: {problem}: {shown}", hint=f"Log: {where}")
