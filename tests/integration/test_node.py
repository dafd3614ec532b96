"""A real OpenSearch as a process: started, used and stopped as people do it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oskit.localnode import health
from oskit.localnode.paths import cache_root
from oskit.localnode.processes import ProcessId
from oskit.localnode.service_account import node_account

pytestmark = pytest.mark.integration


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder for nodes that other users can enter, as the temporary folders of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="oskit-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class CommandLine:
    """The real ``oskit``, with its own folder of nodes."""

    def __init__(self, state: Path, **environment: str) -> None:
        self.command = [sys.executable, "-m", "oskit", "node"]
        self.environment = {**os.environ, "OSKIT_STATE_DIR": str(state), **environment}

    def __call__(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        answer = subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == status, answer.stderr
        assert "Traceback" not in answer.stderr
        return answer

    def json(self, *arguments: str) -> dict[str, Any]:
        result = json.loads(self(*arguments, "--json").stdout)
        assert isinstance(result, dict)
        return result


def test_a_node_from_start_to_stop(state: Path) -> None:
    oskit_node = CommandLine(state)
    try:
        started = oskit_node("start", "--json", "--heap", "512m")
        status = json.loads(started.stdout)
        url, pid = status["url"], status["pid"]
        assert f"export OSKIT_URL={url}\n" in started.stderr
        assert status["state"] == "running" and status["version"] == "3.6.0"
        assert Path(f"/proc/{pid}").stat().st_uid != 0  # also if root starts it
        assert {"opensearch-knn", "opensearch-ml", "opensearch-neural-search"} <= plugins(url)
        health.ask(url, "/kept/_doc/1?refresh=true", body={"text": "kept"})

        assert oskit_node.json("start")["pid"] == pid  # twice is once
        human = oskit_node("status").stdout
        assert url in human and str(pid) in human and "3.6.0" in human
        assert oskit_node.json("status")["health"] in ("green", "yellow")
        assert "started" in oskit_node("logs", "-n", "50").stdout
        assert len(oskit_node("logs", "-n", "3").stdout.splitlines()) == 3
        assert oskit_node("logs", "-n", "0").stdout == ""

        os.kill(pid, signal.SIGKILL)  # behind its back: what was written down is stale now
        deadline = time.monotonic() + 30
        while ProcessId.of(pid) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert oskit_node.json("status")["state"] == "stopped"
        again = oskit_node.json("start")
        assert again["pid"] != pid
        assert health.ask(again["url"], "/kept/_doc/1")["_source"] == {"text": "kept"}

        assert oskit_node.json("stop") == {"name": "default", "stopped": True}
        assert ProcessId.of(again["pid"]) is None
        assert oskit_node.json("stop")["stopped"] is False
        assert oskit_node.json("status")["state"] == "stopped"
    finally:
        oskit_node("stop")


def test_a_start_that_fails_says_why_and_leaves_nothing(state: Path) -> None:
    script = (
        "from oskit.localnode import LocalNode\n"
        "from oskit.errors import NodeError\n"
        "try:\n"
        "    LocalNode('bad', settings={'no.such.setting': 1}).start()\n"
        "except NodeError as error:\n"
        "    print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OSKIT_STATE_DIR": str(state)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "a setting is wrong" in answer.stdout and "no.such.setting" in answer.stdout
    assert CommandLine(state).json("status", "--name", "bad")["state"] == "stopped"


@pytest.mark.parametrize("ending", ["raises", "killed"])
def test_nothing_is_left_of_a_temporary_node(state: Path, ending: str) -> None:
    script = (
        "import os, signal\n"
        "from oskit.localnode import LocalNode\n"
        "with LocalNode(heap='512m') as node:\n"
        "    status = node.status()\n"
        "    print(status.pid, status.folder, flush=True)\n"
        + ("    raise RuntimeError\n" if ending == "raises" else "    os.kill(os.getpid(), signal.SIGKILL)\n")
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OSKIT_STATE_DIR": str(state)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == (1 if ending == "raises" else -signal.SIGKILL), answer.stderr
    pid, folder = answer.stdout.split()
    deadline = time.monotonic() + (0 if ending == "raises" else 60)
    while (ProcessId.of(int(pid)) or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ProcessId.of(int(pid)) is None
    assert not Path(folder).exists()


AS_USER = """
import os, sys
# All that the commands need, while the folders of root can still be read: there may be Python itself.
import encodings.idna, json, platformdirs.unix, rich.console, rich.progress, rich.table
import oskit.cli.log, oskit.cli.commands.node, oskit.extras, oskit.localnode.process
from oskit.cli.main import main
uid, gid = int(sys.argv[1]), int(sys.argv[2])
os.setgroups([]), os.setgid(gid), os.setuid(uid)
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are run by an ordinary user already")
def test_an_ordinary_user_can_start_one(state: Path) -> None:
    account = node_account("nobody")
    assert account is not None
    os.chown(state, account.uid, account.gid)
    cache = cache_root(node_account())
    before = {path.name for path in cache.iterdir()}
    oskit_node = CommandLine(state, OSKIT_CACHE_DIR=str(cache), HOME=str(state))
    oskit_node.command = [sys.executable, "-c", AS_USER, str(account.uid), str(account.gid), "node"]
    try:
        status = oskit_node.json("start", "--heap", "512m")
        assert Path(f"/proc/{status['pid']}").stat().st_uid == account.uid
        assert Path(status["folder"]).stat().st_uid == account.uid
        assert status["state"] == "running"
        assert oskit_node.json("stop")["stopped"] is True
        assert ProcessId.of(status["pid"]) is None
    finally:
        oskit_node("stop")
    assert {path.name for path in cache.iterdir()} == before  # nothing fetched, nothing assembled


def plugins(url: str) -> set[str]:
    return {plugin["component"] for plugin in health.ask(url, "/_cat/plugins?format=json")}
