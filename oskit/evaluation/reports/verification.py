"""A verification for people: a page to show to a colleague."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from oskit.evaluation.live.result import VerificationReport, difference_summary
from oskit.evaluation.offline.metrics import MAIN_MEASURE
from oskit.evaluation.offline.result import BM25, RunFigures
from oskit.evaluation.reports import plots
from oskit.evaluation.reports.page import Page, Plot, Section, Table, write_report

MAX_ROWS = 50
"""Disagreements shown on the page; the JSON has more."""

_WHAT_IS_WRONG = {
    "score": "score outside of what rounding explains",
    "missing": "not among the hits, although it must be",
    "unknown": "not a document of the corpus",
    "rank": "ahead of a document that must come before it",
}


def write_verification(report: VerificationReport, folder: str | Path) -> list[Path]:
    """Write ``verification.json`` and ``verification.html`` into ``folder``; returns both paths."""
    return write_report(folder, report.to_dict(), lambda: verification_page(report), "verification")


def verification_page(report: VerificationReport) -> Page:
    """The page of one verification."""
    return Page(
        title=f"Retrieval from {report.index['name']}",
        subtitle=f"{report.collection['name']} · {report.created}",
        passed=report.passed,
        verdict="The cluster agrees with the exact scores" if report.passed else "The cluster disagrees",
        quality=None
        if report.quality is None
        else (report.quality[0].upper() + report.quality[1:], report.is_worse_than_bm25),
        cards=cards(report, report.comparison.hits, report.wrong_hits),
        facts=_facts(report),
        sections=[
            _verdict(report),
            quality_section(report),
            _agreement(report),
            _cost(report),
            _disagreements(report),
            examples_section(report),
        ],
        footer=FOOTER,
    )


def cards(report: VerificationReport, hits: int, wrong: int) -> list[tuple[str, str, str]]:
    """The headline figures, with how many hits were compared and wrong."""
    cluster = report.run("cluster")
    beside = (run for run in report.runs if run.name in ("exact", BM25))
    others = ", ".join(f"{run.name} {figure(run.quality[MAIN_MEASURE])}" for run in beside)
    p50, p99 = (milliseconds(cluster.wall, key) for key in ("p50", "p99"))
    return [
        (MAIN_MEASURE, figure(cluster.quality[MAIN_MEASURE]), others),
        ("Overlap of the top 10", percent(cluster.overlap_at_10), "with the exact ranking"),
        ("Hits compared", f"{hits:,}", f"{wrong:,} wrong"),
        ("Query latency p50", p50, f"p99 {p99}"),
    ]


HOW_MEASURED = (
    "nDCG, MRR and recall by ir-measures over the queries with a relevant document. "
    "Exact: every query against every document by inner product, in process."
)
FOOTER = f"{HOW_MEASURED} BM25: the same text, in the same index."

NOTHING = "-"
"""What a table shows where there is no value."""


def _facts(report: VerificationReport) -> list[tuple[str, str]]:
    """What was tested: label and value."""
    index, encoder, search = report.index, report.encoder, report.search
    return [
        ("Cluster", f"{report.cluster['distribution']} {report.cluster['version']}"),
        (
            "Index",
            f"{index['name']}: {index['documents']:,} documents, {index['kind']}, {index['search']} search",
        ),
        (
            "Collection",
            f"{report.collection['name']}: {report.collection['documents']:,} documents, "
            f"{report.collection['queries']:,} queries",
        ),
        ("Encoder", f"{encoder['name']}, {encoder['architecture']}"),
        ("Queries by", search["by"] + (f" ({search['model_id']})" if search.get("model_id") else "")),
        ("Depth", f"{search['k']} hits a query"),
    ]


def quality_table(runs: Sequence[RunFigures]) -> Table:
    """A row for each run, a column for each measure, then agreement and latency."""
    measures = list(runs[0].quality)
    return Table(
        ["", *measures, "overlap@10", "exact found", "p50", "p99"],
        [
            [
                run.name,
                *(figure(run.quality[measure]) for measure in measures),
                percent(run.overlap_at_10),
                percent(run.recall_of_exact),
                *(milliseconds(run.wall, key) for key in ("p50", "p99")),
            ]
            for run in runs
        ],
    )


def disagreements_table(report: VerificationReport, count: int, what: Callable[[str], str] = str) -> Table:
    """The first ``count`` disagreements; ``what`` says a kind in words."""
    rows = [
        [
            what(item.kind), item.query_id, item.document_id, figure(item.cluster_score),
            figure(item.exact_score), f"{figure(item.low)} … {figure(item.high)}",
            f"{item.cluster_rank or NOTHING} / {item.exact_rank or NOTHING}",
        ]
        for item in report.comparison.disagreements[:count]
    ]  # fmt: skip
    columns = ["what", "query", "document", "cluster", "exact", "explained", "rank / exact"]
    return Table(columns, rows, numeric=False)


def examples_section(report: VerificationReport) -> Section:
    """A few queries with their hits and the tokens that matched."""
    return Section(
        "Queries and what matched",
        "Under each query its heaviest tokens; under each hit the tokens that matched, "
        "with what each adds to the score.",
        examples=report.examples,
    )


def differences_plot(report: VerificationReport) -> Plot | None:
    """Histogram of the score differences with what rounding explains."""
    differences = report.comparison.relative_differences
    if not differences.size:
        return None
    exact = report.index["search"] == "exact"
    caption = "Score differences. A stored weight is cut to 9 significant bits: up to 0.39\u00a0% too small."
    if not exact:
        caption = "Score differences. Weights of queries and documents are rounded to a byte."
    return Plot(plots.difference_histogram(differences, (-(2.0**-8), 0.0) if exact else None), caption)


def figure(value: float | None) -> str:
    """A measure or a score, four digits."""
    return NOTHING if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A share in percent; 100 % only if it is."""
    if value is None:
        return NOTHING
    text = f"{value * 100:.1f} %"
    return "> 99.9 %" if text == "100.0 %" and value < 1 else text.replace(".0 %", " %")


