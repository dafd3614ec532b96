"""Figures as inline SVG that follows the page: its font, its colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oskit.evaluation.offline.metrics import MAIN_MEASURE
from oskit.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from oskit.evaluation.offline.result import RunFigures

# matplotlib knows no CSS variables: it draws with these stand-ins, and the SVG gets the variables instead.
_INK, _GRID = "#010203", "#040506"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_VARIABLES = {
    _INK: "var(--ink-2)",
    _GRID: "var(--line)",
    **{color: f"var(--series-{number})" for number, color in enumerate(_SERIES, start=1)},
}


def quality_bars(runs: Mapping[str, Mapping[str, float]]) -> str:
    """Grouped bars: a group for each measure, a bar for each run, its value on top."""
    measures = list(next(iter(runs.values())))
    figure, axes = _axes(height=2.8)
    width = 0.8 / len(runs)
    value_size = 8 if len(runs) <= 3 else 6.5
    for number, (name, values) in enumerate(runs.items()):
        positions = np.arange(len(measures)) + (number - (len(runs) - 1) / 2) * width
        heights = [values[measure] for measure in measures]
        bars = axes.bar(positions, heights, width * 0.92, label=name, color=_SERIES[number % len(_SERIES)])
        axes.bar_label(
            bars, labels=[f"{height:.3f}" for height in heights], padding=2, fontsize=value_size, color=_INK
        )
    axes.set_xticks(range(len(measures)), measures)
    axes.set_ylim(0, max(1.0, *(max(values.values()) for values in runs.values())) * 1.08)
    _legend(axes)
    return _svg(figure, "quality")


def difference_histogram(differences: npt.NDArray[np.float64], band: tuple[float, float] | None) -> str:
    """Relative score differences in percent; ``band`` is what rounding alone explains."""
    figure, axes = _axes(height=2.6)
    percent = differences * 100
    axes.hist(percent, bins=60, color=_SERIES[0])
    if band is not None:
        axes.axvspan(band[0] * 100, band[1] * 100, color=_SERIES[2], alpha=0.18, lw=0, label="known rounding")
        _legend(axes)
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("(cluster - exact) / exact, in %")
    axes.set_ylabel("hits")
    return _svg(figure, "differences")


def latency_curves(series: Mapping[str, Sequence[float]]) -> str:
    """Share of queries answered within a time: one curve for each list of milliseconds."""
    figure, axes = _axes(height=2.6 + 0.18 * max(0, len(series) - 2))
    for number, (name, values) in enumerate(series.items()):
        ordered = np.sort(np.asarray(values, dtype=np.float64))
        share = np.arange(1, len(ordered) + 1) / len(ordered) * 100
        axes.step(ordered, share, where="post", label=name, color=_SERIES[number % len(_SERIES)], lw=1.8)
    _logarithmic(axes)
    axes.set_ylim(0, 101)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("% of queries within")
    _legend(axes)
    return _svg(figure, "latency")


def query_gains(ours: RunFigures, baseline: RunFigures) -> str:
    """Each query's gain over a baseline, sorted: how many it wins, ties and loses."""
    theirs, measure = baseline.per_query, MAIN_MEASURE
    found = [value[measure] - theirs[query][measure] for query, value in ours.per_query.items()]
    gains = np.sort(found)[::-1]
    figure, axes = _axes(height=2.6)
    positions = np.arange(len(gains))
    for sign, color, label in ((1, _SERIES[0], "better"), (-1, _SERIES[1], "worse")):
        chosen = gains * sign > 1e-9
        axes.fill_between(
            positions, 0, np.where(chosen, gains, 0), step="mid", color=color, lw=0,
            label=f"{label} on {int(chosen.sum())}",
        )  # fmt: skip
    axes.axhline(0, color=_INK, lw=0.8)
    axes.set_xlabel(f"{len(gains)} queries, sorted")
    axes.set_ylabel(f"{measure} minus {baseline.name}'s")
    axes.margins(x=0.01)
    _legend(axes)
    return _svg(figure, f"gains-{baseline.name}")


