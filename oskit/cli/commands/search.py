"""`oskit search`: search an index."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from oskit.cli.hybrid_options import hybrid_options
from oskit.cli.options import connection_options, opened_archive, output_options, runtime_options
from oskit.cli.search_options import answer_file, given_query, narrowing_options
from oskit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.archive.backends.runtime import Runtime
    from oskit.cli.output import Output
    from oskit.cluster.client.connection import ConnectionSettings
    from oskit.cluster.search.hybrid import Hybrid
    from oskit.cluster.search.result import Hit, SearchResult

SNIPPET_LETTERS = 160
EXPLAINED_TOKENS = 12


@click.command("search")
@click.argument("index")
@click.argument("query", required=False)
@click.option(
    "--by",
    type=click.Choice(["model", "tokenizer", "analyzer", "tokens", "bm25"]),
    help="How the query is encoded.  [by what is given, else by the model that made the index]",
)
@click.option("--model", metavar="NAME|ID", help="A deployed encoder or tokenizer.")
@click.option("--archive", metavar="DIR", type=click.Path(), help="An exported encoder: encode here.")
@click.option(
    "--query-archive",
    metavar="DIR",
    type=click.Path(),
    help="Tokenizer archive of an inference-free encoder, where the manifest does not name it.",
)
@click.option("--analyzer", metavar="NAME", help="bert-uncased or mbert-uncased.")
@click.option("--field", metavar="PATH", help="The vectors' field, where the index has several.")
@click.option("-n", "--size", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Hits.")
@click.option("--two-phase", is_flag=True, help="Score by the heavy tokens first; rank_features only.")
@click.option("--explain", is_flag=True, help="Tell which tokens matched, with what weight.")
@click.option("--top-n", type=click.IntRange(1), help="Heaviest query tokens to look up; sparse_vector only.")
@click.option(
    "--heap-factor",
    type=click.FloatRange(min=0, min_open=True),
    help="Larger looks at more clusters; sparse_vector only.",
)
@narrowing_options
@click.option(
    "--queries",
    metavar="FILE",
    help="Answer a file of queries (JSONL, TSV, or a text a line; BEIR's folder), and write a run.",
)
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(), help="The run, in TREC's format.  [stdout]"
)
@click.option(
    "--print-request", is_flag=True, help="Print what would be sent, for curl or a client; do not search."
)
@hybrid_options()
@runtime_options()
@connection_options
@output_options
def search(
    index: str,
    query: str | None,
    by: Any,
    model: str | None,
    archive: str | None,
    query_archive: str | None,
    analyzer: str | None,
    field: str | None,
    size: int,
    two_phase: bool,
    explain: bool,
    top_n: int | None,
    heap_factor: float | None,
    narrowed: dict[str, Any],
    queries: str | None,
    output: str | None,
    print_request: bool,
    hybrid: Hybrid | None,
    runtime: Runtime,
    connection: ConnectionSettings,
    out: Output,
) -> None:
    """Search an index.

    The query is encoded by a deployed model (--model), by an analyzer of OpenSearch (--analyzer), or here
    by an exported encoder (--archive). Without any of them, by the model that the index was made with.
    A model and an archive together must be the same encoder.
    --by bm25 searches the same texts without an encoder, for comparison; --hybrid searches in several ways
    at once and has the cluster fuse them, without a search pipeline that somebody would have to make first.
    Token weights are a query, too: as JSON with --by tokens, or in a file for --queries.

    \b
    Examples:
      oskit search articles "how do I get a building permit"
      oskit search articles "building permit" --archive out --explain
      oskit search articles "building permit" --analyzer bert-uncased --two-phase
      oskit search articles "building permit" --by tokenizer --model my-tokenizer --json
      oskit search articles "building permit" --by bm25 -n 3
      oskit search articles "building permit" --hybrid bm25=0.3,sparse=0.7 --explain
      oskit search articles "building permit" --hybrid bm25=0.5,sparse=0.5 --fusion rrf:60
      oskit search articles "building permit" --filter lang=de --filter "year>=2020" --sort year:desc
      oskit search articles "building permit" --filter tenant=7 --print-request
      oskit search articles --queries queries.jsonl -n 1000 -o run.trec
    """  # fmt: skip
    from oskit.archive.manifest import MEANINGLESS
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.search.search import Searcher

    if queries is not None and (query is not None or print_request):
        raise UsageError("--queries takes the place of the one query, and its searches are not printed")
    if output is not None and queries is None:
        raise UsageError("-o is for the run of --queries, and the hits of one query are printed")
    encoder = opened_archive(archive, query_archive, runtime)
    method = {"top_n": top_n, "heap_factor": heap_factor}
    searcher = Searcher(
        connect_for(connection, "search", *_needing(two_phase, analyzer, hybrid)),
        index,
        by=by,
        model_id=model,
        analyzer=analyzer,
        encoder=encoder,
        field=field,
        notify=out.note,
    )
    wanted = {
        "size": size,
        "two_phase": two_phase,
        "explain": explain,
        "method_parameters": {name: value for name, value in method.items() if value is not None},
        "hybrid": hybrid,
        **narrowed,
    }
    if queries is not None:
        answer_file(searcher, queries, output, out, wanted)
        return
    asked = given_query(query, by_weights=by == "tokens", encodes=encoder is not None)
    if print_request:
        request = searcher.request(asked, **wanted)
        if warning := request.pop("warning"):
            out.warn(warning)
        click.echo(json.dumps(request, indent=2, ensure_ascii=False))
        if not request["path"].startswith(f"/{index}/"):
            out.note(f"The request is for what stands behind {index}, as it is seen through it")
        return
    result = searcher.search(asked, **wanted)
    if result.warning:
        out.warn(result.warning)
    out.result(result.to_dict(), lambda console: _print_result(console, result, narrowed))
    manifest = encoder.archive.manifest if encoder is not None and explain else None
    if manifest is not None and manifest.vocabulary.directions:
        out.note(MEANINGLESS)
    if any(key not in result.tokens for hit in result.hits for key in hit.matched if result.key == "id"):
        out.note("some tokens are shown by their ids: what they are called, --archive DIR tells")


def _needing(two_phase: bool, analyzer: str | None, hybrid: Hybrid | None) -> list[str]:
    """Options that need more of a cluster than a search."""
    named = {"two-phase": two_phase, "analyzer": analyzer, "hybrid": hybrid}
    return [f"search --{name}" for name, given in named.items() if given]


def _print_result(console: Console, result: SearchResult, narrowed: dict[str, Any]) -> None:
    for rank, hit in enumerate(result.hits, start=narrowed["offset"] + 1):
        _print_hit(console, rank, hit, result.tokens, only_fields=narrowed["fields"] is not None)
    found = "no document" if not result.total else f"{result.total:,} documents"
    least = "at least " if result.total and result.total_relation == "gte" else ""
    through = f", through the search pipeline {result.search_pipeline}" if result.search_pipeline else ""
    how = result.by if result.hybrid is None else _fused(result.hybrid)
    console.print(f"{least}{found} matched in {result.index}, by {how}, {result.took_ms} ms{through}",
                  markup=False, style="dim", soft_wrap=True)  # fmt: skip


def _fused(hybrid: dict[str, Any]) -> str:
    sides = " + ".join(f"{weight:.4g} {name}" for name, weight in hybrid["weights"].items())
    return f"{sides}, fused by {hybrid['fusion']} over {hybrid['pagination_depth']:,} hits of each"


def _print_hit(console: Console, rank: int, hit: Hit, tokens: dict[str, str], *, only_fields: bool) -> None:
    title = "" if only_fields else _printable(hit.title)
    console.print(f"{rank:>3}. {hit.score:8.4f}  {_printable(hit.id)}  {title}", markup=False, soft_wrap=True)
    text = _printable(hit.passage.text if hit.passage else hit.text)
    if hit.passage is not None and hit.passage.start is not None:
        text = f"(at {hit.passage.start:,}) {text}"
    if only_fields:
        text = _printable(json.dumps(hit.source, ensure_ascii=False)[1:-1])
    if text:
        shown = text if len(text) <= SNIPPET_LETTERS else f"{text[: SNIPPET_LETTERS - 1]}…"
        console.print(f"               {shown}", markup=False, style="dim", soft_wrap=True)
    for name, side in hit.sides.items():
        told = "not among its hits"
        if side.rank is not None:
            part = "" if side.share is None else f", {side.share:.0%} of the score"
            told = f"rank {side.rank}, score {side.score:.4f}, counted as {side.normalized:.4f}{part}"
        console.print(f"               {name}: {told}", markup=False, soft_wrap=True)
    for token, match in list(hit.matched.items())[:EXPLAINED_TOKENS]:
        name = _printable(tokens.get(token, token))
        sum_of = f"{match.query:8.4f} * {match.document:8.4f} = {match.product:8.4f}"
        console.print(f"               {name:<20} {sum_of}", markup=False)
    if (more := len(hit.matched) - EXPLAINED_TOKENS) > 0:
        console.print(f"               and {more} tokens more", markup=False, style="dim")


def _printable(text: str) -> str:
    """Without line breaks and control characters, which could do anything to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