def milliseconds(summary: dict[str, float] | None, key: str) -> str:
    """A latency out of a summary of percentiles."""
    return NOTHING if not summary else f"{summary[key]:.1f} ms"


def _verdict(report: VerificationReport) -> Section:
    title = "What is wrong" if report.failures else "Worth knowing"
    return Section(title, lines=[*report.failures, *report.warnings])


def quality_section(report: VerificationReport) -> Section:
    """The runs beside each other, as a table and as bars, and the gain of each query over BM25."""
    section = Section(
        "Quality",
        "The cluster beside the exact scores and beside BM25 on the same text in the same index.",
        tables=[quality_table(report.runs)],
        plots=[
            Plot(
                plots.quality_bars({run.name: run.quality for run in report.runs}),
                "Mean over the judged queries; higher is better.",
            )
        ],
    )
    if BM25 in {run.name for run in report.runs}:
        gains = plots.query_gains(report.run("cluster"), report.run(BM25))
        section.plots.append(Plot(gains, "Each query against BM25, best gain first."))
    return section


def _agreement(report: VerificationReport) -> Section:
    counts, summary = report.comparison.counts, difference_summary(report.comparison)
    rows = [
        ["Hits compared", f"{report.comparison.hits:,}"],
        *([f"Hits: {_what(report, kind)}", f"{count:,}"] for kind, count in counts.items()),
        ["Documents of the corpus that the index lacks", f"{report.missing:,}"],
        ["Documents of the index that the corpus lacks", f"{report.extra:,}"],
        ["Documents whose stored weights were checked", f"{report.vectors.checked:,}"],
        ["… and are not the encoder's", f"{len(report.vectors.wrong):,}"],
    ]
    if summary["min"] is not None:
        rows.append(["Score differences", f"{summary['min']:+.3%} … {summary['max']:+.3%}"])
    difference = differences_plot(report)
    return Section(
        "Agreement with the exact scores",
        "Differences that follow from how the index rounds weights are not counted.",
        tables=[Table(["Check", "found"], rows)],
        plots=[difference] if difference else [],
    )


def _cost(report: VerificationReport) -> Section:
    sparse = report.comparison.sparsity
    cost = [
        ["Tokens of a query, mean", f"{sparse.query_active:.1f}"],
        ["Tokens of a document, mean", f"{sparse.document_active:.1f}"],
        ["Products per query and document (FLOPS)", f"{sparse.flops:.2f}"],
        ["Postings", f"{sparse.postings:,}"],
        ["Size of the index", f"{report.index['bytes'] / 1e6:,.1f} MB"],
    ]
    section = Section("Cost", tables=[Table(["Size", ""], cost)])
    if report.wall:
        took = [max(value, 0.5) for value in report.took]
        curves = {"seen by the client": report.wall, "in the cluster": took}
        caption = (
            "Queries answered within a time, one query at a time; the cluster counts whole milliseconds."
        )
        section.plots.append(Plot(plots.latency_curves(curves), caption))
    return section


def _disagreements(report: VerificationReport) -> Section:
    items = report.comparison.disagreements
    tables = [disagreements_table(report, MAX_ROWS, lambda kind: _what(report, kind))] if items else []
    if report.vectors.wrong:
        wrong = [
            [item["document_id"], figure(item["found"]), f"{figure(item['low'])} … {figure(item['high'])}"]
            for item in report.vectors.wrong[:MAX_ROWS]
        ]
        tables.append(
            Table(["Document", "sum of stored weights", "explained"], wrong, caption="Wrong stored weights")
        )
    return Section(
        "Disagreements",
        f"The first {MAX_ROWS} of each; the JSON has more." if len(items) >= MAX_ROWS else "",
        tables=tables,
        lines=[
            *(f"not in the index: {name}" for name in report.missing_documents[:MAX_ROWS]),
            *(f"not in the corpus: {name}" for name in report.extra_documents[:MAX_ROWS]),
        ],
    )


def _what(report: VerificationReport, kind: str) -> str:
    if kind == "missing" and report.index["search"] == "approximate":
        return "skipped by the approximate search"
    return _WHAT_IS_WRONG[kind]
