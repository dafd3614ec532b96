"""`oskit ingest`: create an index and load documents into it."""

from __future__ import annotations

import functools
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oskit.cli.index_options import INDEX_OPTIONS, index_settings, text_fields
from oskit.cli.loaded import load_told, print_load
from oskit.cli.options import SOME_REFUSED, connection_options, output_options, runtime_options, with_options
from oskit.cli.ray_options import RAY_OPTIONS, check_ray_options, ray_job
from oskit.cli.releasing import (
    RELEASE_OPTIONS,
    Releasing,
    check_options,
    print_release,
    release_calls,
    released_name,
)
from oskit.data.documents import Document
from oskit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opensearchpy import OpenSearch
    from rich.console import Console

    from oskit.archive.backends.runtime import Runtime
    from oskit.archive.text_encoder import TextEncoder
    from oskit.archive.token_weights import Prune
    from oskit.cli.output import Output
    from oskit.cluster.client.connection import ConnectionSettings
    from oskit.cluster.index.mapping import EncodeMode, EncoderIdentity, IndexSettings
    from oskit.cluster.ingest.load import IngestReport
    from oskit.data.documents import Refusal

# fmt: off
_OPTIONS = [
    click.option("--encode", type=click.Choice(["client", "cluster", "none"]),
                 help="Encode here with --archive, by --model in an ingest pipeline, or not at all: then the "
                 "sources hold the weights, in the field of --embedding-field."),
    click.option("--archive", metavar="DIR", type=click.Path(),
                 help="The exported encoder, or a model's folder; with --encode cluster it counts what is "
                 "too long."),
    click.option("--query-archive", metavar="DIR", type=click.Path(),
                 help="Tokenizer archive of an inference-free encoder, where the manifest does not name it."),
    click.option("--model", metavar="NAME|ID",
                 help="The deployed encoder; with --encode client it is recorded for search."),
    click.option("--query-model", metavar="NAME|ID",
                 help="The model that encodes queries, if it is another; search will use it."),
    click.option("--prune", metavar="TYPE:RATIO",
                 help="Keep only the heavy weights, as in max_ratio:0.1, which is what a semantic field does "
                 "unless it is none."),
    click.option("--index-kind", type=click.Choice(["rank_features", "sparse_vector", "semantic"]),
                 default="rank_features", show_default=True,
                 help="Type of the vector's field; or a semantic field, which the cluster encodes whoever "
                 "writes it."),
    click.option("--shards", type=click.IntRange(1), metavar="N", help="Primary shards.  [1]"),
    click.option("--replicas", type=click.IntRange(0),
                 help="Copies of each shard.  [one where there is a second node]"),
    click.option("--approximate-threshold", type=click.IntRange(0), metavar="N",
                 help="Documents of a segment from which sparse_vector search is approximate.  [1000000]"),
    click.option("--recreate", is_flag=True,
                 help="Put a new index in the place of the one that is there, once a trial has worked."),
    click.option("--reencode", is_flag=True,
                 help="Encode all documents, also those that the index has unchanged."),
    click.option("--delete-missing", is_flag=True,
                 help="Then delete documents of earlier loads that the sources no longer have."),
    click.option("-y", "--yes", is_flag=True,
                 help="With --delete-missing: also if they are more than a fifth of all. With --release: "
                 "also if the living one was written to meanwhile, or shows many more documents."),
    click.option("--duplicates", type=click.Choice(["refuse", "first", "last"]), default="refuse",
                 show_default=True, help="Which document to take where several have one id and different "
                 "contents: the first, refusing the others; or the first or last, leaving the others out. "
                 "For the last all are read first, into a temporary file."),
    click.option("--format", "file_format", type=click.Choice(["jsonl", "csv", "tsv", "parquet"]),
                 help="Format of the sources.  [by their names; stdin is jsonl]"),
    click.option("--id-field", metavar="NAME", help="Field with the id.  [_id, id, or made of the content]"),
    click.option("--text-field", metavar="NAME", default="text", show_default=True,
                 help="Field with the text; or several, as in title^2,body, whose texts are encoded as one. "
                 "What they are boosted by (^2) counts for BM25 only."),
    click.option("--title-field", metavar="NAME", default="title", show_default=True,
                 help="Field with the title, which is put in front of the text."),
    click.option("--embedding-field", metavar="NAME", default="embedding", show_default=True,
                 help="Name of the vector's field in the index, and with --encode none in the sources."),
    click.option("--passage-field", metavar="NAME", default="passage", show_default=True,
                 help="Name of the encoded text's field in the index."),
    click.option("--part", metavar="N/OF",
                 help="Load one of several shares of the documents only, chosen by their ids, as 3/16."),
    click.option("--pipeline-batch-size", type=click.IntRange(1), metavar="N",
                 help="Documents that the ingest pipeline hands to the model together, where the cluster "
                 "encodes.  [32]"),
    click.option("--bulk-size", type=click.IntRange(1), metavar="N",
                 help="Documents of one request at most.  [by their bytes; 100 where the cluster encodes]"),
    click.option("--workers", type=click.IntRange(1, 16), default=2, show_default=True,
                 help="Requests in flight."),
    click.option("--dead-letter", metavar="FILE", type=click.Path(dir_okay=False),
                 help="File for refused documents, appended to.  [INDEX.refused.jsonl]"),
    *RELEASE_OPTIONS,
    *RAY_OPTIONS,
    click.option("--dry-run", is_flag=True,
                 help="Read and check the sources only, with --archive also their length. With --url (or "
                 "OSKIT_URL) and an encoder also tell every call that would change the cluster."),
    *INDEX_OPTIONS,
    click.option("--chunk", metavar="tokens:N[,overlap:M]",
                 help="Cut documents into chunks of at most N of the encoder's tokens, at sentences, M of "
                 "them repeated; each has a vector, in nested objects. Needs --archive."),
]
# fmt: on


