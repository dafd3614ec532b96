"""Nodes that a test may kill: they keep their name, address and data over it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

import pytest
from archives import encoder_archive
from opensearchpy import OpenSearch
from tiny_models import graph_that_keeps_words

from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.errors import OskitError
from oskit.localnode import LocalNode
from oskit.localnode.ports import check_port
from oskit.localnode.processes import ProcessId


class OwnNode:
    """A local node. Use it as a context manager; nothing is left of it afterwards.

    Args:
        name: Part of its name.
        **options: As of :class:`oskit.localnode.LocalNode`.
    """

    def __init__(self, name: str, **options: Any) -> None:
        # A port of its own: it comes back on it after a kill, and nobody else has taken it meanwhile.
        self._node = LocalNode(
            f"test-{name}-{uuid.uuid4().hex[:6]}", heap="768m", **{"port": own_port(), **options}
        )
        self._restart: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._node.url

    @property
    def folder(self) -> Path:
        """Its data, configuration and logs."""
        folder = self._node.status().folder
        assert folder is not None
        return folder

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._node.start()

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        pid = self._node.status().pid
        assert pid is not None
        os.killpg(os.getpgid(pid), signal.SIGKILL)
        while ProcessId.of(pid) is not None:
            time.sleep(0.02)

    def kill_and_restart(self) -> None:
        """Kill it, and start it again in the background."""
        url, port = self.url, self._node.port
        self.kill()

        def start() -> None:
            while not _is_free(port):  # its connections hold it for a moment longer than the process lives
                time.sleep(0.1)
            self.start()
            assert self.url == url

        self._restart = threading.Thread(target=start)
        self._restart.start()

    def wait(self) -> None:
        """Until it is back."""
        assert self._restart is not None
        self._restart.join(300)
        assert not self._restart.is_alive()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._restart is not None:
            self._restart.join(300)
        folder = self.folder
        self._node.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def client(node: OwnNode) -> OpenSearch:
    """A client of the module's own ``node``."""
    # A busy machine takes minutes to start a node.
    return connect(ConnectionSettings(url=node.url, retry_for=400))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder, which no other module deploys to a node of this one."""
    return encoder_archive(tmp_path_factory.mktemp("own") / "own-node.zip", model=graph_that_keeps_words())


def own_port() -> int:
    """One that nobody listens on, and that the system gives to nobody who asks for any port."""
    return next(port for port in iter(lambda: random.randint(20_000, 30_000), None) if _is_free(port))


def _is_free(port: int) -> bool:
    try:
        check_port(port)
    except OskitError:
        return False
    return True


def free_port() -> int:
    """One that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
