"""The demo's tables: the same for the terminal and for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oskit.demo.result import DemoIndex, DemoReport
from oskit.encoder.loader.report import TIER_NAMES
from oskit.evaluation.reports.page import Table
from oskit.evaluation.reports.verification import NOTHING, figure, milliseconds, percent

if TYPE_CHECKING:
    from rich.console import Console

FILE_WIDTH = 120
"""A file or a pipe has no width of its own; the tables need this much."""

_MEASURES = ("nDCG@10", "MRR@10", "R@100")


def loaded(report: DemoReport) -> Table:
    """What was loaded, and by which tier."""
    load, collection = report.load, report.collection
    size = f"{load['layers']} layers, {load['parameters'] / 1e6:.1f} M parameters"
    rows = [
        ("Encoder", f"{load['model_type']}, {size}"),
        ("Tier", f"{TIER_NAMES[load['tier']]} ({load['layout']})"),
        ("Projection", f"{load['head']}, activation {load['activation']}, {load['pooling']} pooling"),
        ("Vocabulary", f"{load['vocabulary_size']:,} tokens, texts up to {load['max_length']}"),
        (
            "Collection",
            f"{collection['name']}: {collection['queries']:,} queries, {collection['documents']:,} documents",
        ),
    ]
    return Table(("Loaded", ""), rows, numeric=False)


def training(report: DemoReport) -> Table | None:
    """The encoder before and after training, on the questions that it was not trained on."""
    if report.training is None:
        return None
    rows = []
    for when in ("before", "after"):
        figures = report.training[when]
        size = [
            f"{figures['flops']:.2f}",
            *(f"{figures[f'{side}_active']:.0f}" for side in ("query", "document")),
        ]
        rows.append([when, *(figure(figures[measure]) for measure in _MEASURES), *size])
    return Table(("Training", *_MEASURES, "FLOPS", "query tokens", "doc tokens"), rows)


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


def archives(report: DemoReport) -> Table:
    """The archives with their sizes and parity."""
    rows = [
        [item["file"], f"{item['bytes'] / 1e6:.1f} MB", f"{item['parity_texts']:,}",
         f"{item['parity_max_difference']:.1e}"]
        for item in report.archives
    ]  # fmt: skip
    return Table(("Archive", "size", "parity texts", "largest difference"), rows)


def models(report: DemoReport) -> Table:
    """The models on the cluster, and how far their predictions are from the archives'."""
    rows = [
        [model.function_name, model.model_format, model.model_id, model.state,
         NOTHING if model.max_difference is None else f"{model.max_difference:.1e}"]
        for model in report.models
    ]  # fmt: skip
    return Table(("Model", "format", "id", "state", "largest difference"), rows, numeric=False)


def indexes(report: DemoReport) -> Table:
    """What was ingested, how fast, and what the comparison found."""
    rows = []
    for index in report.indexes:
        ingested, proof = index.ingest, index.verification
        counts = [
            f"{ingested['indexed']:,}",
            f"{ingested['refused']:,}",
            f"{ingested['docs_per_second']:.0f}",
        ]
        checked = [f"{proof.comparison.hits:,}", f"{proof.wrong_hits:,}"]
        rows.append([index.label, *counts, proof.index["search"], *checked])
    return Table(("Index", "ingested", "failed", "docs/s", "search", "hits checked", "wrong"), rows)


def quality(report: DemoReport) -> Table:
    """Cluster beside exact scores beside BM25, for each index."""
    rows = [
        [
            "" if number else index.label,
            run.name,
            *(figure(run.quality[measure]) for measure in _MEASURES),
            percent(run.overlap_at_10),
            *(milliseconds(run.wall, key) for key in ("p50", "p99")),
        ]
        for index in report.indexes
        for number, run in enumerate(index.verification.runs)
    ]
    return Table(("Retrieval", "by", *_MEASURES, "overlap@10", "p50", "p99"), rows)


def headline(report: DemoReport) -> DemoIndex:
    """The index whose figures stand for the demo: the first."""
    return report.indexes[0]


def print_demo(console: Console, report: DemoReport) -> None:
    """The final table, section by section, the examples and the verdict."""
    from rich.markup import escape

    from oskit.evaluation.reports.terminal import print_examples, print_table

    if not console.is_terminal:
        console.width = FILE_WIDTH

    print_table(console, loaded(report))
    if (trained := training(report)) is not None:
        print_table(console, trained)
        console.print(training_verdict(report))
    for table in (archives(report), models(report), indexes(report), quality(report)):
        print_table(console, table)
    print_examples(console, headline(report).verification.examples)
    for failure in report.failures:
        console.print(f"[red]Wrong:[/red] {escape(failure)}")
    if report.passed:
        console.print(
            f"\n[green]Proven: {len(report.indexes)} indexes agree with the exact scores.[/green] "
            f"{report.seconds:.0f} s."
        )
