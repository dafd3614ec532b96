"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from opensearchpy import OpenSearch


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--write-incidents``; options can only be added here, not in tests/integration."""
    parser.addoption("--write-incidents", action="store_true", help="write the table of docs/reliability.md")


@pytest.fixture(scope="session")
def cluster_url() -> Iterator[str]:
    """A real OpenSearch: the one at ``OSKIT_TEST_URL``, else a local node of this test run's own."""
    if url := os.environ.get("OSKIT_TEST_URL"):
        yield url
        return
    from oskit.localnode import LocalNode

    with LocalNode() as node:
        yield node.url


@pytest.fixture(scope="session")
def client(cluster_url: str) -> OpenSearch:
    """An opensearch-py client of the real OpenSearch."""
    from oskit.cluster.client.connection import ConnectionSettings, connect

    return connect(ConnectionSettings(url=cluster_url))
