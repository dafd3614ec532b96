"""The demo's page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from oskit.demo import tables
from oskit.demo.result import DemoReport
from oskit.evaluation.reports import plots
from oskit.evaluation.reports.page import Page, Plot, Section, Table, write_report
from oskit.evaluation.reports.verification import (
    FOOTER,
    cards,
    differences_plot,
    examples_section,
    quality_section,
)


def write_demo(report: DemoReport, folder: str | Path) -> list[Path]:
    """Write ``demo.json`` and ``demo.html`` into ``folder``; returns both paths."""
    return write_report(folder, report.to_dict(), lambda: demo_page(report), "demo")


def demo_page(report: DemoReport) -> Page:
    """The page: verdict, headline figures, and a section for each station of the path."""
    proof = tables.headline(report).verification
    wrong = sum(index.verification.wrong_hits for index in report.indexes)
    trained, quality = tables.training(report), quality_section(proof)
    hits = sum(index.verification.comparison.hits for index in report.indexes)
    return Page(
        title="From an encoder to proven retrieval",
        subtitle=f"{report.collection['name']} · {report.created} · {report.seconds:.0f} s",
        passed=report.passed,
        verdict=f"{len(report.indexes)} indexes agree with the exact scores"
        if report.passed
        else "The cluster disagrees",
        cards=cards(proof, hits, wrong),
        facts=[(label, value) for label, value in tables.loaded(report).rows],
        sections=[
            Section("What is wrong", lines=report.failures),
            *([Section("Training", tables.training_verdict(report), tables=[trained])] if trained else []),
            _path(report),
            replace(
                quality,
                text=f"{quality.text} The plots show {tables.headline(report).label}.",
                tables=[tables.quality(report)],
            ),
            _agreement(report),
            examples_section(proof),
        ],
        footer=f"{FOOTER} Collection: see its distribution for authors and licence. "
        + ", ".join(f"{name} {value}" for name, value in report.machine.items()),
    )


def _path(report: DemoReport) -> Section:
    rates = {index.label: index.ingest["docs_per_second"] for index in report.indexes}
    steps = [[step.name, f"{step.seconds:.1f} s"] for step in report.steps]
    return Section(
        "From encoder to index",
        "Each archive was opened again and compared with the encoder, "
        "and each model on the cluster with its archive.",
        tables=[
            tables.archives(report),
            tables.models(report),
            tables.indexes(report),
            Table(("Step", "time"), steps),
        ],
        plots=[Plot(plots.rate_bars(rates, "documents per second"), "Ingest, encoding included.")],
    )


def _agreement(report: DemoReport) -> Section:
    curves = {index.label: index.verification.wall for index in report.indexes if index.verification.wall}
    section = Section(
        "Agreement and latency",
        "A hit counts as wrong if its score, its rank or its absence does not follow from "
        "how the index rounds weights.",
        plots=[Plot(plots.latency_curves(curves), "Queries answered within a time, one at a time.")],
    )
    difference = differences_plot(tables.headline(report).verification)
    if difference is not None:
        section.plots.insert(0, difference)
    return section
