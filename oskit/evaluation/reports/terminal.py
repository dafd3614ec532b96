"""The same figures for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from oskit.evaluation.live.result import Example, VerificationReport
from oskit.evaluation.live.sweep_result import SweepReport
from oskit.evaluation.live.tune_result import TuneReport
from oskit.evaluation.offline.result import EvaluationReport
from oskit.evaluation.reports import page
from oskit.evaluation.reports.evaluation import (
    pruning_table,
    quality_and_cost,
    significance_table,
    told_bm25,
    told_chunks,
)
from oskit.evaluation.reports.sweep import settings_table
from oskit.evaluation.reports.tuning import tuning_table
from oskit.evaluation.reports.verification import disagreements_table, quality_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LISTED = 10
"""Disagreements that a terminal shows."""


def print_verification(console: Console, report: VerificationReport) -> None:
    """The runs beside each other, what disagrees, and both verdicts."""
    from rich.markup import escape

    index, collection = report.index, report.collection
    console.print(
        f"[bold]{escape(index['name'])}[/bold]: {index['documents']:,} documents, {index['kind']}, "
        f"{index['search']} search; {collection['queries']:,} queries of {escape(collection['name'])} "
        f"by {report.search['by']}"
    )
    print_table(console, quality_table(report.runs))
    console.print(
        f"{report.comparison.hits:,} hits compared, {report.wrong_hits:,} wrong; stored weights of "
        f"{report.vectors.checked:,} documents checked, {len(report.vectors.wrong):,} wrong; "
        f"{report.missing:,} documents missing, {report.extra:,} not of the corpus"
    )
    if report.fused is not None:
        beside = report.fused.largest_difference
        told = "" if beside is None else f", and within {beside:.2g} of those of exact scores"
        wrong = sum(report.fused.counts.values())
        console.print(
            f"{report.fused.hits:,} fused scores compared with those fused here, {wrong:,} wrong{told}"
        )
    if report.comparison.disagreements and report.wrong_hits:
        print_table(console, disagreements_table(report, LISTED))
    _print_notes(console, report.warnings)
    for failure in report.failures:
        console.print(f"[red]Wrong:[/red] {escape(failure)}")
    if report.passed:
        console.print("[green]The cluster agrees with the exact scores.[/green]")
    if report.quality is not None:
        style = "bold yellow" if report.is_worse_than_bm25 else "bold"
        console.print(f"[{style}]Quality: {report.quality}.[/{style}]")


def print_sweep(console: Console, report: SweepReport) -> None:
    """The settings beside each other, and which to take."""
    from rich.markup import escape

    index, search = report.index, report.search
    console.print(
        f"[bold]{escape(index['name'])}[/bold]: {index['documents']:,} documents, {index['kind']}, "
        f"{index['search']} search, {index['bytes'] / 1e6:,.1f} MB; {search['queries']:,} queries of "
        f"{escape(report.collection['name'])}, {search['size']} hits, {search['rounds']} rounds"
    )
    print_table(console, settings_table(report))
    _print_notes(console, report.warnings)
    console.print(f"[bold]Advice:[/bold] {escape(report.advice)}.")


def print_tuning(console: Console, report: TuneReport) -> None:
    """The sides and the fusions beside each other, and what to take."""
    from rich.markup import escape

    index, search = report.index, report.search
    console.print(
        f"[bold]{escape(index['name'])}[/bold]: {index['documents']:,} documents, {index['kind']}; "
        f"{report.collection['queries']:,} judged queries of {escape(report.collection['name'])}, "
        f"{search['settings']:,} settings over {search['pagination_depth']:,} hits of each side"
    )
    print_table(console, tuning_table(report))
    _print_notes(console, report.warnings)
    console.print(f"[bold]Advice:[/bold] {escape(report.advice)}.")


def _print_notes(console: Console, warnings: Iterable[str]) -> None:
    from rich.markup import escape

    for warning in warnings:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}")


def print_evaluation(console: Console, report: EvaluationReport) -> None:
    """Quality and cost of each row, significance and pruning levels."""
    from rich.markup import escape

    console.print(
        f"{escape(report.collection['name'])}: {report.collection['documents']:,} documents, "
        f"{report.collection['queries']:,} judged queries, exact scores"
    )
    for data in (quality_and_cost(report), significance_table(report), pruning_table(report)):
        if data is not None:
            print_table(console, data)
    for row in report.rows:
        if row.kind == "bm25":
            console.print(f"{row.name}: {told_bm25(row)}", markup=False)
        if row.chunking is not None:
            console.print(f"{row.name}: {told_chunks(row, report)}", markup=False, soft_wrap=True)
        if row.truncation is not None and row.truncation.cut:
            told = f"{row.name}: {row.truncation.told('documents')}; {row.truncation.advice}"
            console.print(told, markup=False, soft_wrap=True)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: bool = True) -> Table:
    """Rows of text as they are, figures on the right."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if numeric and number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def print_examples(console: Console, examples: Sequence[Example]) -> None:
    """Queries with their hits and the tokens that matched."""
    from rich.markup import escape
    from rich.table import Table

    for example in examples:
        console.print(f"\n[bold]{escape(example.query)}[/bold]")
        hits = Table.grid(padding=(0, 2))
        hits.add_column(no_wrap=True)
        hits.add_column(overflow="fold")
        for hit in example.hits:
            mark = "[green]*[/green]" if hit.relevant else " "
            hits.add_row(f" {mark} {hit.rank}. {hit.score:6.2f}", escape(hit.text))
            matched = "  ".join(f"{escape(token)} {share:.2f}" for token, share in hit.matched)
            hits.add_row("", f"[dim]{matched}[/dim]")
        console.print(hits)
    if examples:
        console.print("[dim]* relevant; under each hit the tokens that matched and what each adds.[/dim]")


def print_table(console: Console, table: page.Table) -> None:
    """The table; one of figures that is wider than the terminal in parts, each with the first column."""
    columns, rest = list(table.columns), list(range(1, len(table.columns)))

    def part(chosen: Sequence[int]) -> Table:
        rows = [[row[number] for number in (0, *chosen)] for row in table.rows]
        return plain_table([columns[number] for number in (0, *chosen)], rows, numeric=table.numeric)

    def fits(chosen: Sequence[int]) -> bool:
        endless = console.options.update_width(10_000)
        return console.measure(part(chosen), options=endless).maximum <= console.width

    if not table.numeric or fits(rest):
        console.print(part(rest))
        return
    for number, column in enumerate(columns):
        columns[number] = fill(column, max(len(row[number]) for row in table.rows), break_long_words=False)
    while rest:
        count = next((count for count in range(len(rest), 1, -1) if fits(rest[:count])), 1)
        console.print(part(rest[:count]))
        rest = rest[count:]
