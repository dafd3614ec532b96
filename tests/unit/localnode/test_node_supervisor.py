"""The supervisor: what it runs ends with the process that asked for it, however that ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oskit.localnode import supervisor
from oskit.localnode.processes import ProcessId


class Supervised:
    """A supervisor of a shell command."""

    def __init__(self, tmp_path: Path, command: str, grace: float = 20) -> None:
        self.folder = tmp_path / "temporary"
        self.folder.mkdir()
        self.log = tmp_path / "log"
        request = {
            "command": ["sh", "-c", command],
            "environment": {"PATH": os.environ["PATH"]},
            "account": {},
            "log": str(self.log),
            "grace": grace,
            "delete": str(self.folder),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None and self.process.stdin is not None
        self.pid = int(self.process.stdout.readline())
        self.process.stdout.close()
        self.stdin = self.process.stdin

    def ended(self) -> bool:
        deadline = time.monotonic() + 20
        while ProcessId.of(self.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        return ProcessId.of(self.pid) is None


def test_the_end_of_its_input_stops_the_command_and_deletes_the_folder(tmp_path: Path) -> None:
    supervised = Supervised(
        tmp_path, "trap 'echo bye; exit 7' TERM; echo started; while :; do sleep 0.05; done"
    )
    while "started" not in supervised.log.read_text():
        time.sleep(0.02)
    assert supervised.folder.is_dir()
    supervised.stdin.close()
    assert supervised.process.wait(20) == 7
    assert ProcessId.of(supervised.pid) is None
    assert not supervised.folder.exists()
    assert supervised.log.read_text().endswith("bye\n")


def test_a_command_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "trap '' TERM; echo deaf; while :; do sleep 0.05; done", grace=0.3)
    while "deaf" not in supervised.log.read_text():
        time.sleep(0.02)
    supervised.stdin.close()
    assert supervised.process.wait(20) == -signal.SIGKILL % 256
    assert ProcessId.of(supervised.pid) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_does_not_outlive_the_supervisor(tmp_path: Path, number: signal.Signals) -> None:
    supervised = Supervised(tmp_path, "exec sleep 60")
    supervised.process.send_signal(number)
    supervised.process.wait(20)
    supervised.stdin.close()
    assert supervised.ended()


def test_it_ends_when_the_command_does(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "exit 3")
    assert supervised.process.wait(20) == 3
    assert not supervised.folder.exists()
    supervised.stdin.close()
