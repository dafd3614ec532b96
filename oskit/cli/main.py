"""The ``oskit`` command: a table of commands, each loaded when it is called.

``oskit --help`` must be quick, so this module imports click and nothing else that costs time;
the short help of every command stands in the table and a test compares it with the command's own.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click

from oskit.cli.signals import INTERRUPTED, EndingSignals, SignalCame
from oskit.errors import OskitError

COMMANDS = {
    "demo": "Run the whole path on a small collection.",
    "doctor": "Check the machine, an encoder and a cluster.",
    "load": "Load an encoder and report how it was found.",
    "encode": "Print the token weights of texts, or write those of documents into a file.",
    "idf": "Compute idf.json, the query weights of a corpus.",
    "train": "Train an encoder by a recipe.",
    "recipes": "List, show and copy training recipes.",
    "export": "Pack MODEL (a folder or a Hub repository) into archives for ML Commons.",
    "deploy": "Register and deploy an archive.",
    "models": "List the models of a cluster.",
    "undeploy": "Take models out of memory.",
    "delete": "Undeploy and delete models.",
    "serve": "Serve archives over HTTP.",
    "ingest": "Create an index and load documents into it.",
    "index": "Show an index, or adopt one that others made.",
    "pipeline": "Let an index encode what other programs write into it.",
    "search": "Search an index.",
    "releases": "List the releases of an alias.",
    "rollback": "Have an alias stand for the release before the living one, or for RELEASE.",
    "verify": "Prove that a cluster retrieves what it should.",
    "sweep": "Find the fastest setting of a search that finds enough.",
    "tune": "Find the best fusion of BM25, sparse and dense search, if any helps.",
    "playground": "Compare two ways to search in the browser.",
    "evaluate": "Measure retrieval quality without a cluster.",
    "node": "Run a real OpenSearch on this machine, as a process or a container.",
}
"""Each command and what ``oskit --help`` says of it."""

_TOGETHER = {"deploy": "models", "undeploy": "models", "delete": "models", "rollback": "releases"}
"""Commands in another command's module; the others are in one of their name."""


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = f"oskit.cli.commands.{_TOGETHER.get(cmd_name, cmd_name)}"
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="oskit", message="oskit %(version)s", help="Print the version and exit.")
def cli() -> None:
    """From a neural sparse encoder to proven retrieval in OpenSearch.

    \b
    text → encoder → archive → cluster → index → proof
           load      export    deploy    ingest  verify
           encode              models    search  evaluate
           train

    \b
    Examples:
      oskit demo                                  the whole path, on this machine
      oskit export my-encoder -o out              pack an encoder for ML Commons
      oskit deploy out && oskit models            put it on the cluster at OSKIT_URL
      oskit ingest articles corpus.jsonl --encode client --archive out
      oskit search articles "how do I get a building permit"

    \b
    Exit codes: 0 done, 1 unexpected, 2 usage, 3 input data, 4 missing dependency, 5 encoder,
    6 archive or export, 7 cluster, 8 local node, 9 proof failed, 10 some documents were refused,
    11 training, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).
    """
    from oskit.cli.log import show_log

    show_log()


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code; no exception leaves this function, but SystemExit.

    Errors that oskit raises on purpose become one line on stderr, and so does an optional package that is
    not installed. Anything else is a bug: it is reported as one, in one line, with the traceback only if
    ``OSKIT_TRACEBACK`` is set. SIGTERM and SIGHUP end a command as Ctrl-C does.
    """
    with EndingSignals() as signals:
        return signals.exit_code(_run(args))


def _run(args: list[str] | None) -> int:
    stdout = sys.stdout
    try:
        code = cli.main(args=args, prog_name="oskit", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        context = (
            f" Try: {error.ctx.command_path} --help"
            if isinstance(error, click.UsageError) and error.ctx
            else ""
        )
        code = _fail(f"{error.format_message()}{context}", error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        came = error.__cause__ or error  # click puts its own in the place of what was raised
        code = _fail(str(came) if isinstance(came, SignalCame) else "interrupted", INTERRUPTED)
    except OskitError as error:
        code = _fail(str(error), error.exit_code)
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and sys.stdout is stdout:  # where a pipe broke, click replaces it
            raise
        # The reader of our stdout went away (`oskit … | head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # what is half imported says ImportError
            return _fail(str(error.__cause__) or "interrupted", INTERRUPTED)
        missing = _missing_dependency(error, sys.argv[1:] if args is None else args)
        if missing is not None:
            return _fail(str(missing), missing.exit_code)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            import tempfile

            where = error.filename or f"this machine, perhaps in the temporary folder {tempfile.gettempdir()}"
            return _fail(f"no space is left on {where}. Free some, or name another folder with TMPDIR", 3)
        if os.environ.get("OSKIT_TRACEBACK"):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        code = _fail(f"unexpected {reason[:500]}. This is a bug in oskit; OSKIT_TRACEBACK=1 shows where", 1)
    return code if isinstance(code, int) else 0


def _missing_dependency(error: Exception, args: list[str]) -> OskitError | None:
    """Whatever a command imports that only an extra brings, wherever it does: the extra to install."""
    if not isinstance(error, ImportError):
        return None
    from oskit.extras import missing_dependency

    return missing_dependency(" ".join(["oskit", *(arg for arg in args[:1] if arg in COMMANDS)]), error)


def _fail(message: str, exit_code: int) -> int:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return exit_code