@click.command("ingest")
@click.argument("index")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@functools.partial(with_options, options=_OPTIONS)
@runtime_options()
@connection_options
@output_options
def ingest(
    index: str,
    sources: tuple[str, ...],
    connection: ConnectionSettings,
    out: Output,
    **options: Any,
) -> None:
    """Create an index and load documents into it.

    A SOURCE is a JSONL, CSV, TSV or Parquet file, a folder in BEIR's layout, or - for stdin; compressed or
    not (gzip, bz2, xz, zstd). The index is created unless it is there. Running the same command again goes
    on where an interrupted one stopped, and encodes only what is new or changed: the index knows which
    documents it has, and which encoder made them.

    What is refused goes to a dead-letter file with the reason, and the exit code is 10. Correct the lines
    and ingest that file.

    \b
    Examples:
      oskit ingest articles corpus.jsonl.gz --encode client --archive out
      oskit ingest articles data/scifact --encode cluster --model my-encoder
      oskit ingest shop items.csv --text-field description --title-field name --archive out
      zcat dump.gz | oskit ingest articles - --archive out --index-kind sparse_vector
      oskit ingest articles vectors.parquet --encode none
      oskit ingest articles corpus.jsonl --archive out --part 3/16
      oskit ingest manuals manuals.jsonl --archive out --chunk tokens:384,overlap:64
      oskit ingest articles corpus.jsonl --dry-run
    """
    from oskit.cluster.ingest.admission import key_of_vectors
    from oskit.data.files import read_documents
    from oskit.data.parts import Part

    if "-" in sources and click.get_current_context().params.get("password_stdin"):
        raise UsageError("stdin cannot hold both the password and documents", hint="Use --password-file")
    if options["reencode"] and options["recreate"]:
        raise UsageError(
            "--reencode has no effect with --recreate, which encodes all", hint="Give one of them"
        )
    if options["yes"] and not (options["delete_missing"] or options["release"]):
        raise UsageError("--yes has no effect without --delete-missing or --release")
    check_options(options)
    check_ray_options(options)
    if options["part"] and options["delete_missing"]:
        raise UsageError(
            "a part does not have what is in the other parts, so nothing can be called missing",
            hint="Leave out --delete-missing, or load everything at once",
        )
    fields = text_fields(options, out)
    settings = index_settings(options, fields, out)
    documents = read_documents(
        sources,
        format=options["file_format"],
        id_field=options["id_field"],
        text_field=fields.names,
        title_field=options["title_field"],
        vector_field=options["embedding_field"] if options["encode"] == "none" else None,
    )
    part = Part.parse(options["part"]) if options["part"] else None
    documents = part.only(documents) if part is not None else documents
    options |= {"part": part, "made_by": None, "key": None}
    if options["encode"] == "none":
        if options["prune"]:
            raise UsageError("vectors that come with the documents are sent as they are",
                             hint="Leave out --prune, which oskit encode -o takes")  # fmt: skip
        options["made_by"], options["prune"] = _made_by(sources)
        options["key"], documents = key_of_vectors(documents)
    if options["dry_run"]:
        report = _dry_run(index, documents, settings, connection, out, options)
    elif options["release"]:
        report = _release(index, sources, documents, settings, connection, out, options)
    else:
        report = _run(index, sources, documents, settings, connection, out, options)
        out.result(
            load_told(report, options), lambda console: print_load(console, report, options, dry=False)
        )
        out.note(_next_step(index, report, options))
    if report.language_warning is not None:
        out.warn(report.language_warning)
    if report.refused:
        click.get_current_context().exit(SOME_REFUSED)


def _run(
    index: str,
    sources: tuple[str, ...],
    documents: Any,
    settings: IndexSettings,
    connection: ConnectionSettings,
    out: Output,
    options: dict[str, Any],
) -> IngestReport:
    from oskit.cluster.ingest.load import IngestInterrupted
    from oskit.cluster.ingest.load import ingest as load
    from oskit.data.files import count_records

    mode = _encode_mode(options)
    encoder = _encoder(options, out)
    planned = _planned(mode, out, options)
    total = None if out.quiet else count_records(sources, format=options["file_format"])
    total = total // options["part"].of if total is not None and options["part"] is not None else total
    client = _connected(connection, settings, encoder, planned, options, index)
    with out.progress(f"Loading {index}", total=total) as bar:
        try:
            return load(
                client,
                index,
                documents,
                settings=settings,
                encoder=encoder,
                bulk_documents=options["bulk_size"],
                workers=options["workers"],
                ray=ray_job(options, connection),
                dead_letter=_dead_letter(index, sources, options["dead_letter"]),
                reencode=options["reencode"],
                delete_missing=_most_missing(options),
                duplicates=options["duplicates"],
                progress=bar.advance,
                **planned,
            )
        except IngestInterrupted as interrupted:
            if out.json:
                out.result(load_told(interrupted.report, options))
            raise


def _release(
    alias: str,
    sources: tuple[str, ...],
    documents: Any,
    settings: IndexSettings,
    connection: ConnectionSettings,
    out: Output,
    options: dict[str, Any],
) -> IngestReport:
    """Load a new index, and have the alias stand for it."""
    from oskit.cluster.ingest.plan import plan_load
    from oskit.evaluation.live.release_proof import Sample

    sample = Sample()
    options["opened"] = encoder = _encoder(options, out)
    planned = _planned(_encode_mode(options), out, options)
    client = _connected(connection, settings, encoder, planned, options, None)
    releasing = Releasing(client, alias, encoder, options, sample, out)
    done = releasing.run(
        lambda name: plan_load(client, name, settings, encoder=encoder, **planned),
        lambda name: _run(name, sources, sample.watch(documents), settings, connection, out, options),
        _encoder_name(encoder, options),
    )

    def show(console: Console) -> None:
        print_load(console, done.load, options, dry=False)
        print_release(console, done)

    out.result(load_told(done.load, options) | done.to_dict(), show)
    out.note(f"Next: oskit releases {alias}; oskit rollback {alias} brings the one before back")
    return done.load


def _encoder_name(encoder: TextEncoder | None, options: dict[str, Any]) -> str | None:
    """For the name of a release."""
    name = getattr(getattr(encoder, "archive", None), "name", None) or getattr(
        options["made_by"], "name", None
    )
    return str(name or options["model"] or Path(options["archive"] or "").name)


