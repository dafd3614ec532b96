"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from opensearchpy import OpenSearch


pytest_plugins = ["incidents"]

# Named nodes take the first free port from 9200 on: one after the other.
_NAMED_NODES = ("test_container", "test_node")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (``-n 2 --dist loadgroup``) a file stays in one, which shares its fixtures."""
    for item in items:
        name = item.path.stem
        item.add_marker(pytest.mark.xdist_group("named nodes" if name in _NAMED_NODES else str(item.path)))


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

    with LocalNode(heap="1g") as node:
        yield node.url


@pytest.fixture(scope="session")
def client(cluster_url: str) -> OpenSearch:
    """An opensearch-py client of the real OpenSearch."""
    from oskit.cluster.client.connection import ConnectionSettings, connect

    return connect(ConnectionSettings(url=cluster_url))
