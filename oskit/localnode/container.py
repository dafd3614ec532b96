"""A local OpenSearch in a container, with the interface of `LocalNode`."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, Self

from oskit.errors import NodeError, UsageError
from oskit.localnode.artifacts import OPENSEARCH_VERSION, Progress
from oskit.localnode.configuration import SETTINGS
from oskit.localnode.diagnosis import start_error
from oskit.localnode.engine import container_name, docker_engine, find_container
from oskit.localnode.health import is_ready
from oskit.localnode.image import DEFAULT_TAG
from oskit.localnode.node import (
    Node,
    NodeStatus,
    describe,
    read_record,
    remove_record,
    write_record,
)
from oskit.localnode.paths import locked, state_root
from oskit.localnode.ports import check_port, first_free
from oskit.localnode.processes import process_of
from oskit.localnode.service_account import node_account

OFFICIAL_IMAGE = f"opensearchproject/opensearch:{OPENSEARCH_VERSION}"
_DATA = "/usr/share/opensearch/data"


class DockerNode(Node):
    """A real OpenSearch in a container, without its security plugin, reachable from this machine only.

    Args:
        name, port, heap, settings, timeout, progress: See :class:`oskit.localnode.node.Node`. The data of
            a named node are in a volume.
        image: The image; by default ``OSKIT_OPENSEARCH_IMAGE``, then the one that `build_image` made if it
            is there, then the official one.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        image: str | None = None,
        port: int | None = None,
        heap: str = "1g",
        settings: Mapping[str, Any] | None = None,
        timeout: float = 300,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(name, port=port, heap=heap, settings=settings, timeout=timeout, progress=progress)
        self._image = image
        self._id: str | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._engine: Any = None

    @property
    def url(self) -> str:
        container = self._container()
        if container is None or container.status != "running":
            raise NodeError(
                f"The node {self.name or '(temporary)'!r} does not run",
                hint="Start it: oskit node start --docker",
            )
        return _url(container)

    def start(self, *, detach: bool = False) -> Self:
        if self.name is None:
            if self._running() is None:
                self._start(detach=False)
            return self
        state = state_root(node_account())
        with locked(state / f".{self.name}.lock"):
            record = read_record(self._folder())
            if record and record["kind"] == "process" and process_of(record):
                raise UsageError(
                    f"The node {self.name!r} runs as a process", hint="Stop it first: oskit node stop"
                )
            if self._running() is None:
                self._start(detach=detach)
                write_record(state / self.name, {"kind": "docker", "container": self._id})
        return self

    def stop(self) -> bool:
        container = self._container()
        ran = container is not None and container.status == "running"
        if container is not None:
            with contextlib.suppress(_docker_errors().NotFound):
                if self.name is not None:
                    container.stop(timeout=30)  # its indexes are closed, because its data stay
                container.remove(force=True, v=True)
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
            self._reaper.wait(60)
        if self.name is not None and (read_record(self._folder()) or {}).get("kind") == "docker":
            remove_record(self._folder())
        self._id, self._reaper, self._started_here = None, None, False
        return ran

    def status(self) -> NodeStatus:
        container = self._container()
        if container is None or container.status != "running":
            return NodeStatus(self.name, "docker", "stopped")
        started = datetime.datetime.fromisoformat(container.attrs["State"]["StartedAt"])
        uptime = datetime.datetime.now(datetime.UTC) - started
        usage = container.exec_run(["du", "-sk", _DATA])
        size = usage.output.split()[:1] if usage.exit_code == 0 else []
        return describe(
            NodeStatus(
                self.name,
                "docker",
                "starting",
                url=_url(container),
                container=container.short_id,
                uptime_seconds=round(uptime.total_seconds(), 1),
                data_bytes=int(size[0]) * 1024 if size else None,
            )
        )

    def logs(self, lines: int | None = None) -> str:
        container = self._container()
        if container is None:
            return ""
        tail: int | str = "all" if lines is None else lines
        return bytes(container.logs(tail=tail)).decode(errors="replace")

    def _start(self, *, detach: bool) -> None:
        engine = self._docker()
        image = self._find_image()
        if self._port:
            check_port(self._port)
        port = self._port or (first_free() if self.name else None)
        self._remove_dead()
        volumes = {self._volume(): {"bind": _DATA, "mode": "rw"}} if self.name else {}
        errors = _docker_errors()
        self._started_here = True
        try:
            container = engine.containers.create(
                image,
                name=f"oskit-{self.name}" if self.name else None,
                labels={"oskit.node": self.name or ""},
                environment=self._environment(),
                ports={"9200/tcp": ("127.0.0.1", port)},
                volumes=volumes,
            )
            self._id = container.id
            if not detach:
                self._reaper = subprocess.Popen(
                    [sys.executable, "-m", "oskit.localnode.reaper", container.id],
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                )
            container.start()
            self._wait(container)
        except errors.DockerException as error:
            self.stop()
            raise NodeError(f"Docker cannot start {image}: {getattr(error, 'explanation', error)}") from None
        except BaseException:
            self.stop()
            raise
        self._started_here = not detach

    def _environment(self) -> dict[str, str]:
        merged = {**SETTINGS, **self._settings}
        if self.name:
            merged.update({"cluster.name": self.name, "node.name": self.name})
        return {
            "OPENSEARCH_JAVA_OPTS": f"-Xms{self._heap} -Xmx{self._heap}",
            "DISABLE_SECURITY_PLUGIN": "true",
            "DISABLE_INSTALL_DEMO_CONFIG": "true",
            **{key: v if isinstance(v, str) else json.dumps(v) for key, v in merged.items()},
        }

    def _wait(self, container: Any) -> None:
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < self._timeout:
            if self._progress:
                self._progress("Waiting for OpenSearch", round(elapsed), None)
            container.reload()
            if container.status not in ("created", "running"):
                code = container.attrs["State"].get("ExitCode")
                raise start_error(f"its container ended with status {code}", self.logs(200), "above")
            if container.status == "running" and is_ready(_url(container)):
                return
            time.sleep(0.3)
        raise start_error(f"not ready after {self._timeout:.0f} s", self.logs(200), "above")

    def _find_image(self) -> str:
        """The image's name, pulled if it is not here."""
        errors = _docker_errors()
        wanted = self._image or os.environ.get("OSKIT_OPENSEARCH_IMAGE")
        for candidate in (wanted,) if wanted else (DEFAULT_TAG, OFFICIAL_IMAGE):
            with contextlib.suppress(errors.ImageNotFound):
                self._docker().images.get(candidate)
                return candidate
        name = wanted or OFFICIAL_IMAGE
        if self._progress:
            self._progress(f"Pulling {name}", 0, None)
        try:
            self._docker().images.pull(*name.rsplit(":", 1) if ":" in name.rsplit("/", 1)[-1] else (name,))
        except errors.DockerException as error:
            raise NodeError(
                f"The image {name} is not here and cannot be pulled: {getattr(error, 'explanation', error)}",
                hint="Build one without any public image: oskit node image build",
            ) from None
        return name

    def _docker(self) -> Any:
        if self._engine is None:
            self._engine = docker_engine()
        return self._engine

    def _folder(self) -> Any:
        assert self.name is not None
        return state_root(node_account()) / self.name

    def _volume(self) -> str:
        return f"oskit-{self.name}-data"

    def _container(self) -> Any:
        """The container of this node, running or not; None if there is none."""
        reference = self._id or (container_name(self.name) if self.name else None)
        return None if reference is None else find_container(self._docker(), reference)

    def _running(self) -> Any:
        container = self._container()
        return container if container is not None and container.status == "running" else None

    def _remove_dead(self) -> None:
        """A container that ended by itself still has its name."""
        container = self._container()
        if container is not None:
            container.remove(force=True, v=True)


def _url(container: Any) -> str:
    container.reload()
    bindings = container.ports.get("9200/tcp")
    if not bindings:
        raise NodeError(f"The container {container.short_id} publishes no port 9200")
    return f"http://127.0.0.1:{bindings[0]['HostPort']}"


def _docker_errors() -> Any:
    import docker.errors

    return docker.errors
