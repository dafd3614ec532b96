"""An evaluation for people: tables that the terminal and the page share, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oskit.evaluation.offline.language import LanguageGuess
from oskit.evaluation.offline.metrics import MAIN_MEASURE
from oskit.evaluation.offline.result import EvaluationReport, EvaluationRow
from oskit.evaluation.reports import plots
from oskit.evaluation.reports.page import Page, Plot, Section, Table, write_report
from oskit.evaluation.reports.verification import HOW_MEASURED, NOTHING, figure

SEVERAL_SCHEMA = "oskit.evaluations/1"

_COST = (
    "FLOPS: expected number of products for one query and one document (Paria et al., 2020); for a dense "
    "model its dimensions. Size: without any compression, 8 bytes a posting, 4 bytes a dimension."
)
_SIGNIFICANCE = (
    "Paired bootstrap over the queries: the 95 % interval of the mean difference, and how often chance alone "
    "gives one at least as large. With many rows some are below 0.05 by chance: p-values are not corrected."
)
_PRUNING = "Documents keep the weights that the rule leaves, queries all of theirs."


def write_evaluation(report: EvaluationReport, folder: str | Path, name: str = "evaluation") -> list[Path]:
    """Write ``NAME.json`` and ``NAME.html`` into ``folder``, as :func:`write_report` does."""
    return write_report(folder, report.to_dict(), lambda: evaluation_page(report), name)


def quality_and_cost(report: EvaluationReport) -> Table:
    """A row for each way of retrieving: measures, active dimensions, FLOPS, size."""
    measures = list(report.rows[0].figures.quality)
    columns = ["", *measures, "query tokens", "doc tokens", "FLOPS", "postings", "size"]
    return Table(columns, [_row(row, measures) for row in report.rows])


def significance_table(report: EvaluationReport) -> Table | None:
    """Every row against the baseline by nDCG@10; None without a baseline."""
    rows = [
        [
            row.name,
            f"{found.difference:+.4f}",
            f"{found.low:+.4f} … {found.high:+.4f}",
            f"{found.p_value:.4f}{' *' if found.is_significant else ''}",
            f"{found.wins} / {found.queries - found.wins - found.losses} / {found.losses}",
        ]
        for row in report.rows
        for found in row.significance
        if found.measure == MAIN_MEASURE
    ]
    if not rows:
        return None
    first = f"{MAIN_MEASURE} minus {report.baseline}'s"
    return Table([first, "difference", "95 % interval", "p", "wins / ties / losses"], rows)


def pruning_table(report: EvaluationReport) -> Table | None:
    """Each encoder at each pruning level; None if none was asked for."""
    rows = [
        [
            row.name,
            point.rule,
            figure(point.quality[MAIN_MEASURE]),
            f"{point.quality_change:+.1%}",
            f"{point.sparsity.document_active:.1f}",
            f"{point.sparsity.flops:.2f}",
            f"{point.postings_saved:.1%}",
        ]
        for row in report.rows
        for point in row.pruning
    ]
    if not rows:
        return None
    return Table(["", "pruned", MAIN_MEASURE, "change", "doc tokens", "FLOPS", "postings saved"], rows)


def means_table(reports: Sequence[EvaluationReport]) -> Table:
    """nDCG@10 on each collection, and its mean."""
    found = means(reports)
    rows = [
        [
            name,
            *(figure(report.row(name).figures.quality[MAIN_MEASURE]) for report in reports),
            figure(found[name][MAIN_MEASURE]),
        ]
        for name in found
    ]
    return Table([MAIN_MEASURE, *(report.collection["name"] for report in reports), "mean"], rows)


def means(reports: Sequence[EvaluationReport]) -> dict[str, dict[str, float]]:
    """For each row the mean of each measure over the collections, every collection weighing the same."""
    measures = list(reports[0].rows[0].figures.quality)
    return {
        row.name: {
            measure: sum(report.row(row.name).figures.quality[measure] for report in reports) / len(reports)
            for measure in measures
        }
        for row in reports[0].rows
    }


def several_dict(reports: Sequence[EvaluationReport]) -> dict[str, Any]:
    """The JSON form: the means, and each evaluation."""
    return {
        "schema": SEVERAL_SCHEMA,
        "means": means(reports),
        "evaluations": [report.to_dict() for report in reports],
    }


def evaluation_page(report: EvaluationReport) -> Page:
    """The page of an evaluation."""
    best = max(report.rows, key=lambda row: row.figures.quality[MAIN_MEASURE])
    known = Section("Worth knowing", lines=report.warnings)
    return Page(
        title=f"Encoders on {report.collection['name']}",
        subtitle=f"{report.collection['documents']:,} documents · {report.collection['queries']:,} queries · "
        f"{report.created}",
        cards=[(f"Best {MAIN_MEASURE}", figure(best.figures.quality[MAIN_MEASURE]), best.name)],
        facts=_facts(report),
        sections=[known, _quality(report), _significance(report), _pruning(report)],
        footer=HOW_MEASURED,
    )


def _facts(report: EvaluationReport) -> list[tuple[str, str]]:
    facts = []
    for row in report.rows:
        told = row.description
        if row.kind == "sparse":
            cut = row.truncation
            beyond = f"; {cut.told('documents')}" if cut is not None and cut.cut else ""
            if row.chunking is not None:
                beyond += f"; {told_chunks(row, report)}"
            facts.append((row.name, f"{told['name']}, {told['architecture']}{beyond}"))
        elif row.kind == "bm25":
            facts.append((row.name, told_bm25(row)))
        else:
            facts.append((row.name, f"dense, {told['dimensions']} dimensions"))
    return facts


def told_bm25(row: EvaluationRow) -> str:
    """The settings of BM25 in words, and how its language was found."""
    values = row.description["settings"]
    words = f"analyzed as {values['language']}" if values["language"] else "words as they are"
    guess = row.description["guess"]
    found = f" ({LanguageGuess(**guess)})" if guess else ""
    return f"k1 {values['k1']:g}, b {values['b']:g}, {words}{found}"


def told_chunks(row: EvaluationRow, report: EvaluationReport) -> str:
    """How the documents were cut, in words."""
    documents = report.collection["documents"]
    return f"{documents:,} documents in {row.chunks:,} chunks ({row.chunking}), the best of each counts"


def _quality(report: EvaluationReport) -> Section:
    runs = {row.name: row.figures.quality for row in report.rows}
    return Section(
        "Quality and cost",
        _COST,
        tables=[quality_and_cost(report)],
        plots=[Plot(plots.quality_bars(runs), "Exact scores, mean over the judged queries.")],
    )


def _significance(report: EvaluationReport) -> Section | None:
    table = significance_table(report)
    if table is None or report.baseline is None:
        return None
    others = [row for row in report.rows if row.name != report.baseline]
    best = max(others, key=lambda row: row.figures.quality[MAIN_MEASURE])
    gains = plots.query_gains(best.figures, report.row(report.baseline).figures)
    caption = f"{best.name} against {report.baseline}, query by query, best gain first."
    return Section(f"Against {report.baseline}", _SIGNIFICANCE, tables=[table], plots=[Plot(gains, caption)])


def _pruning(report: EvaluationReport) -> Section | None:
    table = pruning_table(report)
    if table is None:
        return None
    curves, points, lines = {}, {}, {}
    for row in report.rows:
        value = row.figures.quality[MAIN_MEASURE]
        if row.pruning:
            curves[row.name] = [(point.sparsity.flops, point.quality[MAIN_MEASURE]) for point in row.pruning]
        elif row.kind == "dense":
            lines[row.name] = value
        else:
            points[row.name] = (row.flops, value)
    svg = plots.quality_against_flops(curves, points, lines)
    return Section(
        "Pruning",
        _PRUNING,
        tables=[table],
        plots=[Plot(svg, "Each point is a pruning level; left is cheaper.")],
    )


def _row(row: EvaluationRow, measures: list[str]) -> list[str]:
    sparse = row.sparsity
    return [
        row.name,
        *(figure(row.figures.quality[measure]) for measure in measures),
        NOTHING if sparse is None else f"{sparse.query_active:.1f}",
        NOTHING if sparse is None else f"{sparse.document_active:.1f}",
        f"{row.flops:.2f}",
        NOTHING if sparse is None else f"{sparse.postings:,}",
        f"{row.index_bytes / 1e6:,.1f} MB",
    ]
