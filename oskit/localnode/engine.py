"""The Docker engine of this machine."""

from __future__ import annotations

from typing import Any

from oskit.errors import MissingDependencyError, NodeError


def docker_engine(timeout: int = 600) -> Any:
    """A client of the Docker engine (``docker.DockerClient``); asks it for a sign of life.

    Raises:
        MissingDependencyError: The Python package is not installed.
        NodeError: No engine answers, or it may not be used.
    """
    try:
        import docker.errors  # not docker alone: any folder of that name can be imported
    except ImportError:
        raise MissingDependencyError.for_extra("Containers", "docker", "node") from None
    try:
        client = docker.from_env(timeout=timeout)
        client.ping()
    except docker.errors.DockerException as error:
        reason = str(error)
        if "Permission denied" in reason:
            raise NodeError(
                "This user may not use the Docker engine",
                hint="Add it to the group docker, or leave --docker out to start a process.",
            ) from None
        raise NodeError(
            f"No Docker engine answers ({reason[:200]})",
            hint="Install and start one (on Debian: the packages docker.io and iptables), or leave --docker "
            "out to start a process.",
        ) from None
    return client


def find_container(engine: Any, reference: str) -> Any:
    """The container of that name or id, running or not; None if there is none."""
    import docker.errors

    try:
        return engine.containers.get(reference)
    except docker.errors.NotFound:
        return None
