"""``oskit verify``: prove that a cluster retrieves what it should."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from oskit.cli.hybrid_options import hybrid_options
from oskit.cli.options import connection_options, output_options, report_option, runtime_options
from oskit.errors import SearchError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.backends.runtime import Runtime
    from oskit.archive.text_encoder import TextEncoder
    from oskit.cli.output import Output
    from oskit.cluster.client.connection import ConnectionSettings
    from oskit.cluster.search.hybrid import Hybrid
    from oskit.evaluation.live.query_modes import SearchBy


@click.command("verify", short_help="Prove that a cluster retrieves what it should.")
@click.argument("collection", metavar="COLLECTION", type=click.Path(file_okay=False))
@click.option("--index", required=True, metavar="NAME", help="Index or alias that holds the corpus.")
@click.option("--archive", metavar="PATH", help="Archive that the index was made with; needs no torch.")
@click.option("--query-archive", metavar="PATH", help="Tokenizer archive for queries.  [the export's own]")
@click.option("--model-encoder", metavar="MODEL", help="Or the model, a folder or a name; needs torch.")
@click.option(
    "--by",
    type=click.Choice(["tokens", "model", "analyzer"]),
    help="Who makes the query's weights: we, a deployed model, an analyzer.  [model with --model, "
    "analyzer with --analyzer, else tokens]",
)
@click.option("--model", metavar="NAME_OR_ID", help="Deployed model for the queries.")
@click.option("--analyzer", metavar="NAME", help="Analyzer for the queries, such as bert-uncased.")
@click.option("--field", metavar="PATH", help="The vectors' field, where the index has several.")
@click.option("--split", default="test", show_default=True, help="Relevance judgements to use.")
@click.option("-k", "--depth", "k", type=int, default=100, show_default=True, help="Hits of each query.")
@click.option("--top-n", type=int, metavar="N", help="Query tokens of an approximate search.  [10]")
@click.option("--two-phase", is_flag=True, help="Also search in two phases, and tell what that loses.")
@click.option("--bm25/--no-bm25", default=True, show_default=True, help="Also search with BM25.")
@click.option("--require-quality", is_flag=True, help="Exit with 9 also where BM25 is better.")
@click.option("--sample", type=click.IntRange(min=0), default=200, show_default=True,
              help="Documents whose stored weights are checked.")  # fmt: skip
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="WEIGHT",
    help="How far weights may differ before they are stored.  [0.0002; 0.2 for int8]",
)
@hybrid_options(vector=False)
@runtime_options()
@report_option("verification")
@connection_options
@output_options
def verify(
    collection: str,
    index: str,
    archive: str | None,
    query_archive: str | None,
    model_encoder: str | None,
    by: str | None,
    model: str | None,
    analyzer: str | None,
    field: str | None,
    split: str,
    k: int,
    top_n: int | None,
    two_phase: bool,
    bm25: bool,
    require_quality: bool,
    sample: int,
    tolerance: float | None,
    hybrid: Hybrid | None,
    runtime: Runtime,
    report: str | None,
    connection: ConnectionSettings,
    out: Output,
) -> None:
    """Prove that a cluster retrieves what it should.

    Asks the cluster every query of COLLECTION (a folder in BEIR's layout: corpus.jsonl, queries.jsonl,
    qrels/SPLIT.tsv) and computes the exact scores here. Quality, overlap and latency are reported beside each
    other. A score, a rank or a missing document that is not explained by how the index rounds weights is a
    failure, and the command exits with 9. Whether the encoder is any good here is the second verdict: it is
    compared with BM25 in the same index by paired bootstrap. With --hybrid, fused scores are compared with
    those that the cluster's own lists, and exact scores, fuse to here.

    \b
    Examples:
      oskit verify faq --index faq --archive out
      oskit verify faq --index faq --archive out --model my-encoder --report proof
      oskit verify faq --index faq --model-encoder ./my-encoder --two-phase --json
      oskit verify faq --index faq --archive out --hybrid bm25=0.3,sparse=0.7 --fusion rrf:60
    """
    from oskit.cluster.client.needs import connect_for
    from oskit.data.collection import Collection
    from oskit.evaluation.live import verify as proof
    from oskit.evaluation.live.result import BETTER_ENCODER
    from oskit.evaluation.reports.terminal import print_verification

    if require_quality and not bm25:
        raise UsageError("--require-quality compares with BM25", hint="Leave out --no-bm25.")
    opened = Collection.open(collection, split)
    encoder = _encoder(archive, query_archive, model_encoder, runtime, out)
    client = connect_for(connection, "verify")
    how, model_id = _search(client, index, field, by, model, analyzer)
    found = proof.verify(
        client,
        index,
        opened,
        encoder,
        by=how,
        model_id=model_id,
        analyzer=analyzer,
        field=field,
        k=k,
        top_n=top_n,
        tolerance=tolerance,
        baseline_bm25=bm25,
        two_phase=two_phase,
        hybrid=hybrid,
        sample=sample,
        on_step=out.note,
    )
    out.result(found.to_dict(), lambda console: print_verification(console, found))
    if report is not None:
        from oskit.evaluation.reports.verification import write_verification

        out.wrote(write_verification(found, report))
    if found.is_worse_than_bm25:
        out.warn(f"this encoder serves these texts worse than BM25 would. {BETTER_ENCODER}")
    found.raise_for_disagreement()
    if require_quality:
        found.raise_for_quality()


def _encoder(
    archive: str | None, query_archive: str | None, model: str | None, runtime: Runtime, out: Output
) -> TextEncoder:
    from oskit.archive.encoder import ArchiveEncoder
    from oskit.encoder.opening import open_encoder

    if (archive is None) == (model is None):
        raise UsageError(
            "either --archive or --model-encoder is needed",
            hint="Name the archive or the model that the index was made with.",
        )
    if runtime.precision in ("auto", "bf16"):
        raise UsageError(
            f"--precision {runtime.precision} is not exact, and a proof needs exact scores",
            hint="Leave it out; --tolerance allows for an index that was made in bf16.",
        )
    if archive is not None:
        return ArchiveEncoder.open(archive, query=query_archive, runtime=runtime, notify=out.note)
    return open_encoder(str(model), runtime, query=query_archive, notify=out.note)


def _search(
    client: OpenSearch,
    index: str,
    field: str | None,
    by: str | None,
    model: str | None,
    analyzer: str | None,
) -> tuple[SearchBy, str | None]:
    """Who makes the weights of the queries, and the id of the model that does."""
    how = by or ("model" if model else "analyzer" if analyzer else "tokens")
    for option, given, fits in (("--model", model, "model"), ("--analyzer", analyzer, "analyzer")):
        if given is not None and how != fits:
            raise UsageError(f"{option} does not go with queries by {how}", hint="Leave one of the two out")
    if how != "model":
        return cast("SearchBy", how), None
    from oskit.cluster.index.mapping import find_index
    from oskit.cluster.search.query_model import query_model

    known = find_index(client, index, field)
    if known is None:
        raise SearchError(f"there is no index {index!r}", hint=f"Load one with: oskit ingest {index} FILE")
    return "model", query_model(client, known[1], "model", model).model_id
