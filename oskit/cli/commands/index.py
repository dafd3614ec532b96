"""`oskit index`: what oskit knows of an index, also of one that others made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from oskit.cli.options import connection_options, output_options, runtime_options
from oskit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.cli.output import Output
    from oskit.cluster.client.connection import ConnectionSettings


@click.group("index", short_help="Show an index, or adopt one that others made.")
def index() -> None:
    """Show what oskit knows of an index, or adopt one that others made."""


@index.command("show")
@click.argument("index")
@click.option("--field", metavar="PATH", help="The vectors' field, where the index has several.")
@connection_options
@output_options
def show(index: str, field: str | None, connection: ConnectionSettings, out: Output) -> None:
    """Show how INDEX was made, as searches understand it.

    \b
    Examples:
      oskit index show articles
      oskit index show articles --json
    """
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.search.place import find_place

    place = find_place(connect_for(connection, "index show"), index, field)
    entries = place.info.to_meta()
    made = "by others" if place.info.encode is None else "by oskit"

    def human(console: Console) -> None:
        console.print(f"{place.target} was made {made}", markup=False)
        for name, value in entries.items():
            console.print(f"  {name}: {value}", markup=False, soft_wrap=True)

    out.result({"index": place.info.name, "made": made, **entries}, human)


@index.command("adopt")
@click.argument("index")
@click.option("--embedding-field", metavar="PATH", help="The vectors' field.  [the only one there is]")
@click.option(
    "--text-field", metavar="NAME", help="Where the text is; or several fields, as in title^2,body."
)
@click.option("--title-field", metavar="NAME", help="The field whose text was put in front of it.")
@click.option("--archive", metavar="DIR", type=click.Path(), help="The encoder that made the vectors.")
@click.option("--query-archive", metavar="DIR", type=click.Path(),
              help="Tokenizer archive of an inference-free encoder.  [the export's own]")  # fmt: skip
@click.option("--model", metavar="NAME|ID", help="The deployed encoder; search will use it.")
@click.option("--query-model", metavar="NAME|ID", help="The model that encodes queries, if it is another.")
@click.option("--prune", metavar="TYPE:RATIO", help="Which weights were kept, as in max_ratio:0.1.")
@click.option("--undo", is_flag=True, help="Take out again what was written.")
@runtime_options()
@connection_options
@output_options
def adopt(index: str, undo: bool, connection: ConnectionSettings, out: Output, **options: Any) -> None:
    """Write down in INDEX, which others made, what search and verify need to know.

    That is _meta.oskit of its mapping; nothing else is touched. Before, it is seen whether all holds: the
    field's type, what its vectors are keyed by, that the texts' fields are there, and, with --archive or
    --model, that a few stored vectors are those of this encoder.

    \b
    Examples:
      oskit index adopt shop --embedding-field vec --text-field title^2,about --model my-encoder
      oskit index adopt shop --embedding-field vec --text-field about --archive out
      oskit index adopt shop --undo
    """
    from oskit.archive.token_weights import Prune
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.search.adopt import adopt_index, undo_adoption
    from oskit.data.text_fields import TextFields
    from oskit.encoder.opening import open_encoder

    runtime, archive = options["runtime"], options["archive"]
    if undo:
        if given := [f"--{name.replace('_', '-')}" for name, value in options.items()
                     if name != "runtime" and value is not None]:  # fmt: skip
            raise UsageError(f"{given[0]} has no effect with --undo")
        done = undo_adoption(connect_for(connection, "index adopt"), index)
        out.result(done.to_dict(), lambda console: console.print(f"{done.index} is as it was", markup=False))
        return
    if archive is None:
        if options["query_archive"] is not None:
            raise UsageError("--query-archive has no effect without --archive")
        runtime.refuse_unused("without --archive")
    encoder = (
        open_encoder(archive, runtime, query=options["query_archive"], fallback=False, notify=out.note)
        if archive is not None
        else None
    )
    done = adopt_index(
        connect_for(connection, "index adopt"),
        index,
        embedding_field=options["embedding_field"],
        text_fields=TextFields.parse(options["text_field"]) if options["text_field"] else None,
        title_field=options["title_field"],
        encoder=encoder,
        model_id=options["model"],
        query_model_id=options["query_model"],
        prune=Prune.parse(options["prune"]) if options["prune"] else None,
        notify=out.note,
    )

    def human(console: Console) -> None:
        console.print(f"{done.index} is adopted{'' if done.changed else ', and was so before'}", markup=False)
        for name, value in done.entries.items():
            console.print(f"  {name}: {value}", markup=False, soft_wrap=True)
        told = f"vectors of {done.compared} documents are the encoder's" if done.compared else (
            f"its vectors were not compared: {done.note}")  # fmt: skip
        console.print(f"  {told}", markup=False, soft_wrap=True)

    out.result(done.to_dict(), human)
    out.note(f'Next: oskit search {index} "your question"')