def quality_against_flops(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    points: Mapping[str, tuple[float, float]],
    lines: Mapping[str, float],
) -> str:
    """Quality over FLOPS: a curve for each pruned encoder, points without levels, lines without FLOPS."""
    figure, axes = _axes(height=3.0)
    colors = iter(_SERIES * (1 + (len(curves) + len(points) + len(lines)) // len(_SERIES)))
    for name, curve in curves.items():
        costs, values = zip(*sorted(curve), strict=True)
        axes.plot(costs, values, marker="o", ms=4, lw=1.8, color=next(colors), label=name)
    for name, (cost, value) in points.items():
        axes.plot([cost], [value], marker="D", ms=6, ls="none", color=next(colors), label=name)
    for name, value in lines.items():
        axes.axhline(value, ls="--", lw=1.2, color=next(colors), label=name)
    _logarithmic(axes)
    axes.set_xlabel("FLOPS (products for one query and one document)")
    axes.set_ylabel(MAIN_MEASURE)
    axes.margins(y=0.15)
    _legend(axes)
    return _svg(figure, "pruning")


def recall_over_time(
    points: Sequence[tuple[float, float]],
    line: Sequence[tuple[float, float]],
    best: tuple[float, float] | None,
    least: float,
) -> str:
    """Recall over milliseconds: all settings, those that none beats as a line, and the one to take."""
    figure, axes = _axes(height=3.2)
    axes.axhline(least, ls="--", lw=1.0, color=_SERIES[5], label=f"recall {least:g}")
    times = [ms for ms, _ in points]
    axes.plot(*zip(*points, strict=True), ls="none", marker="o", ms=4, color=_SERIES[5], label="settings")
    axes.plot(*zip(*line, strict=True), marker="o", ms=5, lw=1.8, color=_SERIES[0], label="none is better")
    if best is not None:
        axes.plot(*best, ls="none", marker="D", ms=8, color=_SERIES[1], label="to take")
    if max(times) > 5 * min(times):
        _logarithmic(axes)
    axes.set_xlabel("milliseconds of a search, p50")
    axes.set_ylabel("recall@10")
    axes.margins(y=0.12)
    _legend(axes)
    return _svg(figure, "recall")


def quality_over_weight(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    alone: Mapping[str, float],
    held_out: float,
    side: str,
) -> str:
    """Quality over the weight of a side: a curve for each fusion, the sides alone and what is held out."""
    figure, axes = _axes(height=3.2)
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(*zip(*curve, strict=True), lw=1.8, color=_SERIES[number % len(_SERIES)], label=name)
    for value in alone.values():
        axes.axhline(value, ls=":", lw=1.0, color=_INK)
    axes.axhline(held_out, ls="--", lw=1.2, color=_INK, label="held out")
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"weight of {side}")
    axes.set_ylabel(MAIN_MEASURE)
    axes.margins(y=0.12)
    _legend(axes)
    return _svg(figure, "fusion")


def rate_bars(rates: Mapping[str, float], unit: str) -> str:
    """Horizontal bars with their values, for example documents per second."""
    figure, axes = _axes(height=0.7 + 0.36 * len(rates))
    names, values = list(rates), list(rates.values())
    bars = axes.barh(range(len(names)), values, 0.66, color=_SERIES[0])
    axes.bar_label(bars, labels=[f"{value:,.0f}" for value in values], padding=4, fontsize=8, color=_INK)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.14)
    axes.set_xlabel(unit)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=_GRID, lw=0.7)
    return _svg(figure, f"rates-{unit}")


def _logarithmic(axes: Axes) -> None:
    """The x axis in powers of ten, with 2 and 5 between them."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def _axes(height: float) -> tuple[Figure, Axes]:
    """A bare figure, drawn without pyplot's global state and without a display."""
    require("an HTML report", "report", ["matplotlib"])
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_INK, labelcolor=_INK, labelsize=9, length=0)
    axes.tick_params(which="minor", colors=_INK, labelcolor=_INK, labelsize=8, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_INK, fontsize=9)
    axes.grid(axis="y", color=_GRID, lw=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    # Rows of what fits beside each other: a legend wider than the figure leaves no room for the axes.
    longest = max(len(label) for label in labels)
    columns = max(1, min(len(labels), 60 // (longest + 6)))
    axes.legend(
        handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False,
        fontsize=9, labelcolor=_INK, handlelength=1.0, handleheight=1.0, columnspacing=1.4,
    )  # fmt: skip


def _svg(figure: Any, salt: str) -> str:
    """The figure as an ``<svg>`` element: no prologue, no metadata, ids that do not clash, page colours."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Text stays text, so that it takes the page's font and can be searched.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"oskit-{salt}"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"""font:\s*([\d.]+px)[^;"]*""", r"font-size: \1", svg)
    svg = re.sub(r'width="[^"]*pt" height="[^"]*pt"', 'role="img"', svg, count=1)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg
