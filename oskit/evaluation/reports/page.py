"""A report as one HTML file that needs nothing else: no script, no font, no image from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oskit.errors import DataError
from oskit.evaluation.live.result import Example
from oskit.extras import require


@dataclass
class Table:
    """Rows of text; columns from the second on are aligned to the right if ``numeric``."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = True
    caption: str = ""


@dataclass
class Plot:
    """An SVG that :mod:`oskit.evaluation.reports.plots` drew."""

    svg: str
    caption: str


@dataclass
class Section:
    """A heading with what belongs under it; empty parts are left out, and so is one with none."""

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


@dataclass
class Page:
    """Everything on the page.

    Attributes:
        passed: The verdict; None shows none.
        verdict: The verdict in words.
        quality: A second verdict in words, and whether it is a warning; None shows none.
        cards: Headline figures: label, value, small print.
        facts: Label and value of what was tested.
        sections: In order; None is left out.
        footer: Small print.
    """

    title: str
    subtitle: str
    passed: bool | None = None
    verdict: str = ""
    quality: tuple[str, bool] | None = None
    cards: list[tuple[str, str, str]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    sections: list[Section | None] = field(default_factory=list)
    footer: str = ""


def render(page: Page) -> str:
    """The page as HTML. Every text is escaped; only the plots' SVG goes in as it is.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    require("an HTML report", "report", ["jinja2"])
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("oskit.evaluation.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(page=page)


def write_report(
    folder: str | Path, data: dict[str, Any], page: Callable[[], Page], name: str = "report"
) -> list[Path]:
    """Write ``NAME.json`` and ``NAME.html`` into ``folder``; returns both paths.

    The JSON is written before ``page`` is drawn: it needs no extra, so a machine without matplotlib gets it.

    Raises:
        DataError: The folder cannot be written.
        MissingDependencyError: jinja2 or matplotlib is not installed (the JSON has been written).
    """
    import json

    folder = Path(folder)
    paths = [folder / f"{name}.json", folder / f"{name}.html"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        paths[1].write_text(render(page()), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"the report cannot be written to {folder}: {error.strerror or error}",
            hint="Name a folder that can be written with --report or --output.",
        ) from error
    return paths
