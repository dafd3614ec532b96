"""The same figures for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oskit.evaluation.live.result import Example, VerificationReport
from oskit.evaluation.offline.result import EvaluationReport, RunFigures
from oskit.evaluation.reports.verification import NOTHING, figure, milliseconds, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LISTED = 10
"""Disagreements that a terminal shows."""


def print_verification(console: Console, report: VerificationReport) -> None:
    """The verdict, the runs beside each other, and what disagrees."""
    from rich.markup import escape

    index, collection = report.index, report.collection
    console.print(
        f"[bold]{escape(index['name'])}[/bold]: {index['documents']:,} documents, {index['kind']}, "
        f"{index['search']} search; {collection['queries']:,} queries of {escape(collection['name'])} "
        f"by {report.search['by']}"
    )
    console.print(runs_table(report.runs))
    console.print(
        f"{report.comparison.hits:,} hits compared, {report.wrong_hits:,} wrong; stored weights of "
        f"{report.vectors.checked:,} documents checked, {len(report.vectors.wrong):,} wrong; "
        f"{len(report.missing_documents):,} documents missing"
    )
    if report.comparison.disagreements and report.wrong_hits:
        console.print(_disagreements(report))
    for warning in report.warnings:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}")
    for failure in report.failures:
        console.print(f"[red]Wrong:[/red] {escape(failure)}")
    if report.passed:
        console.print("[green]The cluster agrees with the exact scores.[/green]")


def print_evaluation(console: Console, report: EvaluationReport) -> None:
    """Quality and cost of each row, significance and pruning levels."""
    from rich.markup import escape

    from oskit.evaluation.reports.evaluation import pruning_table, quality_and_cost, significance_table

    console.print(
        f"{escape(report.collection['name'])}: {report.collection['documents']:,} documents, "
        f"{report.collection['queries']:,} judged queries, exact scores"
    )
    for data in (quality_and_cost(report), significance_table(report), pruning_table(report)):
        if data is not None:
            console.print(plain_table(data.columns, data.rows))
    for row in report.rows:
        if row.truncation is not None and row.truncation.cut:
            told = f"{row.name}: {row.truncation.told('documents')}; {row.truncation.advice}"
            console.print(told, markup=False, soft_wrap=True)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: bool = True) -> Table:
    """Rows of text as they are, figures on the right."""
    from rich.markup import escape

    table = _table([escape(column) for column in columns], numeric=numeric)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def runs_table(runs: Sequence[RunFigures]) -> Table:
    """A row for each run: measures, agreement with the exact ranking, latency."""
    measures = list(runs[0].quality)
    table = _table(["", *measures, "overlap@10", "exact found", "p50", "p99"])
    for run in runs:
        table.add_row(
            run.name,
            *(figure(run.quality[measure]) for measure in measures),
            percent(run.overlap_at_10),
            percent(run.recall_of_exact),
            milliseconds(run.wall, "p50"),
            milliseconds(run.wall, "p99"),
        )
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


def _disagreements(report: VerificationReport) -> Table:
    from rich.markup import escape

    table = _table(["what", "query", "document", "cluster", "exact", "explained", "rank", "exact rank"])
    for item in report.comparison.disagreements[:LISTED]:
        table.add_row(
            item.kind,
            escape(item.query_id),
            escape(item.document_id),
            _score(item.cluster_score),
            _score(item.exact_score),
            f"{_score(item.low)} … {_score(item.high)}",
            str(item.cluster_rank or NOTHING),
            str(item.exact_rank or NOTHING),
        )
    return table


def _table(columns: Sequence[str], *, numeric: bool = True) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if numeric and number else "left", overflow="fold")
    return table


def _score(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"
