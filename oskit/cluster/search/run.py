"""Many queries at once, and what was found for them as a run, which every tool of the field reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oskit.cluster.search.search import TOGETHER
from oskit.errors import ClusterError, SearchError

if TYPE_CHECKING:
    from oskit.cluster.search.result import SearchResult
    from oskit.cluster.search.search import Searcher
    from oskit.data.queries import FileQuery

TAG = "oskit"
"""What a run is called in its last column."""


@dataclass
class RunReport:
    """What became of the queries.

    Attributes:
        queries: All of them.
        hits: Of all queries together; the lines of the run.
        empty: Ids of queries without anything to search for.
        nothing: Ids of the others for which nothing was found.
        warnings: What makes answers doubtful, and for how many queries it does.
    """

    queries: int
    hits: int
    empty: list[str]
    nothing: list[str]
    warnings: dict[str, int]


def run_queries(
    searcher: Searcher,
    queries: Sequence[FileQuery],
    write: Callable[[str], object],
    *,
    advance: Callable[[int], object] = lambda _: None,
    **wanted: Any,
) -> RunReport:
    """Answer queries and write the run in TREC's format: query, ``Q0``, document, rank, score, tag.

    Args:
        searcher: Answers them, :data:`oskit.cluster.search.search.TOGETHER` in one request.
        queries: From :func:`oskit.data.queries.read_queries`.
        write: Takes the run, query by query.
        advance: Told how many queries were answered.
        **wanted: As for :meth:`oskit.cluster.search.search.Searcher.search`; ``size`` is the depth.

    Raises:
        ClusterError: A query fails, or a document has an id that a run cannot hold; names file and line.
    """
    report = RunReport(len(queries), 0, [], [], {})
    for start in range(0, len(queries), TOGETHER):
        batch = queries[start : start + TOGETHER]
        answers = searcher.search_many(
            [query.query for query in batch], fields=(), return_errors=True, **wanted
        )
        for query, found in zip(batch, answers, strict=True):
            if isinstance(found, ClusterError):
                said = f"{query.where}: the query {query.id!r}: {found.message}"
                raise type(found)(said, hint=found.hint) from found
            write(_lines(query, found))
            report.hits += len(found.hits)
            if not found.hits:
                (report.empty if query.is_empty else report.nothing).append(query.id)
            if found.warning:
                report.warnings[found.warning] = report.warnings.get(found.warning, 0) + 1
        advance(len(batch))
    return report


def _lines(query: FileQuery, found: SearchResult) -> str:
    lines = []
    for rank, hit in enumerate(found.hits, start=1):
        if hit.id.split() != [hit.id]:
            raise SearchError(
                f"the document {hit.id!r}, found for the query {query.id!r}, has a blank in its id, which "
                "ends a column of a run",
                hint="Search one query after the other with --json",
            )
        lines.append(f"{query.id} Q0 {hit.id} {rank} {hit.score!r} {TAG}\n")
    return "".join(lines)
