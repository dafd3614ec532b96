"""``oskit sweep``: find the settings of a search that are fast enough and find enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from oskit.cli.options import (
    connection_options,
    opened_archive,
    output_options,
    report_option,
    runtime_options,
)
from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.archive.backends.runtime import Runtime
    from oskit.cli.output import Output
    from oskit.cluster.client.connection import ConnectionSettings

Value = TypeVar("Value")


def _list_of(kind: Callable[[str], Value]) -> Callable[..., list[Value] | None]:
    """Reads ``1,2,3``."""

    def read(_context: click.Context, option: click.Parameter, text: str | None) -> list[Value] | None:
        if text is None:
            return None
        try:
            return list(dict.fromkeys(kind(part.strip()) for part in text.split(",") if part.strip()))
        except ValueError:
            raise click.BadParameter(f"{text!r} is no list such as {option.metavar}") from None

    return read


def _above_zero(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError(text)
        return value

    return read


@click.command("sweep", short_help="Find the fastest setting of a search that finds enough.")
@click.argument("index")
@click.argument("collection", metavar="COLLECTION", type=click.Path(file_okay=False))
@click.option("--archive", metavar="PATH", help="Archive that makes the queries' weights; needs no torch.")
@click.option("--query-archive", metavar="PATH", help="Tokenizer archive for queries.  [the export's own]")
@click.option("--model", metavar="NAME_OR_ID", help="Or a deployed model.  [the one that made the index]")
@click.option("--field", metavar="PATH", help="The vectors' field, where the index has several.")
@click.option("--split", default="test", show_default=True, help="Relevance judgements to use.")
@click.option("--top-n", metavar="5,10,20", callback=_list_of(_above_zero(int)), help="For sparse_vector.")
@click.option("--k", metavar="10,100,1000", callback=_list_of(_above_zero(int)), help="For sparse_vector.")
@click.option(
    "--heap-factor", metavar="0.8,1,1.5", callback=_list_of(_above_zero(float)), help="For sparse_vector."
)
@click.option(
    "--prune",
    metavar="max_ratio:0.2,top_k:10",
    callback=_list_of(str),
    help="Rules for the weights of queries, besides none.  [5 for rank_features, none for sparse_vector]",
)
@click.option(
    "--prune-ratio",
    metavar="0.2,0.4,0.6",
    callback=_list_of(_above_zero(float)),
    help="Of two phases, for rank_features.",
)
@click.option(
    "--expansion-rate",
    metavar="5,20",
    callback=_list_of(_above_zero(float)),
    help="Of two phases, for rank_features.",
)
@click.option("--queries", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option(
    "-n", "--size", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Hits that are timed."
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Timings of a query.")
@click.option(
    "--recall",
    "least_recall",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="Recall@10 that the setting must have.",
)
@click.option(
    "--exact",
    type=click.Choice(["index", "encoder"]),
    default="index",
    show_default=True,
    help="Exact scores from the weights in the index, or from the archive and COLLECTION's corpus.",
)
@runtime_options()
@report_option("sweep")
@connection_options
@output_options
def sweep(
    index: str,
    collection: str,
    archive: str | None,
    query_archive: str | None,
    model: str | None,
    field: str | None,
    split: str,
    queries: int,
    size: int,
    rounds: int,
    least_recall: float,
    exact: Literal["index", "encoder"],
    runtime: Runtime,
    report: str | None,
    connection: ConnectionSettings,
    out: Output,
    **values: Any,
) -> None:
    """Find the fastest setting of a search that finds enough.

    Asks INDEX the queries of COLLECTION (a folder in BEIR's layout) with many settings: top_n, k and
    heap_factor where sparse_vector is searched approximately, two phases and pruned queries on rank_features.
    Tells for each recall@10, @100 and @1000 against exact scores, nDCG@10, and how long a search takes; then
    which setting to take. The cluster is only read.

    \b
    Examples:
      oskit sweep articles data/faq --archive out
      oskit sweep articles data/faq --archive out --top-n 5,10,20,40 --heap-factor 1,2 --k 10 --report tuning
      oskit sweep articles data/faq --recall 0.99 --queries 500 --json
    """
    from oskit.cluster.client.needs import connect_for
    from oskit.data.collection import Collection
    from oskit.evaluation.live.sweep import sweep as compare
    from oskit.evaluation.live.sweep_settings import Grid
    from oskit.evaluation.reports.terminal import print_sweep

    if archive is not None and model is not None:
        raise UsageError("--archive and --model both make the queries' weights", hint="Leave one of them out")
    opened = Collection.open(collection, split)
    encoder = opened_archive(archive, query_archive, runtime)
    found = compare(
        connect_for(connection, "sweep"),
        index,
        opened,
        encoder,
        model_id=model,
        field=field,
        grid=Grid(**values),
        exact=exact,
        queries=queries,
        size=size,
        rounds=rounds,
        least_recall=least_recall,
        on_step=out.note,
    )
    out.result(found.to_dict(), lambda console: print_sweep(console, found))
    if report is not None:
        from oskit.evaluation.reports.sweep import write_sweep

        out.wrote(write_sweep(found, report))
