"""The command line of the local node, as far as it needs no server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from oskit.cli.main import cli, main

COMMANDS = ([], ["start"], ["stop"], ["status"], ["logs"], ["image", "build"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_examples(command: list[str]) -> None:
    answer = CliRunner().invoke(cli, ["node", *command, "--help"])
    assert answer.exit_code == 0
    assert "Examples:" in answer.output


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["start", "--image", "x"], 2, "Add --docker"),
        (["start", "--heap", "lots"], 2, "Write it as 1g"),
        (["start", "--port", "0"], 2, "--port"),
        (["start", "--name", "a/b"], 2, "not a name for a node"),
        (["logs", "--lines", "-1"], 2, "--lines"),
    ],
)
def test_bad_options_are_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.setenv("OSKIT_STATE_DIR", str(tmp_path))
    assert main(["node", *arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and words in error and error.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """In a process of its own, where neither package can be imported."""
    script = (
        "import sys\n"
        "sys.modules['docker'] = sys.modules['jgo'] = sys.modules['jgo.maven'] = None\n"
        "from oskit.localnode import DockerNode, LocalNode\n"
        "from oskit.localnode.artifacts import SERVER, resolve\n"
        "from oskit.errors import MissingDependencyError\n"
        "x = DockerNode('x')\n"
        "for attempt in (x.start, DockerNode().start, x.stop, lambda: resolve(SERVER)):\n"
        "    try:\n"
        "        attempt()\n"
        "    except MissingDependencyError as error:\n"
        "        print(error)\n"
    )
    environment = {"OSKIT_STATE_DIR": str(tmp_path), "M2_REPO": str(tmp_path), "PATH": "/usr/bin:/bin"}
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    lines = answer.stdout.splitlines()
    assert len(lines) == 4 and all("pip install 'oskit[node]'" in line for line in lines)
