"""`oskit pipeline`: let an index encode what others write into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from oskit.cli.options import connection_options, output_options

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.cli.output import Output
    from oskit.cluster.client.connection import ConnectionSettings

PROOF_FAILED = 9


@click.group("pipeline", short_help="Let an index encode what other programs write into it.")
def pipeline() -> None:
    """Let an index encode what other programs write into it.

    Its default ingest pipeline makes the passage of title and text, and the vector of the passage, so that an
    application that writes {"title": …, "text": …} is found.
    """


@pipeline.command("show")
@click.argument("index")
@connection_options
@output_options
def show(index: str, connection: ConnectionSettings, out: Output) -> None:
    """Show the ingest pipelines of INDEX.

    \b
    Examples:
      oskit pipeline show articles
      oskit pipeline show articles --json
    """
    import json

    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.ingest.default_pipeline import show_pipelines

    found = show_pipelines(connect_for(connection, "pipeline show"), index)

    def human(console: Console) -> None:
        for role in ("default", "final"):
            console.print(f"{role} pipeline of {found['index']}: {found[role] or 'none'}", markup=False)
        for name, body in found["pipelines"].items():
            told = json.dumps(body, indent=2, ensure_ascii=False) if body else "there is none"
            console.print(f"\n{name}: {told}", markup=False, soft_wrap=True)

    out.result(found, human)


@pipeline.command("put")
@click.argument("index")
@click.option("--model", metavar="NAME|ID", help="The deployed encoder.  [the one that made the index]")
@click.option("--batch-size", type=click.IntRange(1), metavar="N",
              help="Documents that the pipeline hands to the model together.  [32]")  # fmt: skip
@click.option(
    "--replace", is_flag=True, help="A pipeline that is not oskit's gives way; a default one is called first."
)
@connection_options
@output_options
def put(
    index: str,
    model: str | None,
    batch_size: int | None,
    replace: bool,
    connection: ConnectionSettings,
    out: Output,
) -> None:
    """Make oskit's pipeline the default one of INDEX.

    First it is tried: it has to give a document that comes back with its old vector the one of its new text,
    as the model gives it. Where that fails, all is as it was before.

    \b
    Examples:
      oskit pipeline put articles
      oskit pipeline put articles --model my-encoder
    """
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.ingest.default_pipeline import put_pipeline

    done = put_pipeline(
        connect_for(connection, "pipeline put"),
        index,
        model_id=model,
        batch_size=batch_size,
        replace_others=replace,
        notify=out.note,
    )

    def human(console: Console) -> None:
        what = "is the default pipeline of" if done.changed else "was already the default pipeline of"
        console.print(f"{done.pipeline} {what} {done.index}; it encodes by {done.model}", markup=False)
        if done.replaced:
            does = "calls it first" if done.calls else "does not call it, as it makes vectors or is not there"
            console.print(f"  in the place of {done.replaced}; {does}", markup=False, soft_wrap=True)

    out.result(vars(done), human)
    out.note(f"Next: oskit pipeline check {index}")


@pipeline.command("check")
@click.argument("index")
@connection_options
@output_options
def check(index: str, connection: ConnectionSettings, out: Output) -> None:
    """Tell what each way of writing does to the vectors of INDEX.

    Documents are sent through its default pipeline by simulation, and nothing is stored. Exits with 9 where
    what others write is not found by what it says, the bulk update aside, for which no pipeline runs.

    \b
    Examples:
      oskit pipeline check articles
    """
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.ingest.other_writers import check_writers

    found = check_writers(connect_for(connection, "pipeline check"), index)

    def human(console: Console) -> None:
        runs = (
            f"runs {found.default_pipeline} by itself"
            if found.default_pipeline
            else "runs no pipeline by itself"
        )
        kept = "leaves vectors out of _source" if found.excluded else "keeps vectors in _source"
        console.print(f"{found.index} {runs}, and {kept}", markup=False, soft_wrap=True)
        for way in found.ways:
            console.print(f"  {way.name}: {way.told}", markup=False, soft_wrap=True)
        for note in found.notes:
            console.print(f"  {note}", markup=False, soft_wrap=True)

    out.result(found.to_dict(), human)
    if not found.ok:
        out.note(f"Next: oskit pipeline put {index}")
        click.get_current_context().exit(PROOF_FAILED)