def _dry_run(
    index: str,
    documents: Any,
    settings: IndexSettings,
    connection: ConnectionSettings,
    out: Output,
    options: dict[str, Any],
) -> IngestReport:
    """Check the documents; and, if a cluster is named, ask it what would be changed there."""
    from oskit.cluster.index.names import check_index_name
    from oskit.cluster.ingest.load import BULK_DOCUMENTS, dry_run
    from oskit.cluster.ingest.missing import why_none_goes
    from oskit.cluster.ingest.plan import plan_load
    from oskit.data.duplicates import DuplicateFilter
    from oskit.errors import ClusterConnectionError

    if not options["release"]:  # an alias may be called otherwise
        check_index_name(index)
    encoder = _encoder(options, out)
    _prune(options)  # what cannot be right is told even if no cluster is asked
    calls, missing, stays, why = None, None, "", ""
    first: list[Document] = []

    def watched() -> Iterator[Document | Refusal]:
        for record in documents:
            first.extend([record] if not first and isinstance(record, Document) else ())
            yield record

    with closing(DuplicateFilter(options["duplicates"])) as seen:
        report = dry_run(index, watched(), settings, encoder=encoder, encode=options["encode"], seen=seen)
        if click.get_current_context().params.get("url") is None and not os.environ.get("OSKIT_URL"):
            why = "--url (or OSKIT_URL) names none"
        elif options["archive"] is None and options["model"] is None and options["encode"] is None:
            why = "neither --archive nor --model says what encodes the documents"
        else:
            mode = _encode_mode(options)
            try:
                planned = _planned(mode, out, options)
                client = _connected(connection, settings, encoder, planned, options, index)
                name = (
                    released_name(client, index, _encoder_name(encoder, options))
                    if options["release"]
                    else index
                )
                plan = plan_load(client, name, settings, encoder=encoder, **planned)
                if first:
                    plan.check_fields(client, first[0])
                calls = plan.calls(client, report.indexed, options["bulk_size"] or BULK_DOCUMENTS[mode])
                if options["release"]:
                    calls = release_calls(client, calls, plan, index, options["keep"])
                if (most := _most_missing(options)) is not None:
                    missing = plan.missing(client, seen)
                    stays = why_none_goes(report.read, report.refused, missing, most)
            except ClusterConnectionError as error:
                why = str(error)

    def show(console: Console) -> None:
        print_load(console, report, options, dry=True)
        for call in calls or ():
            console.print(f"  {call}", markup=False, soft_wrap=True)
        if missing is not None:
            but = f"; nothing is deleted: {stays}" if stays else ""
            console.print(f"  to delete: {missing}{but}", markup=False, soft_wrap=True)

    said: dict[str, Any] = {"calls": None if calls is None else [call.to_dict() for call in calls]}
    if options["delete_missing"]:
        said |= {"missing": missing and {**missing.to_dict(), "stays": stays or None}}
    out.result({**load_told(report, options), **said}, show)
    if why:
        out.note(f"The cluster was not asked: {why}")
    return report


def _needing(mode: EncodeMode, options: dict[str, Any]) -> list[str]:
    """The load, and its options that need more of a cluster."""
    kind = options["index_kind"]
    asked = {
        "--encode cluster": mode == "cluster" and kind != "semantic",
        f"--index-kind {kind}": kind != "rank_features",
        **{
            f"--{name.replace('_', '-')}": options[name] for name in ("delete_missing", "recreate", "release")
        },
    }
    return ["ingest", *(f"ingest {option}" for option, given in asked.items() if given)]


def _most_missing(options: dict[str, Any]) -> float | None:
    """The largest share of the documents that may be deleted."""
    from oskit.cluster.ingest.missing import MOST_GONE

    if not options["delete_missing"]:
        return None
    return 1.0 if options["yes"] else MOST_GONE


def _planned(mode: EncodeMode, out: Output, options: dict[str, Any]) -> dict[str, Any]:
    """What a load and its plan are both told."""
    return {
        "encode": mode,
        "model_id": options["model"],
        "query_model_id": options["query_model"],
        "prune": _prune(options),
        "recreate": options["recreate"],
        "made_by": options["made_by"],
        "key": options["key"],
        "pipeline_batch_size": options["pipeline_batch_size"],
        "notify": out.note,
    }


