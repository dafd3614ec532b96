"""What `DockerNode` asks of the engine and keeps in its record, against an engine of a few lines."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest

from oskit.errors import NodeError, UsageError
from oskit.localnode import DockerNode, LocalNode, container, find_node, health, node


class Container:
    """A container that runs from ``start`` on; ``end`` is what it becomes instead."""

    def __init__(self, engine: Engine, name: str, end: str | None) -> None:
        self.id = self.short_id = f"id-of-{name}"
        self.status = "created"
        self.ports = {"9200/tcp": [{"HostPort": "9201"}]}
        self.attrs = {"State": {"ExitCode": 3, "StartedAt": "2026-01-01T00:00:00+00:00"}}
        self._engine, self._name, self._end = engine, name, end

    def start(self) -> None:
        self.status = self._end or "running"

    def stop(self, timeout: int) -> None:
        self.status = "exited"

    def remove(self, *, force: bool, v: bool) -> None:
        self._engine.there.pop(self._name)

    def logs(self, tail: int | str) -> bytes:
        return b"java.io.IOException: No space left on device\n"

    def exec_run(self, _command: list[str]) -> Any:
        return SimpleNamespace(exit_code=0, output=b"12 /data")


class Engine:
    """Containers by name or id, and every image."""

    def __init__(self) -> None:
        self.there: dict[str, Container] = {}
        self.end: str | None = None
        self.containers = SimpleNamespace(get=self._get, create=self._create)
        self.images = SimpleNamespace(get=lambda _name: None)

    def _get(self, reference: str) -> Container:
        for name, found in self.there.items():
            if reference in (name, found.id):
                return found
        raise docker.errors.NotFound("no such container")

    def _create(self, _image: str, *, name: str, **_options: Any) -> Container:
        assert name not in self.there, "its name is taken"
        self.there[name] = Container(self, name, self.end)
        return self.there[name]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    found = Engine()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("OSKIT_STATE_DIR", str(tmp_path))
    for module in (container, node):
        monkeypatch.setattr(module, "docker_engine", lambda: found)
    monkeypatch.setattr(health, "is_ready", lambda url: url == "http://127.0.0.1:9201")
    monkeypatch.setattr(health, "ask", lambda *_: None)
    return found


def test_a_container_is_found_again_by_its_name_until_it_is_stopped(engine: Engine) -> None:
    DockerNode("a").start(detach=True)
    found = find_node("a")
    assert (found.kind, found.url) == ("docker", "http://127.0.0.1:9201")
    assert DockerNode("a").start().status().container == "id-of-oskit-a"
    assert found.status().data_bytes == 12 * 1024
    assert (found.stop(), found.stop()) == (True, False)
    assert (find_node("a").kind, engine.there) == ("process", {})


def test_a_node_that_runs_in_a_container_is_not_started_as_a_process(engine: Engine) -> None:
    DockerNode("a").start(detach=True)
    with pytest.raises(UsageError, match="'a' runs in a container"):
        LocalNode("a").start()


def test_a_container_that_ends_is_told_with_its_log_and_removed(engine: Engine) -> None:
    engine.end = "exited"
    with pytest.raises(NodeError, match="the disk is full"):
        DockerNode("a").start(detach=True)
    assert engine.there == {}
    engine.end = None
    engine.there["oskit-a"] = Container(engine, "oskit-a", None)  # one that ended by itself has the name
    assert DockerNode("a").start(detach=True).url
