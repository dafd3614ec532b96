"""The demo's rows: the same for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oskit.demo.result import DemoIndex, DemoReport
from oskit.encoder.loader.report import TIER_NAMES
from oskit.evaluation.reports.verification import NOTHING, figure, milliseconds, percent

if TYPE_CHECKING:
    from rich.console import Console

Rows = list[list[str]]

FILE_WIDTH = 120
"""A file or a pipe has no width of its own; the tables need this much."""


def load_rows(report: DemoReport) -> Rows:
    """What was loaded, and by which tier."""
    load = report.load
    return [
        [
            "Encoder",
            f"{load['model_type']}, {load['layers']} layers, {load['parameters'] / 1e6:.1f} M parameters",
        ],
        ["Tier", f"{TIER_NAMES[load['tier']]} ({load['layout']})"],
        ["Projection", f"{load['head']}, activation {load['activation']}, {load['pooling']} pooling"],
        ["Vocabulary", f"{load['vocabulary_size']:,} tokens, texts up to {load['max_length']}"],
        [
            "Collection",
            f"{report.collection['name']}: {report.collection['queries']:,} queries, "
            f"{report.collection['documents']:,} documents",
        ],
    ]


TRAINING_COLUMNS = ("Training", "nDCG@10", "MRR@10", "R@100", "FLOPS", "query tokens", "doc tokens")


def training_rows(report: DemoReport) -> Rows:
    """The encoder before and after training, on the questions that it was not trained on."""
    if report.training is None:
        return []
    return [
        [
            when,
            *(figure(figures[measure]) for measure in ("nDCG@10", "MRR@10", "R@100")),
            f"{figures['flops']:.2f}",
            f"{figures['query_active']:.0f}",
            f"{figures['document_active']:.0f}",
        ]
        for when, figures in (("before", report.training["before"]), ("after", report.training["after"]))
    ]


def training_verdict(report: DemoReport) -> str:
    """What training brought, in words; empty without training."""
    if report.training is None:
        return ""
    gain = report.training["gain"]
    known = "significant" if gain["significant"] else "not significant"
    return (
        f"{report.training['steps']} steps on {report.training['pairs']} questions in "
        f"{report.training['seconds']:.0f} s: nDCG@10 {gain['difference']:+.3f} "
        f"({gain['low']:+.3f} to {gain['high']:+.3f}) on {gain['queries']} held-out questions, {known} "
        f"(paired bootstrap, p {gain['p_value']:.4f})"
    )


ARCHIVE_COLUMNS = ("Archive", "size", "parity texts", "largest difference")


def archive_rows(report: DemoReport) -> Rows:
    """The archives with their sizes and parity."""
    return [
        [
            archive.file,
            f"{archive.bytes / 1e6:.1f} MB",
            f"{archive.parity_texts:,}",
            f"{archive.parity_max_difference:.1e}",
        ]
        for archive in report.archives
    ]


MODEL_COLUMNS = ("Model", "format", "id", "state", "largest difference")


def model_rows(report: DemoReport) -> Rows:
    """The models on the cluster, and how far their predictions are from the archives'."""
    return [
        [
            model.function_name,
            model.model_format,
            model.model_id,
            model.state,
            NOTHING if model.max_difference is None else f"{model.max_difference:.1e}",
        ]
        for model in report.models
    ]


INDEX_COLUMNS = ("Index", "ingested", "failed", "docs/s", "search", "hits checked", "wrong")


def index_rows(report: DemoReport) -> Rows:
    """What was ingested, how fast, and what the comparison found."""
    return [
        [
            index.label,
            f"{index.ingest['indexed']:,}",
            f"{index.ingest['refused']:,}",
            f"{index.ingest['docs_per_second']:.0f}",
            index.verification.index["search"],
            f"{index.verification.comparison.hits:,}",
            f"{index.verification.wrong_hits:,}",
        ]
        for index in report.indexes
    ]


QUALITY_COLUMNS = ("Retrieval", "by", "nDCG@10", "MRR@10", "R@100", "overlap@10", "p50", "p99")


def quality_rows(report: DemoReport) -> Rows:
    """Cluster beside exact scores beside BM25, for each index."""
    rows: Rows = []
    for index in report.indexes:
        for number, run in enumerate(index.verification.runs):
            rows.append(
                [
                    "" if number else index.label,
                    run.name,
                    *(figure(run.quality[measure]) for measure in ("nDCG@10", "MRR@10", "R@100")),
                    percent(run.overlap_at_10),
                    milliseconds(run.wall, "p50"),
                    milliseconds(run.wall, "p99"),
                ]
            )
    return rows


def headline(report: DemoReport) -> DemoIndex:
    """The index whose figures stand for the demo: the first."""
    return report.indexes[0]


def print_demo(console: Console, report: DemoReport) -> None:
    """The final table, section by section, the examples and the verdict."""
    from rich.markup import escape

    from oskit.evaluation.reports.terminal import print_examples

    if not console.is_terminal:
        console.width = FILE_WIDTH
    _print(console, ("Loaded", ""), load_rows(report), numeric=False)
    if report.training is not None:
        _print(console, TRAINING_COLUMNS, training_rows(report))
        console.print(training_verdict(report))
    _print(console, ARCHIVE_COLUMNS, archive_rows(report))
    _print(console, MODEL_COLUMNS, model_rows(report), numeric=False)
    _print(console, INDEX_COLUMNS, index_rows(report))
    _print(console, QUALITY_COLUMNS, quality_rows(report))
    print_examples(console, headline(report).verification.examples)
    for failure in report.failures:
        console.print(f"[red]Wrong:[/red] {escape(failure)}")
    if report.passed:
        console.print(
            f"\n[green]Proven: {len(report.indexes)} indexes agree with the exact scores.[/green] "
            f"{report.seconds:.0f} s."
        )


def _print(console: Console, columns: Sequence[str], rows: Rows, *, numeric: bool = True) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        justify: Any = "right" if numeric and number else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
