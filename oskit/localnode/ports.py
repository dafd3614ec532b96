"""Which ports of this machine can be listened on."""

from __future__ import annotations

import socket

from oskit.errors import NodeError, UsageError

#: A named node listens on the first of these that is free, so usually where everybody expects it.
USUAL_PORTS = range(9200, 9300)


def check_port(port: int) -> None:
    """Raises NodeError if ``port`` of 127.0.0.1 cannot be listened on, UsageError if it is no port."""
    if not 0 < port < 65536:
        raise UsageError(f"{port} is not a port", hint="Choose one from 1 to 65535.")
    reason = _refusal(port)
    if reason:
        raise NodeError(
            f"Port {port} on 127.0.0.1 cannot be used: {reason}",
            hint="Leave the port out to get a free one, or stop what listens there.",
        )


def first_free() -> int:
    """The first usual port that is free."""
    for port in USUAL_PORTS:
        if _refusal(port) is None:
            return port
    raise NodeError(f"No port from {USUAL_PORTS.start} to {USUAL_PORTS.stop - 1} is free", hint="Name one.")


def _refusal(port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror or str(error)
    return None
