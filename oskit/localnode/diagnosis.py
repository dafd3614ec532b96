"""Why a node did not start: the lines of its log that matter, and what to do about them."""

from __future__ import annotations

import re

from oskit.errors import NodeError

_CAUSES = (
    (
        r"BindHttpException|BindTransportException|Address already in use",
        "its port is taken",
        "Leave --port out to get a free one, or stop what listens there.",
    ),
    (
        r"Cannot allocate memory|insufficient memory|Could not reserve enough|OutOfMemoryError: Java heap",
        "there is not enough memory",
        "Free some, or choose another --heap.",
    ),
    (r"No space left on device|Disk quota exceeded", "the disk is full", "Free some space."),
    (
        r"failed to obtain node locks|Lock held by another program|LockObtainFailedException",
        "another OpenSearch uses the same data folder",
        "Stop it, or choose another --name.",
    ),
    (
        r"unknown setting|Unknown setting|failed to parse setting|Failed to parse value",
        "a setting is wrong",
        "Correct the settings that were passed.",
    ),
    (
        r"Unrecognized VM option|Error occurred during initialization of|Could not create the Java Virtual",
        "Java refuses its options",
        "Try another JDK by OSKIT_JAVA_HOME, or another --heap.",
    ),
    (
        r"AccessDeniedException|Permission denied|Operation not permitted",
        "it may not use one of its folders",
        "Choose folders that it may use in OSKIT_CACHE_DIR and OSKIT_STATE_DIR.",
    ),
    (
        r"UnsatisfiedLinkError|failed to map segment",
        "a native library could not be loaded (is the file system mounted noexec?)",
        "Choose a folder that allows execution in OSKIT_STATE_DIR.",
    ),
    (
        r"cannot downgrade a node|cannot upgrade a node",
        "its data come from another version of OpenSearch",
        "Choose another --name.",
    ),
)


def start_error(problem: str, log: str, where: str) -> NodeError:
    """The error for a node that did not start.

    Args:
        problem: What was seen, for example that it ended with status 1.
        log: The end of what it wrote.
        where: Where all of it can be read.
    """
    for pattern, cause, hint in _CAUSES:
        if found := re.search(rf"^.*(?:{pattern}).*$", log, flags=re.MULTILINE):
            line = found.group(0).strip()[:300]
            return NodeError(f"OpenSearch did not start: {cause} ({line})", hint=f"{hint} Log: {where}")
    lines = [line.strip() for line in log.splitlines() if re.search(r"ERROR|FATAL|[Ee]xception|error:", line)]
    lines = lines or [line.strip() for line in log.splitlines() if line.strip()][-3:]
    shown = " | ".join(line[:200] for line in lines[:3]) or "it wrote nothing"
    return NodeError(f"OpenSearch did not start: {problem}: {shown}", hint=f"Log: {where}")