def _connected(
    connection: ConnectionSettings,
    settings: IndexSettings,
    encoder: TextEncoder | None,
    planned: dict[str, Any],
    options: dict[str, Any],
    index: str | None,
) -> OpenSearch:
    """A client, once what was asked for fits together, and the cluster can do it."""
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.ingest.plan import check_arguments

    given = (planned[name] for name in ("model_id", "pipeline_batch_size", "made_by"))
    check_arguments(settings, planned["encode"], encoder, *given)
    return connect_for(connection, *_needing(planned["encode"], options), index=index)


def _prune(options: dict[str, Any]) -> Prune | None:
    from oskit.archive.token_weights import Prune

    if options["index_kind"] == "semantic":  # OpenSearch's default
        rule = options["prune"] or "max_ratio:0.1"
        return None if rule == "none" else Prune.parse(rule)
    return Prune.parse(options["prune"]) if options["prune"] else None


def _encoder(options: dict[str, Any], out: Output) -> TextEncoder | None:
    """The archive or model that is named, opened."""
    if "opened" in options:
        return options["opened"]  # type: ignore[no-any-return]
    runtime: Runtime = options["runtime"]
    if options["archive"] is None:
        if options["query_archive"] is not None:
            raise UsageError(
                "--query-archive has no effect without --archive", hint="Give the encoder's archive"
            )
        runtime.refuse_unused("without --archive")
        return None
    if options["encode"] == "cluster":
        runtime.refuse_unused("where the cluster encodes")
    from oskit.encoder.opening import open_encoder

    # A name that is mistyped must not fill an index with the weights of a random projection.
    return open_encoder(
        options["archive"], runtime, query=options["query_archive"], fallback=False, notify=out.note
    )


def _encode_mode(options: dict[str, Any]) -> Any:
    """What was asked for, or what the other options mean."""
    if options["encode"] is not None:
        return options["encode"]
    if options["archive"] is not None and options["index_kind"] != "semantic":
        return "client"
    if options["model"] is not None:
        return "cluster"
    raise UsageError(
        "documents must be encoded by something",
        hint="Give --archive DIR to encode here, --model NAME to encode on the cluster, or --encode none for "
        "sources with vectors",
    )


def _made_by(sources: tuple[str, ...]) -> tuple[EncoderIdentity | None, str | None]:
    """The encoder that the sources say made their vectors, and how it pruned, if they say so and agree."""
    from oskit.cluster.index.mapping import EncoderIdentity
    from oskit.data.parquet import read_metadata

    said = {source: read_metadata(Path(source)) for source in sources if Path(source).is_file()}
    known = {source: found for source, found in said.items() if found.get("sha256")}
    if len({(found["sha256"], found.get("prune")) for found in known.values()}) > 1:
        raise UsageError(f"{' and '.join(known)} hold the vectors of different encoders, or pruned otherwise",
                         hint="Load each into an index of its own")  # fmt: skip
    for found in known.values():
        names = ("sha256", "name", "architecture", "query_sha256")
        return EncoderIdentity(**{name: found.get(name) for name in names}), found.get("prune")
    return None, None


def _dead_letter(index: str, sources: tuple[str, ...], given: str | None) -> Path:
    """The file that was named, or the first free name, so that no earlier file is mixed up with this one."""
    if given is not None:
        if any(source != "-" and Path(source).resolve() == Path(given).resolve() for source in sources):
            raise UsageError(f"--dead-letter {given} is also a source", hint="Name another file")
        return Path(given)
    stem = index.encode()[:200].decode(errors="ignore")  # a file's name has no room for the longest index's
    path, number = Path(f"{stem}.refused.jsonl"), 1
    while path.exists():
        number += 1
        path = Path(f"{stem}.refused-{number}.jsonl")
    return path


def _next_step(index: str, report: IngestReport, options: dict[str, Any]) -> str:
    if report.refused and report.dead_letter:
        again = "correct the lines of the dead-letter file (or the options) and load it: "
        return f"Next: {again}oskit ingest {index} {report.dead_letter} …"
    here = options["archive"] is not None and _encode_mode(options) != "cluster"
    how = f" --archive {options['archive']}" if here else ""
    return f'Next: oskit search {index} "your question"{how}'
