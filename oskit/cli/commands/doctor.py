"""``oskit doctor``."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import click

from oskit.cli.loader import Loader, loader_options
from oskit.cli.options import connection_options, output_options
from oskit.errors import ClusterError, EncoderError, MissingDependencyError

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.cli.output import Output
    from oskit.cluster.client.connection import ConnectionSettings
    from oskit.doctor import Finding

MARKS = {
    "ok": "[green]✓[/]",
    "warning": "[yellow]![/]",
    "failure": "[red]✗[/]",
    "skipped": "[dim]-[/]",
}
EXIT_CODES = {
    "machine": MissingDependencyError.exit_code,
    "packages": MissingDependencyError.exit_code,
    "loading": EncoderError.exit_code,
    "encoder": EncoderError.exit_code,
    "cluster": ClusterError.exit_code,
}


@click.command()
@click.argument("model", required=False)
@click.option("--model", "named", hidden=True, help="MODEL, as older scripts give it.")
@click.option("--fix", is_flag=True, help="Mend what earlier versions of oskit left behind in the cluster.")
@loader_options
@connection_options
@output_options
@click.pass_context
def doctor(
    ctx: click.Context,
    *,
    model: str | None,
    named: str | None,
    fix: bool,
    loader: Loader,
    connection: ConnectionSettings,
    out: Output,
) -> None:
    """Check the machine, an encoder and a cluster.

    Looks at Python, memory, disk, Java and the installed packages; tries every tier of the loader; where
    MODEL (a folder or a Hub repository) is given, loads it, runs it, saves it and loads it again; where --url
    or OSKIT_URL names a cluster, looks at its version, plugins, settings, memory, permissions and models, and
    for what earlier versions of oskit left behind: indexes whose refresh is off, ingest pipelines and half
    uploads that nobody needs, ids of models that are gone. Says what to do about each finding and which calls
    --fix would send, and changes nothing without it.

    Exits with 0 unless something fails: then with 4 (packages), 5 (loading) or 7 (cluster).

    \b
    Examples:
      oskit doctor
      oskit doctor ./my-encoder
      oskit doctor --url https://search.example.org --json
      oskit doctor --url https://search.example.org --fix
    """
    from oskit.doctor import check_cluster, check_encoder, check_loading, check_machine

    model = model or named
    if model is None and replace(loader, local_files_only=False) != Loader():
        raise click.UsageError("options of the loader were given, but no MODEL to load")
    if fix and not _names_a_cluster(ctx):
        raise click.UsageError("--fix mends a cluster: name it with --url or OSKIT_URL")
    findings = check_machine() + check_loading(offline=loader.local_files_only)
    if model:
        findings += check_encoder(model, partial(loader.load, quiet=True))
    if _names_a_cluster(ctx):
        findings += check_cluster(connection, fix=fix)
    else:
        out.note("No cluster was looked at: name one with --url or OSKIT_URL.")
    out.result([asdict(finding) for finding in findings], lambda console: _print(console, findings))
    failed = [finding for finding in findings if finding.status == "failure"]
    if failed:
        ctx.exit(EXIT_CODES[failed[0].area])


def _names_a_cluster(ctx: click.Context) -> bool:
    return bool(ctx.params.get("url") or os.environ.get("OSKIT_URL"))


def _print(console: Console, findings: list[Finding]) -> None:
    from rich.markup import escape

    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            console.print(f"\n[bold]{area}[/]")
        console.print(
            f"  {MARKS[finding.status]} {escape(finding.name)}: {escape(finding.detail)}", soft_wrap=True
        )
        if finding.advice and finding.status != "ok":
            console.print(f"    [dim]→ {escape(finding.advice)}[/]", soft_wrap=True)
    counts = {status: sum(finding.status == status for finding in findings) for status in MARKS}
    console.print(f"\n{', '.join(_counted(count, status) for status, count in counts.items() if count)}")


def _counted(count: int, status: str) -> str:
    return f"{count} {status}s" if count > 1 and status in ("warning", "failure") else f"{count} {status}"
