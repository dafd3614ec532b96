"""The doctor's look at a real cluster."""

from __future__ import annotations

import json
import socket

import pytest
from opensearchpy import OpenSearch

from oskit.cli import main
from oskit.cluster.client.connection import ConnectionSettings
from oskit.doctor import check_cluster

pytestmark = pytest.mark.integration


def test_a_node_of_ours_is_healthy(cluster_url: str) -> None:
    findings = check_cluster(ConnectionSettings(url=cluster_url))
    by_name = {finding.name: finding for finding in findings}
    for name in (
        "connection",
        "version",
        "plugins",
        "may list models",
        "may list indexes",
        "may list pipelines",
    ):
        assert by_name[name].status == "ok", by_name[name]


def test_a_setting_in_the_way_is_named_with_the_call_that_changes_it(
    cluster_url: str, client: OpenSearch, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = "plugins.ml_commons.only_run_on_ml_node"
    client.cluster.put_settings(body={"transient": {setting: True}})
    try:
        assert main(["doctor", "--url", cluster_url, "--json"]) == 7
    finally:
        client.cluster.put_settings(body={"transient": {setting: None}})
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings[setting]["status"] == "failure"
    assert "PUT _cluster/settings" in findings[setting]["advice"]


def test_nothing_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        (finding,) = check_cluster(ConnectionSettings(url=url))
    assert finding.status == "failure"
    assert url in finding.detail
    assert finding.advice
