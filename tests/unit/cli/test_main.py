"""The command line as a whole: help, exit codes, and what it must not load."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import logging
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

from oskit.cli import cli, main
from oskit.cli.log import show_log
from oskit.cli.main import COMMANDS
from oskit.cluster.client.calls import changes, record_change
from oskit.errors import OskitError, VerificationError

ROOT = Path(__file__).parents[3]
HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "onnxruntime",
    "opensearchpy",
    "rich",
    "pydantic",
    "numpy",
}


def _all_commands() -> list[tuple[str, click.Command]]:
    found = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found.append((name, command))
        if isinstance(command, click.Group):
            found += _subcommands(name, command)
    return found


def _subcommands(prefix: str, group: click.Group) -> list[tuple[str, click.Command]]:
    found = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += _subcommands(f"{prefix} {name}", command)
        else:
            found.append((f"{prefix} {name}", command))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_help_of_the_table_is_the_commands_own(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.get_short_help_str(limit=200) == COMMANDS[name]


@pytest.mark.parametrize(
    ("name", "command"), _all_commands(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_explains_itself_with_an_example(name: str, command: click.Command) -> None:
    assert command.help
    if not isinstance(command, click.Group):
        assert "Examples:" in command.help
        assert f"oskit {name}" in command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, json\n"
        "from oskit.cli import main\n"
        "main(['--help'])\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Commands:" in done.stdout
    assert not HEAVY & set(json.loads(done.stderr))


def test_importing_oskit_loads_no_torch() -> None:
    code = "import sys, oskit; assert 'torch' not in sys.modules; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "module",
    [
        "oskit.cluster.models.registry",
        "oskit.cluster.ingest.load",
        "oskit.cluster.search.search",
        "oskit.evaluation.live.verify",
        "oskit.data",
    ],
)
def test_what_talks_to_a_cluster_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_error_is_one_line_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def boom() -> None:
        raise VerificationError("the cluster\ndisagrees", hint="Look at the report")

    monkeypatch.setattr(type(cli), "get_command", lambda *_: boom)
    assert main(["boom"]) == VerificationError.exit_code == 9
    assert capsys.readouterr().err == "Error: the cluster disagrees. Look at the report\n"


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def boom() -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.delenv("OSKIT_TRACEBACK", raising=False)
    monkeypatch.setattr(type(cli), "get_command", lambda *_: boom)
    assert main(["boom"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "RuntimeError: first line second line" in err


def test_a_signal_in_the_middle_of_an_import_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A compiled module that was being initialised says ImportError, of what the handler raised."""

    @click.command()
    def loads() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as came:
            raise ImportError("initialization failed") from came

    monkeypatch.setattr(type(cli), "get_command", lambda *_: loads)
    assert main(["loads"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "Error: interrupted by SIGTERM\n"


def test_changes_of_the_cluster_are_no_notes(capsys: pytest.CaptureFixture[str]) -> None:
    show_log()
    with changes() as made:
        record_change("PUT", "/i")
        logging.getLogger("oskit.cluster").warning("a note")
    assert (str(made), capsys.readouterr().err) == ("PUT i", "Note: a note\n")


def test_a_full_disk_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for path, named in (("/data/file", "/data/file"), (None, "temporary folder")):

        def fail(**_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", path)  # noqa: B023

        monkeypatch.setattr(cli, "main", fail)
        assert main(["x"]) == 3
        said = capsys.readouterr().err
        assert named in said and "TMPDIR" in said and said.count("\n") == 1 and "bug" not in said


def test_usage_errors_point_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--no-such-option"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert "oskit search --help" in err


def test_exit_codes_are_documented() -> None:
    documented = (cli.help or "") + (ROOT / "README.md").read_text(encoding="utf-8")
    classes = [OskitError, *_subclasses(OskitError)]
    for code in {cls.exit_code for cls in classes}:
        assert f"{code} " in documented


def _subclasses(cls: type[OskitError]) -> list[type[OskitError]]:
    return [found for child in cls.__subclasses__() for found in (child, *_subclasses(child))]


def test_a_reader_that_goes_away_is_no_failure() -> None:
    command = [sys.executable, "-m", "oskit", "recipes", "show", "quick"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_command_line_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location(
        "write_cli_reference", ROOT / "docs" / "write_cli_reference.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == module.reference(), "docs/cli.md is out of date: make docs"


def test_13_a_missing_optional_package_is_exit_4_with_the_extra_wherever_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @click.argument("package")
    def boom(package: str) -> None:
        importlib.import_module(package)

    monkeypatch.setattr(type(cli), "get_command", lambda *_: boom)
    for package, extra in (("torch", "export"), ("jinja2", "report"), ("datasets", "train"), ("jgo", "node")):
        monkeypatch.setitem(sys.modules, package, None)
        assert main(["demo", package]) == 4
        assert capsys.readouterr().err == (
            f"Error: oskit demo needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'oskit[{extra}]'\n"
        )
    assert main(["demo", "no_such_module"]) == 1, "what no extra brings is a bug"
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert main(["demo", "torch.no_such_module"]) == 1, "and so is what an installed package lacks"


@pytest.mark.parametrize(
    "args",
    [
        ("demo",),
        ("verify", "no-collection", "--index", "i", "--archive", "a", "--report", "r"),
        ("evaluate", "no-collection", "e", "--report", "r"),
    ],
    ids=lambda args: args[0],
)
def test_13_extras_of_the_last_step_are_looked_for_before_the_first(
    args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = metadata.version

    def without_matplotlib(name: str) -> str:
        if name == "matplotlib":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", without_matplotlib)
    assert main([*args]) == 4
    err = capsys.readouterr().err
    assert "needs the package 'matplotlib'" in err and "pip install 'oskit[" in err and err.count("\n") == 1


def test_13_a_report_that_cannot_be_written_is_no_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    code = main(["evaluate", "no-collection", "e", "--report", str(tmp_path / "file" / "report")])
    assert (code, capsys.readouterr().err.count(f"{tmp_path / 'file'} is a file")) == (3, 1)
