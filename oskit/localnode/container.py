"""A local OpenSearch in a container, with the interface of `LocalNode`."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from oskit.errors import NodeError
from oskit.localnode.artifacts import OPENSEARCH_VERSION
from oskit.localnode.configuration import SETTINGS
from oskit.localnode.diagnosis import start_error
from oskit.localnode.engine import docker_engine, find_container
from oskit.localnode.image import DEFAULT_TAG
from oskit.localnode.node import Node, write_record
from oskit.localnode.ports import check_port, first_free

OFFICIAL_IMAGE = f"opensearchproject/opensearch:{OPENSEARCH_VERSION}"
_DATA = "/usr/share/opensearch/data"


@dataclass(eq=False, kw_only=True)
class DockerNode(Node):
    """A real OpenSearch in a container, without its security plugin, reachable from this machine only.

    Args:
        name, port, heap, settings, timeout, progress: See :class:`oskit.localnode.node.Node`. The data of
            a named node are in a volume.
        image: The image; by default ``OSKIT_OPENSEARCH_IMAGE``, then the one that `build_image` made if it
            is there, then the official one.
    """

    image: str | None = None
    kind = "docker"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._id: str | None = None
        self._reaper: subprocess.Popen[bytes] | None = None

    def stop(self) -> bool:
        container, ran = self._container(), self._runs()
        if container is not None:
            import docker.errors

            with contextlib.suppress(docker.errors.NotFound):
                if self.name is not None:
                    container.stop(timeout=30)  # its indexes are closed, because its data stay
                container.remove(force=True, v=True)
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
            self._reaper.wait(60)
        self._forget()
        self._id, self._reaper, self._started_here = None, None, False
        return ran

    def _seen(self) -> dict[str, Any] | None:
        container = self._running()
        if container is None:
            return None
        started = datetime.datetime.fromisoformat(container.attrs["State"]["StartedAt"])
        uptime = datetime.datetime.now(datetime.UTC) - started
        usage = container.exec_run(["du", "-sk", _DATA])
        size = usage.output.split()[:1] if usage.exit_code == 0 else []
        return {
            "url": _url(container),
            "container": container.short_id,
            "uptime_seconds": round(uptime.total_seconds(), 1),
            "data_bytes": int(size[0]) * 1024 if size else None,
        }

    def logs(self, lines: int | None = None) -> str:
        container = self._container()
        if container is None:
            return ""
        tail: int | str = "all" if lines is None else lines
        return bytes(container.logs(tail=tail)).decode(errors="replace")

    def follow(self, lines: int) -> Iterator[bytes]:
        container = self._container()
        return iter(()) if container is None else container.logs(stream=True, follow=True, tail=lines)

    def _start(self, *, detach: bool) -> None:
        image = self._find_image()
        import docker.errors

        if self.port:
            check_port(self.port)
        port = self.port or (first_free() if self.name else None)
        if (dead := self._container()) is not None:
            dead.remove(force=True, v=True)  # one that ended by itself still has its name
        volumes = {f"oskit-{self.name}-data": {"bind": _DATA, "mode": "rw"}} if self.name else {}
        self._started_here = True
        try:
            container = self._engine.containers.create(
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
            self._wait()
            if self.name is not None:
                write_record(self._folder, {"kind": self.kind, "container": self._id})
        except docker.errors.DockerException as error:
            self.stop()
            raise NodeError(f"Docker cannot start {image}: {getattr(error, 'explanation', error)}") from None
        except BaseException:
            self.stop()
            raise
        self._started_here = not detach

    def _environment(self) -> dict[str, str]:
        merged = {**SETTINGS, **(self.settings or {})}
        if self.name:
            merged.update({"cluster.name": self.name, "node.name": self.name})
        return {
            "OPENSEARCH_JAVA_OPTS": f"-Xms{self.heap} -Xmx{self.heap}",
            "DISABLE_SECURITY_PLUGIN": "true",
            "DISABLE_INSTALL_DEMO_CONFIG": "true",
            **{key: v if isinstance(v, str) else json.dumps(v) for key, v in merged.items()},
        }

    def _url(self) -> str | None:
        container = self._running()
        return None if container is None else _url(container)

    def _runs(self) -> bool:
        return self._running() is not None

    def _listening(self) -> str | None:
        container = self._container()
        if container is None or container.status not in ("created", "running"):
            code = container.attrs["State"].get("ExitCode") if container else "unknown"
            raise self._failed(f"its container ended with status {code}")
        return _url(container) if container.status == "running" else None

    def _failed(self, problem: str) -> NodeError:
        return start_error(problem, self.logs(200), "above")

    def _find_image(self) -> str:
        """The image's name, pulled if it is not here."""
        images = self._engine.images  # without docker this says what to install
        import docker.errors

        wanted = self.image or os.environ.get("OSKIT_OPENSEARCH_IMAGE")
        for candidate in (wanted,) if wanted else (DEFAULT_TAG, OFFICIAL_IMAGE):
            with contextlib.suppress(docker.errors.ImageNotFound):
                images.get(candidate)
                return candidate
        name = wanted or OFFICIAL_IMAGE
        if self.progress:
            self.progress(f"Pulling {name}", 0, None)
        try:
            images.pull(*name.rsplit(":", 1) if ":" in name.rsplit("/", 1)[-1] else (name,))
        except docker.errors.DockerException as error:
            raise NodeError(
                f"The image {name} is not here and cannot be pulled: {getattr(error, 'explanation', error)}",
                hint="Build one without any public image: oskit node image build",
            ) from None
        return name

    @cached_property
    def _engine(self) -> Any:
        return docker_engine()

    def _container(self) -> Any:
        """The container of this node, running or not; None if there is none."""
        reference = self._id or (f"oskit-{self.name}" if self.name else None)
        return None if reference is None else find_container(self._engine, reference)

    def _running(self) -> Any:
        """The container, if it runs."""
        container = self._container()
        return container if container is not None and container.status == "running" else None


def _url(container: Any) -> str:
    bindings = container.ports.get("9200/tcp")
    if not bindings:
        raise NodeError(f"The container {container.short_id} publishes no port 9200")
    return f"http://127.0.0.1:{bindings[0]['HostPort']}"
