"""Options that several commands share, so that they are spelled and explained the same way."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.archive.backends.runtime import Runtime
    from oskit.archive.encoder import ArchiveEncoder

Function = TypeVar("Function", bound=Callable[..., Any])

SOME_REFUSED = 10
"""Exit code when documents were refused."""

_CONNECTION_OPTIONS = [
    click.option(
        "--url", metavar="URL", help="The cluster; may have a path.  [OSKIT_URL; http://localhost:9200]"
    ),
    click.option("--username", metavar="NAME", help="User for basic authentication.  [OSKIT_USERNAME]"),
    click.option(
        "--password-file",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help="File that holds the password.  [OSKIT_PASSWORD_FILE, or the password itself in OSKIT_PASSWORD]",
    ),
    click.option("--password-stdin", is_flag=True, help="Read the password from the first line of stdin."),
    click.option(
        "--ca-certs",
        metavar="FILE",
        type=click.Path(),
        help="Certificates of the authority that signed the cluster's certificate.  [OSKIT_CA_CERTS]",
    ),
    click.option(
        "--client-cert",
        metavar="FILE",
        type=click.Path(),
        help="Client certificate.  [OSKIT_CLIENT_CERT]",
    ),
    click.option(
        "--client-key",
        metavar="FILE",
        type=click.Path(),
        help="Its key.  [OSKIT_CLIENT_KEY]",
    ),
    click.option(
        "--insecure",
        is_flag=True,
        default=None,
        help="Do not verify the certificate; warns each time.",
    ),
    click.option(
        "--aws-region", metavar="REGION", help="Sign requests for AWS in this region.  [OSKIT_AWS_REGION]"
    ),
    click.option(
        "--aws-service",
        type=click.Choice(["es", "aoss"]),
        help="Amazon OpenSearch Service, or Serverless (aoss).  [OSKIT_AWS_SERVICE; by the host's name]",
    ),
    click.option(
        "--aws-profile", metavar="NAME", help="Profile that signs.  [OSKIT_AWS_PROFILE; AWS_PROFILE]"
    ),
    click.option(
        "--timeout", type=float, metavar="SECONDS", help="Limit of one request.  [OSKIT_TIMEOUT; 60]"
    ),
    click.option(
        "--retry-for",
        type=float,
        metavar="SECONDS",
        help="How long to wait for a cluster that is busy or restarting.  [OSKIT_RETRY_FOR; 120]",
    ),
]


def with_options(function: Callable[..., Any], options: Sequence[Callable[[Any], Any]]) -> Any:
    """Add click options to a command's function; its help shows them in their order."""
    decorated: Any = function
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def connection_options(function: Function) -> Function:
    """Add the connection options; the command receives ``connection: ConnectionSettings``.

    At its end, whatever that is, stands a line on stderr with what it has changed in the cluster.
    """

    @functools.wraps(function)
    def with_connection(*args: Any, password_stdin: bool, **kwargs: Any) -> Any:
        from oskit.cluster.client.calls import changes
        from oskit.cluster.client.connection import ConnectionSettings, split_url

        names = (*ConnectionSettings.model_fields, "password_file")
        given: dict[str, Any] = {name: kwargs.pop(name) for name in names if name in kwargs}
        if password_stdin:
            given["password"] = sys.stdin.readline().rstrip("\r\n")
        overrides = {name: value for name, value in given.items() if value is not None}
        connection = ConnectionSettings.from_environment(**overrides)
        if "url" in overrides and split_url(overrides["url"])[2] is not None:
            click.echo(
                "Warning: everybody on this machine can see the password in --url; use OSKIT_PASSWORD, "
                "--password-file or --password-stdin",
                err=True,
            )
        if connection.insecure:
            click.echo("Warning: the cluster's certificate is not verified (--insecure)", err=True)
        with changes() as made:
            try:
                return function(*args, connection=connection, **kwargs)
            finally:
                if made.calls and not kwargs.get("quiet"):
                    click.echo(f"Changed in the cluster: {made}", err=True)

    return with_options(with_connection, _CONNECTION_OPTIONS)  # type: ignore[no-any-return]


def report_option(name: str) -> Callable[[Any], Any]:
    """``--report DIR``; whether a report can be made and written there is known before the work begins."""

    def check(_context: click.Context, _option: click.Parameter, folder: str | None) -> str | None:
        if folder is not None:
            from oskit.extras import require
            from oskit.folders import check_writable

            require("--report", "report")
            check_writable(folder)
        return folder

    told = f"Write {name}.json and {name}.html there."
    return click.option("--report", metavar="DIR", callback=check, help=told)


def output_options(function: Function) -> Function:
    """Add ``--json`` and ``--quiet``; the command receives ``out: Output``."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no notes; warnings and errors only.")
    @functools.wraps(function)
    def with_output(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> Any:
        from oskit.cli.output import Output

        return function(*args, out=Output(json=as_json, quiet=quiet), **kwargs)

    return with_output  # type: ignore[return-value]


_DEVICE = click.option(
    "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1.  [a model's best; cpu]"
)
_RUNTIME_OPTIONS = [
    click.option(
        "--backend",
        type=click.Choice(["auto", "onnxruntime", "openvino", "torch"]),
        default="auto",
        show_default=True,
        help="What runs the encoder; auto measures on long jobs, and remembers.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "int8"]),
        help="What it computes in; auto takes a narrower one where it is faster and the ranking "
        "stays, and with a model's folder bf16 on a GPU.  [the archive's own; a model's: fp32]",
    ),
]


def runtime_options(*, device: bool = True) -> Callable[[Function], Function]:
    """Add ``--backend``, ``--precision`` and ``--device``; the command receives ``runtime: Runtime``.

    Args:
        device: Whether to add ``--device``; the loader's options have it too, and then it is for both.
    """

    def add(function: Function) -> Function:
        @functools.wraps(function)
        def with_runtime(*args: Any, backend: Any, precision: Any, **kwargs: Any) -> Any:
            from oskit.archive.backends.runtime import Runtime

            named = kwargs.pop("device") if device else kwargs["loader"].device
            return function(*args, runtime=Runtime(backend, precision, named or "auto"), **kwargs)

        options = [*_RUNTIME_OPTIONS, _DEVICE] if device else _RUNTIME_OPTIONS
        return with_options(with_runtime, options)  # type: ignore[no-any-return]

    return add


def opened_archive(archive: str | None, query_archive: str | None, runtime: Runtime) -> ArchiveEncoder | None:
    """The encoder of ``--archive``, for commands that need none; without it what it runs on has no effect.

    Raises:
        UsageError: It is not given, but its queries' archive or options of its runtime are.
        ArchiveError: It cannot be opened.
    """
    if archive is None:
        if query_archive is not None:
            raise UsageError("--query-archive has no effect without --archive")
        runtime.refuse_unused("without --archive")
        return None
    from oskit.archive.encoder import ArchiveEncoder

    return ArchiveEncoder.open(archive, query=query_archive, runtime=runtime)
