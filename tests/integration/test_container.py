"""The image of OpenSearch under testcontainers, and `DockerNode`."""

from __future__ import annotations

import pytest

from oskit.cluster.node import health

pytestmark = [pytest.mark.integration, pytest.mark.container]


def test_the_container_has_the_plugins_and_answers(container_url: str) -> None:
    plugins = {plugin["component"] for plugin in health.ask(container_url, "/_cat/plugins?format=json")}
    assert {"opensearch-job-scheduler", "opensearch-knn", "opensearch-ml", "opensearch-neural-search"} <= plugins
