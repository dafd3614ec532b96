"""The image of OpenSearch under testcontainers, and `DockerNode` as people use it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container_support import image_name, require_image

from oskit.localnode import health

pytestmark = [pytest.mark.integration, pytest.mark.container]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """For processes of their own: the image, and no node of this machine's user."""
    require_image(image_name())
    return {**os.environ, "OSKIT_OPENSEARCH_IMAGE": image_name(), "OSKIT_STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def oskit_node(environment: dict[str, str]) -> Iterator[Any]:
    """The real command line with a node of its own name, removed with its data at the end."""
    name = f"test-{os.getpid()}"

    def run(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "oskit", "node", *arguments, "--name", name, "--json"]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        result = json.loads(answer.stdout)
        assert isinstance(result, dict)
        return result

    yield run
    run("stop")
    import docker

    docker.from_env().volumes.get(f"oskit-{name}-data").remove()


def test_the_container_has_the_plugins_and_settings(container_url: str) -> None:
    plugins = {plugin["component"] for plugin in health.ask(container_url, "/_cat/plugins?format=json")}
    assert {
        "opensearch-job-scheduler",
        "opensearch-knn",
        "opensearch-ml",
        "opensearch-neural-search",
    } <= plugins
    settings = health.ask(container_url, "/_nodes/settings?flat_settings=true")["nodes"].values()
    for node in settings:
        assert node["settings"]["plugins.ml_commons.only_run_on_ml_node"] == "false"


def test_a_containers_data_stay_when_it_stops(oskit_node: Any) -> None:
    first = oskit_node("start", "--docker", "--heap", "512m")
    assert first["state"] == "running" and first["kind"] == "docker" and first["version"]
    assert oskit_node("start", "--docker")["container"] == first["container"]
    health.ask(first["url"], "/kept/_doc/1?refresh=true", body={"text": "kept"}, timeout=60)
    assert oskit_node("stop")["stopped"] is True
    assert oskit_node("status")["state"] == "stopped"
    second = oskit_node("start", "--docker", "--heap", "512m")
    assert second["container"] != first["container"]
    assert health.ask(second["url"], "/kept/_doc/1")["_source"] == {"text": "kept"}
    assert oskit_node("stop")["stopped"] is True
    assert oskit_node("stop")["stopped"] is False


def test_a_temporary_container_does_not_outlive_its_process(environment: dict[str, str]) -> None:
    import docker

    script = (
        "import os, signal\n"
        "from oskit.localnode import DockerNode\n"
        "with DockerNode(heap='512m') as node:\n"
        "    print(node.status().container, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    container = answer.stdout.strip()
    engine = docker.from_env()
    deadline = time.monotonic() + 60
    while _exists(engine, container) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _exists(engine, container)


def test_an_image_that_cannot_be_had_is_one_clear_error(environment: dict[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "oskit",
        "node",
        "start",
        "--docker",
        "--image",
        "localhost:1/none:1",
    ]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 8
    assert "localhost:1/none:1 is not here and cannot be pulled" in answer.stderr
    assert "oskit node image build" in answer.stderr and "Traceback" not in answer.stderr


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("debootstrap") is None, reason="only root with debootstrap builds it"
)
def test_an_image_that_is_up_to_date_is_not_built_again(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "oskit", "node", "image", "build", "--json", "--tag", image_name()]
    if "oskit" not in image_name():
        pytest.skip(f"{image_name()} is not built by oskit")
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["built"] is False


def _exists(engine: Any, container: str) -> bool:
    import docker.errors

    try:
        engine.containers.get(container)
    except docker.errors.NotFound:
        return False
    return True
