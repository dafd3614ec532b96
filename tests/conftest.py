"""Fixtures that all tests share."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from opensearchpy import OpenSearch


pytest_plugins = ["incidents"]

# Haystack reads it when it is imported, and would tell somebody on the internet of each pipeline.
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "false")

_NAMED_NODES = re.compile(r"/test_(container|node)\.py$")
"""Files whose nodes take the first free port from 9200 on: one after the other."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes a file stays in one, which shares its fixtures.

    By the path in an item's id: pytest-xdist's own groups (``xdist_group``) have no effect with pytest 9.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "named nodes" if _NAMED_NODES.search(file) else file

    return ByFile(config, log)


_seconds: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what each file takes, fixtures included."""
    _seconds[Path(report.fspath).stem] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the time goes; in a short run nobody asks."""
    if sum(_seconds.values()) > 60:
        terminalreporter.section("slowest files")
        for name, seconds in _seconds.most_common(15):
            terminalreporter.line(f"{seconds:6.0f} s  {name}")


@pytest.fixture(scope="session")
def cluster_url() -> Iterator[str]:
    """A real OpenSearch: the one at ``OSKIT_TEST_URL``, else a local node of this test run's own."""
    if url := os.environ.get("OSKIT_TEST_URL"):
        yield url
        return
    from oskit.localnode import LocalNode

    with LocalNode(heap="2g") as node:
        yield node.url


@pytest.fixture(scope="session")
def client(cluster_url: str) -> OpenSearch:
    """An opensearch-py client of the real OpenSearch."""
    from oskit.cluster.client.connection import ConnectionSettings, connect

    return connect(ConnectionSettings(url=cluster_url))
