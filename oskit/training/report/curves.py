"""What was logged in training, as a table and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oskit.training.report.choice import CHOICE
from oskit.training.report.figures import MEASURES

TABLE = "curves.csv"
PICTURE = "curves.png"

History = Sequence[Mapping[str, Any]]
"""Rows that the trainer logged, each with its ``step``; ``TrainerState.log_history``."""

_NAMES = {f"eval_{measure.logged}": measure.label for measure in MEASURES}
_MANY_TIMES = 20
"""From here on a linear scale hides the smaller values."""

_LEFT_OUT = (
    *("step", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "total_flos"),
    f"eval_{CHOICE}",
)


def curve_rows(history: History) -> list[dict[str, Any]]:
    """One row a step, what was logged in training and what was measured together."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in history:
        if "train_runtime" in entry:  # the summary after the last step
            continue
        row = rows.setdefault(int(entry["step"]), {"step": int(entry["step"])})
        row |= {_NAMES.get(key, key): value for key, value in entry.items() if key not in _LEFT_OUT}
    return [rows[step] for step in sorted(rows)]


def write_curves(history: History, folder: Path, title: str) -> None:
    """``curves.csv`` and ``curves.png``; needs matplotlib."""
    rows = curve_rows(history)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    _draw(rows, folder / PICTURE, title)


def _draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Loss and its parts, quality, active dimensions, FLOPS: four panels over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = list(dict.fromkeys(key for row in rows for key in row))
    kinds = ("kl", "margin_mse", "info_nce")  # a second one of a kind has a number behind
    active = ("active dimensions of a document", "active dimensions of a query")
    wanted = ("document_dims_path", "query_dims_path")  # where a target's search wanted them
    panels = {
        "loss": [key for key in known if key == "loss" or key.endswith("_penalty") or key.startswith(kinds)],
        "quality": ["nDCG@10", "MRR@10", "recall@100"],
        "active dimensions": [*active, *(key for key in wanted if key in known)],
        "FLOPS": ["FLOPS"],
    }
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, keys) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        values: list[float] = []
        for key in keys:
            points = [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]
            if points:
                steps, heights = zip(*points, strict=True)
                axes.plot(steps, heights, label=key, lw=1.4, marker="" if label == "loss" else "o", ms=3)
                values += heights
        if label != "quality" and values and min(values) > 0 and max(values) > _MANY_TIMES * min(values):
            axes.set_yscale("log")
        elif label != "quality":
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        if values:
            axes.legend(fontsize=8, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
