"""``oskit tune``: find out which fusion of several searches is best, and whether any is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from oskit.cli.hybrid_options import DENSE_OPTIONS, DEPTH_OPTION
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


@click.command("tune", short_help="Find the best fusion of BM25, sparse and dense search, if any helps.")
@click.argument("collection", metavar="COLLECTION", type=click.Path(file_okay=False))
@click.option("--index", required=True, metavar="NAME", help="Index or alias that holds the corpus.")
@click.option(
    "--sides",
    default="bm25,sparse",
    show_default=True,
    metavar="bm25,sparse",
    help="What to fuse: bm25, sparse and dense, and bm25:FIELD or dense:FIELD; 2 to 5.",
)
@click.option(
    "--fusion",
    "fusions",
    metavar="min_max,rrf:60",
    help="What to try.  [min_max, l2, z_score, rrf:10, rrf:60, rrf:200]",
)
@DEPTH_OPTION
@DENSE_OPTIONS[0]
@DENSE_OPTIONS[1]
@click.option("--archive", metavar="PATH", help="Archive that makes the queries' weights; needs no torch.")
@click.option("--query-archive", metavar="PATH", help="Tokenizer archive for queries.  [the export's own]")
@click.option("--model", metavar="NAME_OR_ID", help="Or a deployed model.  [the one that made the index]")
@click.option("--analyzer", metavar="NAME", help="Or an analyzer, such as bert-uncased.")
@click.option("--field", metavar="PATH", help="The vectors' field, where the index has several.")
@click.option("--split", default="test", show_default=True, help="Relevance judgements to use.")
@click.option(
    "--folds",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="Parts of the queries; each is measured by what the others choose.",
)
@click.option(
    "--put-pipeline", metavar="NAME", help="Store the best fusion as a search pipeline, if it helps."
)
@click.option("--replace", is_flag=True, help="Also in the place of a pipeline that somebody else made.")
@runtime_options()
@report_option("tune")
@connection_options
@output_options
def tune(
    collection: str,
    index: str,
    sides: str,
    fusions: str | None,
    pagination_depth: int,
    dense_model: str | None,
    dense_field: str | None,
    archive: str | None,
    query_archive: str | None,
    model: str | None,
    analyzer: str | None,
    field: str | None,
    split: str,
    folds: int,
    put_pipeline: str | None,
    replace: bool,
    runtime: Runtime,
    report: str | None,
    connection: ConnectionSettings,
    out: Output,
) -> None:
    """Find the best fusion of BM25, sparse and dense search, if any helps.

    Asks INDEX each judged query of COLLECTION (a folder in BEIR's layout) once a side, and fuses the lists
    here as OpenSearch would: by all weights in steps of 0.05 (three sides: 0.1), by each fusion. What tuning
    brings is measured on queries that did not choose (cross-validation), with its significance against the
    best side alone. Where it brings nothing, that is the advice.

    The search pipeline of the best fusion is printed, or stored by --put-pipeline.

    \b
    Examples:
      oskit tune data/faq --index faq --archive out
      oskit tune data/faq --index faq --archive out --fusion min_max,rrf:60 --put-pipeline faq-fusion
      oskit tune data/faq --index faq --sides bm25,sparse,dense --dense-model my-dense --report tuned
    """
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.search.fusion import Fusion
    from oskit.cluster.search.hybrid import Hybrid
    from oskit.cluster.search.stored_fusion import check_name, put_fusion, stored
    from oskit.data.collection import Collection
    from oskit.evaluation.live.tune import tune as try_fusions
    from oskit.evaluation.offline.fusion_settings import DEFAULT_FUSIONS
    from oskit.evaluation.reports.terminal import print_tuning

    encodes = {"--archive": archive, "--model": model, "--analyzer": analyzer}
    if len(given := [name for name, value in encodes.items() if value is not None]) > 1:
        raise UsageError(
            f"{' and '.join(given)} both make the queries' weights", hint="Leave one of them out"
        )
    if replace and put_pipeline is None:
        raise UsageError("--replace goes with --put-pipeline", hint="Leave it out, or name a pipeline")
    names = [name.strip() for name in sides.split(",") if name.strip()]
    if "=" in sides:
        raise UsageError(
            f"--sides {sides} names weights, which are what is looked for", hint="Name sides only"
        )
    hybrid = Hybrid.parse(
        ",".join(f"{name}={1 / len(names)}" for name in names),
        depth=pagination_depth,
        dense_field=dense_field,
        dense_model=dense_model,
    )
    if fusions is not None and not all(name.strip() for name in fusions.split(",")):
        raise UsageError(f"--fusion {fusions!r} has nothing beside a comma", hint="Leave the comma out")
    tried = [Fusion.parse(name) for name in (fusions.split(",") if fusions is not None else DEFAULT_FUSIONS)]
    opened = Collection.open(collection, split)
    client = connect_for(connection, "tune")
    if put_pipeline is not None:
        check_name(client, put_pipeline, index, replace=replace)
    encoder = opened_archive(archive, query_archive, runtime)
    found = try_fusions(
        client,
        index,
        opened,
        encoder,
        sides=hybrid,
        fusions=list(dict.fromkeys(tried)),
        model_id=model,
        analyzer=analyzer,
        field=field,
        folds=folds,
        on_step=out.note,
    )
    told: dict[str, Any] = {**found.to_dict(), "pipeline": stored(found.hybrid, index), "stored_as": None}
    if put_pipeline is not None and found.brings_something:
        put_fusion(client, put_pipeline, found.hybrid, index, replace=replace)
        told["stored_as"] = put_pipeline
    elif put_pipeline is not None:
        out.warn(f"the search pipeline {put_pipeline!r} is not stored: fusion brings nothing here")

    def show(console: Any) -> None:
        print_tuning(console, found)
        if put_pipeline is None and found.brings_something:
            console.print("The search pipeline (PUT _search/pipeline/NAME, or --put-pipeline NAME):")
            console.print(json.dumps(told["pipeline"]), markup=False, soft_wrap=True)

    out.result(told, show)
    if report is not None:
        from oskit.evaluation.reports.tuning import write_tuning

        out.wrote(write_tuning(found, report))
