"""``python -m oskit.localnode.reaper ID`` removes a container when its standard input ends.

The process that started the container holds the other end, so the container does not outlive it.
"""

from __future__ import annotations

import signal
import sys


def main(container: str) -> None:
    """Wait for the end of standard input, then remove the container and its anonymous volumes."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    import docker

    try:
        docker.from_env().api.remove_container(container, force=True, v=True)
    except docker.errors.DockerException:
        return  # it is gone already, or the engine is


if __name__ == "__main__":
    main(sys.argv[1])
