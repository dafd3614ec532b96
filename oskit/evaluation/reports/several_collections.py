"""Evaluations of several collections as one: their means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oskit.evaluation.offline.metrics import MAIN_MEASURE
from oskit.evaluation.offline.result import EvaluationReport
from oskit.evaluation.reports.terminal import plain_table
from oskit.evaluation.reports.verification import figure

if TYPE_CHECKING:
    from rich.console import Console

SEVERAL_SCHEMA = "oskit.evaluations/1"


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


def print_means(console: Console, reports: Sequence[EvaluationReport]) -> None:
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
    columns = [MAIN_MEASURE, *(report.collection["name"] for report in reports), "mean"]
    console.print(plain_table(columns, rows))
