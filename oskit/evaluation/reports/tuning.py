"""Tuned fusions for people: the sides and the fusions beside each other, and whether fusing helps."""

from __future__ import annotations

from pathlib import Path

from oskit.evaluation.live.tune_result import TunedRow, TuneReport
from oskit.evaluation.offline.metrics import MAIN_MEASURE, MEASURES
from oskit.evaluation.offline.significance import Significance
from oskit.evaluation.reports import plots
from oskit.evaluation.reports.page import Page, Plot, Section, Table, write_report
from oskit.evaluation.reports.verification import figure


def write_tuning(report: TuneReport, folder: str | Path) -> list[Path]:
    """Write ``tune.json`` and ``tune.html`` into ``folder``; returns both paths."""
    return write_report(folder, report.to_dict(), lambda: tuning_page(report), "tune")


def tuning_page(report: TuneReport) -> Page:
    """The page of one tuning."""
    index, search, best = report.index, report.search, report.alone[0]
    curves = {row.setting.fusion.name: row.curve for row in report.fused if row.setting.fusion and row.curve}
    shown = {row.name: row.quality[MAIN_MEASURE] for row in report.alone}
    plot = []
    if curves:
        drawn = plots.quality_over_weight(curves, shown, report.held_out, report.sides[1])
        plot = [Plot(drawn, "Each fusion over the weight of one side; at the ends each side alone.")]
    return Page(
        title=f"Fusion for {index['name']}",
        subtitle=f"{report.collection['name']} · {report.created}",
        quality=(report.advice[0].upper() + report.advice[1:], not report.brings_something),
        cards=[
            (f"{MAIN_MEASURE}: {best.name}", figure(best.quality[MAIN_MEASURE]), "the best side"),
            (f"{MAIN_MEASURE}: fusion", figure(report.held_out), "on queries that did not choose it"),
        ],
        facts=[
            ("Cluster", f"{report.cluster['distribution']} {report.cluster['version']}"),
            ("Index", f"{index['name']}: {index['documents']:,} documents, {index['kind']}"),
            ("Queries", f"{report.collection['queries']:,} judged, in {search['folds']} parts"),
            (
                "Tried",
                f"{search['settings']:,} settings over {search['pagination_depth']:,} hits of each side",
            ),
        ],
        sections=[
            Section("Worth knowing", lines=report.warnings),
            Section("Sides and fusions", tables=[tuning_table(report)], plots=plot),
            Section("What each part of the queries was measured with", lines=report.chosen),
        ],
        footer="A fusion's best weights are chosen by the queries that measure them, which flatters it. Held "
        "out, each part of the queries is measured by what the other parts choose; only that is compared.",
    )


def tuning_table(report: TuneReport) -> Table:
    """The sides alone, each fusion at its best weights, and what choosing brings where it did not choose."""
    best = report.alone[0]
    last = ["any of them", *("" for _ in MEASURES), figure(report.held_out), *_against(report.significance)]
    return Table(
        ["", *MEASURES, "held out", f"against {best.name}", "95 % interval", "p"],
        [*(_row(row) for row in (*report.alone, *report.fused)), last],
    )


def _row(row: TunedRow) -> list[str]:
    measures = [*(row.quality[measure] for measure in MEASURES), row.held_out]
    return [row.name, *map(figure, measures), *_against(row.significance)]


def _against(found: Significance | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    mark = " *" if found.is_significant else ""
    interval = f"{found.low:+.3f} … {found.high:+.3f}"
    return [f"{found.difference:+.3f}", interval, f"{found.p_value:.3f}{mark}"]
