"""``oskit load``: how an encoder is found, and what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from oskit.cli.loader import Loader, loader_options
from oskit.cli.options import output_options
from oskit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.encoder.loader.report import LoadReport


@click.command("load")
@click.argument("model")
@loader_options
@click.option(
    "-o", "--save", metavar="DIR", type=click.Path(file_okay=False), help="Save it there, for any tier."
)
@output_options
def load(model: str, loader: Loader, save: str | None, out: Output) -> None:
    """Load an encoder and report how it was found.

    MODEL is a folder or a repository on the Hugging Face Hub. Three places are tried: the folder; the Hub
    (set HF_TOKEN for private ones); the base encoder with a random projection, which must be trained before
    retrieval.

    \b
    Examples:
      oskit load ./my-encoder
      oskit load opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill --json
      oskit load ./not-yet-trained --base distilbert/distilbert-base-uncased -o start
    """
    encoder = loader.load(model)
    report = encoder.load_report
    if save is not None:
        encoder.save_pretrained(save)
        out.note(f"Saved to {save}")
    out.result(report.to_dict(), lambda console: _print(console, report))


def _print(console: Console, report: LoadReport) -> None:
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    from oskit.encoder.loader.report import TIER_NAMES

    formula = "log1p(relu(x))" if report.activation == "relu" else "log1p(log1p(relu(x)))"
    rows = {
        "encoder": f"[bold]{escape(report.source)}[/]",
        "tier": TIER_NAMES[report.tier],
        "revision": report.revision,
        "layout": report.layout,
        "head": "[bold red]random: train it before retrieval[/]" if report.head == "random" else report.head,
        "architecture": report.architecture,
        "activation": f"{report.activation}: {formula}, {report.pooling} over tokens",
        "vocabulary": f"{report.vocabulary_size:,} tokens",
        "transformer": f"{report.model_type}, {report.layers} layers of {report.hidden_size}",
        "parameters": f"{report.parameters:,}, {decimal(report.bytes)}",
        "texts": f"up to {report.max_length} tokens",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value)
    console.print(table)
    console.print("\nLooked at:")
    for attempt in report.attempts:
        mark = "[green]✓[/]" if attempt.outcome == "loaded" else "[dim]-[/]"
        console.print(f"  {mark} {escape(str(attempt))}", soft_wrap=True)
    for note in report.notes:
        console.print(f"[yellow]![/] {escape(note)}", soft_wrap=True)
