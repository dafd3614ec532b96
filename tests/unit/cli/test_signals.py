"""SIGTERM and SIGHUP end a command as Ctrl-C does."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = """
import time
from pathlib import Path
import click
from oskit.cli.main import cli, main

@click.command()
def slow():
    try:
        Path("begun").touch()
        time.sleep(60)
    finally:
        click.echo("putting back", err=True)
        time.sleep(0.5)
        Path("put-back").touch()

type(cli).get_command = lambda *_: slow
Path("code").write_text(str(main(["slow"])))
"""


class Slow:
    """A command that takes a while and has something to put back."""

    def __init__(self, folder: Path, *ignored: signal.Signals, terminal: int | None = None) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND],
            cwd=folder,
            stdout=terminal,
            stderr=subprocess.PIPE if terminal is None else terminal,
            stdin=terminal,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
            preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in ignored],
        )
        while not (folder / "begun").exists():
            assert self._process.poll() is None

    def send(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            self._process.send_signal(number)
            time.sleep(0.1)  # Python asks for those that came at once in the order of their numbers

    def end(self) -> tuple[int, str]:
        """What it returned, and what it said."""
        _, said = self._process.communicate(timeout=20)
        assert (self._folder / "put-back").exists()
        return int((self._folder / "code").read_text()), said

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def slow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Slow]:
    command = Slow(tmp_path, *getattr(request, "param", ()))
    yield command
    command.close()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_that_is_asked_to_end_puts_back_what_it_changed(slow: Slow, name: str) -> None:
    number = signal.Signals[name]
    slow.send(number, signal.SIGHUP, signal.SIGTERM)  # as a closed terminal and systemd do
    code, said = slow.end()
    assert code == 128 + number
    assert said.strip().splitlines()[-1] == f"Error: interrupted by {name}"


@pytest.mark.parametrize("slow", [[signal.SIGHUP]], indirect=True)
def test_what_is_ignored_stays_ignored(slow: Slow, tmp_path: Path) -> None:
    slow.send(signal.SIGHUP)  # under nohup
    with pytest.raises(subprocess.TimeoutExpired):
        slow._process.wait(1)
    slow.send(signal.SIGTERM)
    assert slow.end()[0] == 143


def test_a_terminal_that_closes(tmp_path: Path) -> None:
    """Nothing can be said any more, and nobody minds."""
    ours, theirs = pty.openpty()
    command = Slow(tmp_path, terminal=theirs)
    os.close(theirs)
    os.close(ours)
    command.send(signal.SIGHUP)  # the kernel's goes to whom the terminal controls
    assert command.end()[0] == 129
    command.close()
