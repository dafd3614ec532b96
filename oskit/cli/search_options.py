"""What a search is narrowed to, and searches of many queries, as commands take them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from oskit.cli.options import with_options
from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.cli.output import Output
    from oskit.cluster.search.run import RunReport
    from oskit.cluster.search.search import Searcher

Function = TypeVar("Function", bound=Callable[..., Any])

NAMED = 5
"""Queries without hits that are named."""

_OPTIONS = [
    click.option(
        "--filter",
        "filters",
        metavar="FIELD=VALUE",
        multiple=True,
        help="Only documents for which this holds: =, != (several values: a,b), >=, >, <=, <, FIELD=* (any), "
        "or a query as JSON. Repeat it: all have to hold.",
    ),
    click.option(
        "--from", "offset", type=click.IntRange(0), default=0, show_default=True, help="Hits to skip."
    ),
    click.option(
        "--sort",
        metavar="FIELD[:desc]",
        multiple=True,
        help="Order of the hits; repeat it for equals; _score is the best first.",
    ),
    click.option("--fields", metavar="NAME,…", help="Show these fields of the documents, not all of them."),
    click.option("--min-score", type=float, help="Least score of a hit."),
]


def narrowing_options(function: Function) -> Function:
    """Add the options; the command receives ``narrowed``, for :meth:`Searcher.search`."""

    @functools.wraps(function)
    def with_narrowing(
        *args: Any, filters: Any, offset: Any, sort: Any, fields: str | None, min_score: Any, **kwargs: Any
    ) -> Any:
        shown = None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]
        narrowed = {
            "filter": list(filters),
            "offset": offset,
            "sort": list(sort),
            "fields": shown,
            "min_score": min_score,
        }
        return function(*args, narrowed=narrowed, **kwargs)

    return with_options(with_narrowing, _OPTIONS)  # type: ignore[no-any-return]


def given_query(text: str | None, *, by_weights: bool, encodes: bool = False) -> str | dict[str, Any]:
    """The query of a command line: a text, or token weights as JSON.

    Args:
        by_weights: Whether weights are a query here.
        encodes: Whether a text is one, too: what is no object of numbers is then taken for one.
    """
    if text is None:
        raise UsageError("there is no query", hint="Give one, or a file of queries with --queries")
    if not by_weights or not text.lstrip().startswith("{"):
        return text
    try:
        weights = dict(json.loads(text))
    except json.JSONDecodeError as error:
        if encodes:
            return text
        raise UsageError(f"the token weights are no JSON: {error}", hint='Write {"token": 1.5}') from None
    is_number = [isinstance(weight, int | float) for weight in weights.values()]
    return weights if not encodes or (is_number and all(is_number)) else text


def answer_file(
    searcher: Searcher, source: str, output: str | None, out: Output, wanted: Mapping[str, Any]
) -> None:
    """Answer the queries of a file and write the run, or print it where there is no file for it.

    Raises:
        UsageError: An option that has no effect on a run.
        DataError: A file cannot be read or written.
        ClusterError: A query fails; then there is no run.
    """
    from oskit.cluster.search.run import run_queries
    from oskit.data.atomic import beside
    from oskit.data.queries import read_queries

    wanted = {name: value for name, value in wanted.items() if value}
    if useless := [name for name in ("explain", "fields", "sort", "offset") if name in wanted]:
        name = {"offset": "from"}.get(useless[0], useless[0])
        raise UsageError(
            f"--{name} has no effect on a run: the best documents of each query, by their scores"
        )
    if output in (None, "-") and out.json:
        raise UsageError(
            "--json tells what became of a run, which goes to a file", hint="Give it with -o FILE"
        )
    place = None if output in (None, "-") else Path(str(output))
    if place is not None and place.exists() and Path(source).exists() and place.samefile(source):
        raise UsageError(f"the run would take the place of its queries, {source}", hint="Choose another -o")
    queries = read_queries(source)
    with (
        nullcontext() if place is None else beside(place) as part,
        nullcontext() if part is None else part.open("w", encoding="utf-8") as file,
        out.progress("Searching", total=len(queries), unit="queries") as bar,
    ):
        write = functools.partial(click.echo, nl=False) if file is None else file.write
        report = run_queries(searcher, queries, write, advance=bar.advance, **wanted)
    _tell(report, out)
    if place is not None:
        out.wrote([place])
        out.result(asdict(report))


def _tell(report: RunReport, out: Output) -> None:
    for warning, count in report.warnings.items():
        out.warn(f"{warning} (for {count:,} of {report.queries:,} queries)")
    for ids, what in ((report.empty, "empty"), (report.nothing, "answered by no document")):
        if ids:
            named = ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
            out.warn(f"{len(ids):,} of {report.queries:,} queries are {what}, and not in the run: {named}")
    out.note(f"{report.queries:,} queries, {report.hits:,} hits")
