"""The image's entrypoint, and what keeps an image from being built."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oskit.errors import NodeError
from oskit.localnode import image

ENTRYPOINT = Path(image.__file__).with_name("entrypoint.sh")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A server that prints its arguments instead of starting."""
    program = tmp_path / "bin" / "opensearch"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    program.chmod(0o755)
    # Root is refused, so `id -u` answers as for somebody else.
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "id").write_text('#!/bin/sh\necho "${FAKE_UID:-1000}"\n')
    (tmp_path / "fake" / "id").chmod(0o755)
    yield tmp_path


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{home / 'fake'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(ENTRYPOINT), *arguments],
        cwd=home,
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_names_with_dots_become_settings(home: Path) -> None:
    environment = {
        "discovery.type": "single-node",
        "plugins.ml_commons.max_model_on_node": "5",
        "cluster.name": "a name = with signs\nand lines",
        "plugins.security.disabled": "true",
        "empty.setting": "",
        "OPENSEARCH_JAVA_OPTS": "-Xmx1g",
        "lower": "no dot",
    }
    answer = run(home, "opensearch", "-p", "pid", **environment)
    assert answer.returncode == 0
    assert answer.stdout.splitlines()[-2:] == ["-p", "pid"]
    assert "-Ediscovery.type=single-node" in answer.stdout
    assert "-Eplugins.ml_commons.max_model_on_node=5" in answer.stdout
    assert "-Ecluster.name=a name = with signs\nand lines\n" in answer.stdout
    assert answer.stdout.count("-E") == 3


@pytest.mark.parametrize("arguments", [(), ("opensearch",), ("opensearchwrapper",), ("-Ea.b=c",)])
def test_what_starts_the_server(home: Path, arguments: tuple[str, ...]) -> None:
    answer = run(home, *arguments, **{"node.name": "x"})
    assert "-Enode.name=x" in answer.stdout.splitlines()


def test_other_commands_are_run_as_they_are(home: Path) -> None:
    assert run(home, "echo", "hello", **{"node.name": "x"}).stdout == "hello\n"


def test_root_is_refused(home: Path) -> None:
    answer = run(home, FAKE_UID="0")
    assert answer.returncode == 1 and "cannot run as root" in answer.stderr


def test_without_debootstrap_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(NodeError, match="apt-get install debootstrap"):
        image._check_machine()


def test_without_root_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/sbin/debootstrap")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NodeError, match="sudo oskit node image build"):
        image._check_machine()


def test_without_an_engine_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("docker")
    from oskit.localnode import DockerNode

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(NodeError, match=r"No Docker engine answers.*docker\.io"):
        DockerNode().start()
