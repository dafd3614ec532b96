"""A sweep for people: the settings beside each other, and which to take."""

from __future__ import annotations

from pathlib import Path

from oskit.evaluation.live.sweep_result import DEPTHS, SweepReport, front
from oskit.evaluation.reports import plots
from oskit.evaluation.reports.page import Page, Plot, Section, Table, write_report
from oskit.evaluation.reports.verification import figure, milliseconds


def write_sweep(report: SweepReport, folder: str | Path) -> list[Path]:
    """Write ``sweep.json`` and ``sweep.html`` into ``folder``; returns both paths."""
    return write_report(folder, report.to_dict(), lambda: sweep_page(report), "sweep")


def sweep_page(report: SweepReport) -> Page:
    """The page of one sweep."""
    best, index, search = report.best, report.index, report.search
    took = report.advice[0].upper() + report.advice[1:]
    cards = [
        (f"R@10: {row.name}", figure(row.recall[10]), f"p50 {row.ms:.1f} ms, p99 {row.wall['p99']:.1f} ms")
        for row in ([report.rows[0]] if best in (None, report.rows[0]) else [report.rows[0], best])
        if row is not None
    ]
    how = (
        f"{search['size']} hits a search, {search['queries']:,} queries, each {search['rounds']} times with "
        "each setting, in turns, one at a time, after once that is not counted"
    )
    return Page(
        title=f"Settings for {index['name']}",
        subtitle=f"{report.collection['name']} · {report.created}",
        quality=(took, best is None),
        cards=cards,
        facts=[
            ("Cluster", f"{report.cluster['distribution']} {report.cluster['version']}"),
            (
                "Index",
                f"{index['name']}: {index['documents']:,} documents, {index['kind']}, "
                f"{index['search']} search, {index['bytes'] / 1e6:,.1f} MB",
            ),
            ("Timed", how),
            ("Exact scores", f"from the {search['exact_by']}'s weights, with the 9 bits that an index keeps"),
        ],
        sections=[
            Section("Worth knowing", lines=report.warnings),
            Section(
                "Recall and time",
                plots=[
                    Plot(recall_plot(report), "Higher and further left is better; nothing beats the line.")
                ],
            ),
            Section("Settings", "Fastest first; * marks those on the line.", tables=[settings_table(report)]),
        ],
        footer="Recall: the share of the exact best that a search returned, mean over the queries. p50 and "
        "p99: seen by the client; took: as the cluster tells, in whole milliseconds.",
    )


def settings_table(report: SweepReport) -> Table:
    """A row for each setting, fastest first."""
    line = {id(row) for row in front(report.rows)}
    return Table(
        ["", *(f"R@{depth}" for depth in DEPTHS), "nDCG@10", "tokens", "p50", "p99", "took", "warm-up"],
        [
            [
                f"{row.name}{' *' if id(row) in line else ''}",
                *(figure(row.recall[depth]) for depth in DEPTHS),
                figure(row.ndcg),
                f"{row.tokens:.1f}",
                *(milliseconds(row.wall, key) for key in ("p50", "p99")),
                milliseconds(row.took, "p50"),
                milliseconds(row.warm_up, "p50"),
            ]
            for row in sorted(report.rows, key=lambda row: row.ms)
        ],
    )


def recall_plot(report: SweepReport) -> str:
    """Recall@10 over the time of a search: all settings, and the line of those that nothing beats."""
    points, line = (
        [(row.ms, value) for row in rows if (value := row.recall[10]) is not None]
        for rows in (report.rows, front(report.rows))
    )
    best = report.best
    chosen = (best.ms, best.recall[10] or 0.0) if best else None
    return plots.recall_over_time(points, line, chosen, report.least_recall)
