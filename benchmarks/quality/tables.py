"""The table as text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.quality.measure import Measured
from benchmarks.quality.rows import Claim, Results, Row, mean, on, spread
from benchmarks.quality.variants import VARIANTS

COLUMNS = (
    "encoder",
    "collection",
    "nDCG@10",
    "±",
    "seeds",
    "FLOPS",
    "doc tokens",
    "query tokens",
    "query ms",
    "train s",
)

_VERDICTS = {True: "holds", False: "DOES NOT HOLD", None: "not judged"}


def lines(row: Row, results: Results) -> list[list[str]]:
    """A line for each way of retrieving and each collection."""
    found = []
    for collection in row.collections:
        for name in (*row.references, *row.variants):
            if measured := on(results, name, collection):
                found.append(_line(name, collection, measured, results))
    for name in row.variants:
        found += [
            [_label(name), "", f"failed, seed {result.seed}: {result.failure}", *[""] * 7]
            for result in results[name]
            if result.failure
        ]
    return found


def _label(name: str) -> str:
    return VARIANTS[name].label if name in VARIANTS else name


def _line(name: str, collection: str, measured: Sequence[Measured], results: Results) -> list[str]:
    values = [found.ndcg for found in measured]
    times = [result.train_seconds for result in results[name] if result.train_seconds is not None]
    head = [
        _label(name),
        f"{collection} ({measured[0].documents:,})",
        f"{mean(values):.3f}",
        f"{spread(values):.3f}",
        str(len(values)),
    ]
    if not measured[0].points:
        return [*head, *[""] * 5]
    return [
        *head,
        f"{mean([found.flops for found in measured]):.2f}",
        f"{mean([found.points[0].document_active for found in measured]):.0f}",
        f"{mean([found.query_active or 0.0 for found in measured]):.0f}",
        f"{mean([found.query_ms or 0.0 for found in measured]):.1f}",
        f"{mean(times):.0f}" if times else "",
    ]


def markdown(rows: dict[str, Row], results: Results, claims: dict[str, list[Claim]]) -> str:
    """All rows with their claims and verdicts."""
    parts = []
    for number, row in rows.items():
        parts.append(f"### {number}. {row.title}\n")
        parts.append(_markdown_table(COLUMNS, lines(row, results)))
        verdicts = [_verdict(claim) for claim in claims[number]]
        parts.append(_markdown_table(("claim", "verdict", "evidence"), verdicts))
    return "\n".join(parts)


def _verdict(claim: Claim) -> list[str]:
    return [claim.text, _VERDICTS[claim.holds], claim.evidence]


def _markdown_table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(columns)
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, rule, *body))


def to_json(results: Results, claims: dict[str, list[Claim]], facts: dict[str, Any]) -> dict[str, Any]:
    """Everything, for scripts."""
    return {
        **facts,
        "results": {name: [result.to_dict() for result in found] for name, found in results.items()},
        "claims": {number: [vars(claim) for claim in found] for number, found in claims.items()},
    }
