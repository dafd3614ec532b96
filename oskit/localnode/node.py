"""What a local OpenSearch is, whether it runs as a process or in a container."""

from __future__ import annotations

import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from oskit.data.atomic import write_whole
from oskit.errors import MissingDependencyError, NodeError, UsageError
from oskit.localnode import health
from oskit.localnode.artifacts import Progress
from oskit.localnode.configuration import check_heap, default_heap
from oskit.localnode.engine import docker_engine, find_container
from oskit.localnode.paths import check_name, locked, state_root
from oskit.localnode.processes import process_of
from oskit.localnode.service_account import Account, node_account

Kind = Literal["process", "docker"]
State = Literal["running", "starting", "stopped"]


class NodeStatus(NamedTuple):
    """How a node is.

    Attributes:
        name: The node's name; None for a temporary one.
        kind: A process of this machine, or a container.
        state: Whether it answers, runs without answering (yet), or does not run.
        url: Where it answers.
        pid: Its process; None for a container.
        container: Its container's short id; None for a process.
        version: Of OpenSearch, as the node says.
        health: Of the cluster: green, yellow or red.
        uptime_seconds: Since the process or the container started.
        data_bytes: What its indexes and models take on the disk.
        folder: Where its data and logs are; None for a container.
    """

    name: str | None
    kind: Kind
    state: State
    url: str | None = None
    pid: int | None = None
    container: str | None = None
    version: str | None = None
    health: str | None = None
    uptime_seconds: float | None = None
    data_bytes: int | None = None
    folder: Path | None = None


@dataclass(eq=False)
class Node(ABC):
    """A local OpenSearch; as a context manager it is stopped at the end, whatever happens.

    Args:
        name: A named node keeps its data; one without a name is temporary.
        port: Where to listen on 127.0.0.1; by default any free port, or for a named node the first free
            one from 9200 on.
        heap: Memory of the Java heap, as ``1g`` or ``1500m``; models live outside of it. By default a quarter
            of the memory, 512 MB at least and 2 GB at most.
        settings: For OpenSearch, as in ``opensearch.yml``.
        timeout: Seconds that it may take to become ready.
        progress: Called with what happens, units done and units in all.
    """

    name: str | None = None
    _: KW_ONLY
    port: int | None = None
    heap: str = field(default_factory=default_heap)
    settings: Mapping[str, Any] | None = None
    timeout: float = 300
    progress: Progress | None = None
    kind: ClassVar[Kind]

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        check_heap(self.heap)
        self._started_here = False

    @property
    def url(self) -> str:
        """Where it answers. Raises NodeError unless it runs."""
        if (url := self._url()) is None:
            hint = "Start it: oskit node start" + (" --docker" if self.kind == "docker" else "")
            raise NodeError(f"The node {self.name or '(temporary)'!r} does not run", hint=hint)
        return url

    def start(self, *, detach: bool = False) -> Self:
        """Start it and wait until it is ready; the same node twice is one node.

        Args:
            detach: Let it run on when this process ends; otherwise it ends too, however that happens.

        Raises:
            NodeError: It cannot be started; says why.
            UsageError: The node of this name runs as the other kind.
        """
        if self.name is None:
            if not self._runs():
                self._start(detach=False)
            return self
        with locked(self._state / f".{self.name}.lock"):
            self._refuse_other_kind()
            if self._runs():
                self._wait()  # whoever started it may not have waited
            else:
                self._start(detach=detach)
        return self

    @abstractmethod
    def stop(self) -> bool:
        """Stop it and wait until it has ended; False if it did not run."""

    def status(self) -> NodeStatus:
        """How it is now."""
        seen = self._seen()
        if seen is None:
            return NodeStatus(self.name, self.kind, "stopped")
        status = NodeStatus(self.name, self.kind, "starting", **seen)
        # What it says of itself.
        root = status.url and health.ask(status.url, "/")
        cluster = status.url and health.ask(status.url, "/_cluster/health")
        if not root or not cluster:
            return status
        return status._replace(state="running", version=root["version"]["number"], health=cluster["status"])

    @abstractmethod
    def _seen(self) -> dict[str, Any] | None:
        """What is known of it from outside while it runs, by the names of :class:`NodeStatus`."""

    @abstractmethod
    def logs(self, lines: int | None = None) -> str:
        """The last ``lines`` lines of its output, or all of it."""

    @abstractmethod
    def follow(self, lines: int) -> Iterator[bytes]:
        """The last ``lines`` lines of its output, and what it writes from then on, until it stops."""

    @abstractmethod
    def _url(self) -> str | None:
        """Where it answers, if it runs."""

    @abstractmethod
    def _runs(self) -> bool: ...

    @abstractmethod
    def _start(self, *, detach: bool) -> None:
        """Start it and wait; leaves nothing running if that fails."""

    @abstractmethod
    def _listening(self) -> str | None:
        """Where it listens, once it does. Raises NodeError if it has ended."""

    @abstractmethod
    def _failed(self, problem: str) -> NodeError:
        """The error for a start that failed, with what the log says."""

    def _wait(self) -> str:
        """Wait until it is ready; returns where it answers."""
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < self.timeout:
            if self.progress:
                self.progress("Waiting for OpenSearch", round(elapsed), None)
            url = self._listening()
            if url and health.is_ready(url):
                return url
            time.sleep(0.2)
        raise self._failed(f"not ready after {self.timeout:.0f} s")

    @property
    def _account(self) -> Account | None:
        """Who runs it; None for the current user."""
        return node_account()

    @property
    def _state(self) -> Path:
        return state_root(self._account)

    @property
    def _folder(self) -> Path:
        """Of a named node: where its record is."""
        assert self.name is not None
        return self._state / self.name

    def _refuse_other_kind(self) -> None:
        record = read_record(self._folder)
        if record is not None and record["kind"] != self.kind and _still_runs(record):
            how = "as a process" if record["kind"] == "process" else "in a container"
            raise UsageError(f"The node {self.name!r} runs {how}", hint="Stop it first: oskit node stop")

    def _forget(self) -> None:
        """Remove the record of a named node's last start, if it was one of this kind."""
        if self.name and (read_record(self._folder) or {}).get("kind") == self.kind:
            (self._folder / "node.json").unlink(missing_ok=True)

    def _leave(self) -> None:
        """Stop it at the end of ``with``, unless it ran before."""
        if self._started_here:
            self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self._leave()


def node_folder(name: str) -> Path:
    """The folder of the node of that name; it need not exist."""
    return state_root(node_account()) / check_name(name)


def read_record(folder: Path) -> dict[str, Any] | None:
    """What the last start of a node wrote down; None if there is nothing that can be read."""
    try:
        record = json.loads((folder / "node.json").read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("kind") in ("process", "docker") else None


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write it down so that a reader sees the old record or the new one, never half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "node.json", json.dumps(record))


def _still_runs(record: Mapping[str, Any]) -> bool:
    if record["kind"] == "process":
        return process_of(record) is not None
    # Without an engine no container runs.
    with contextlib.suppress(NodeError, MissingDependencyError):
        container = find_container(docker_engine(), record["container"])
        return container is not None and container.status == "running"
    return False
