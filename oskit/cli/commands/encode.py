"""``oskit encode``: the token weights of texts, or of documents in files, by an encoder or an archive."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from oskit.cli.loader import Loader, loader_options
from oskit.cli.options import SOME_REFUSED, output_options, runtime_options, with_options
from oskit.cli.output import Output
from oskit.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.archive.backends.runtime import Runtime
    from oskit.archive.text_encoder import KeyFormat, TextEncoder
    from oskit.cluster.ingest.accounting import IngestReport
    from oskit.data.documents import Document, Refusal
    from oskit.data.parts import Part

BAR = 40
"""Width of the longest bar, in characters."""


# fmt: off
_FILE_OPTIONS = [
    click.option("-o", "--output", metavar="FILE", type=click.Path(dir_okay=False),
                 help="Encode the documents of files into a file: .parquet, .jsonl or .jsonl.gz."),
    click.option("--format", "file_format", type=click.Choice(["jsonl", "csv", "tsv", "parquet"]),
                 help="With -o: format of the sources.  [by their names; stdin is jsonl]"),
    click.option("--id-field", metavar="NAME",
                 help="With -o: field with the id.  [_id, id, or made of the content]"),
    click.option("--text-field", metavar="NAME", help="With -o: field with the text.  [text]"),
    click.option("--title-field", metavar="NAME", help="With -o: field with the title.  [title]"),
    click.option("--embedding-field", metavar="NAME",
                 help="With -o: name of the field for the weights.  [embedding]"),
    click.option("--fields", metavar="NAME,...",
                 help="With -o: other fields that are kept; '' keeps none.  [all]"),
    click.option("--prune", metavar="TYPE:RATIO",
                 help="With -o: keep only the heavy weights, as in max_ratio:0.1."),
    click.option("--part", metavar="N/OF",
                 help="With -o: one of several shares of the documents only, as 3/16."),
    click.option("--duplicates", type=click.Choice(["refuse", "first", "last"]),
                 help="With -o: which document to take where several have one id and different contents; see "
                 "oskit ingest.  [refuse]"),
    click.option("--dead-letter", metavar="FILE", type=click.Path(dir_okay=False),
                 help="With -o: file for refused records, appended to.  [FILE.refused.jsonl]"),
]
# fmt: on


@click.command("encode")
@click.argument("model")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT|SOURCE...")
@click.option("--query/--document", "query", default=False, help="Encode as queries.  [documents]")
@click.option("--top", metavar="N", type=click.IntRange(min=1), help="Only the N largest weights of a text.")
@click.option("--key", type=click.Choice(["token", "id"]),
              help="Name tokens by.  [token; with -o id where several tokens have one text]")  # fmt: skip
@functools.partial(with_options, options=_FILE_OPTIONS)
@loader_options
@runtime_options(device=False)
@output_options
def encode(
    model: str,
    texts: tuple[str, ...],
    query: bool,
    top: int | None,
    key: Literal["token", "id"] | None,
    loader: Loader,
    runtime: Runtime,
    out: Output,
    **options: Any,
) -> None:
    """Print the token weights of texts, or write those of documents into a file.

    They are what the cluster would answer: special tokens weigh nothing. MODEL is a folder, a repository on
    the Hugging Face Hub, or an archive that `oskit export` wrote; an archive needs no torch. A text of -
    stands for the lines of standard input.

    With -o the arguments are sources, as `oskit ingest` reads them, and the file holds their documents with
    the weights: `oskit ingest INDEX FILE --encode none` loads it. It is there whole or not at all; a run that
    was ended begins again, so cut large collections with --part.

    \b
    Examples:
      oskit encode ./my-encoder "how do I get a building permit"
      oskit encode out "building permit" --query --json
      cat questions.txt | oskit encode out - --top 10
      oskit encode out corpus.jsonl.gz -o vectors.parquet
      oskit encode out corpus.jsonl.gz -o part-3.parquet --part 3/16
    """
    from oskit.archive.truncation import truncation_from_now

    if options["output"] is not None:
        if top is not None:
            raise UsageError("--top has no effect with -o", hint="Use --prune top_k:N")
        _to_file(_open(model, loader, runtime, out), texts, query, key, options, out)
        return
    if given := [name for name, value in options.items() if value is not None]:
        name = {"file_format": "format"}.get(given[0], given[0]).replace("_", "-")
        raise UsageError(f"--{name} has no effect without -o", hint="Name a file with -o")

    lines = _texts(texts)
    encoder = _open(model, loader, runtime, out)
    counted = truncation_from_now(encoder)
    weights = (encoder.query_weights if query else encoder.document_weights)(lines, key=key or "token")
    cut = counted()
    if cut is not None and cut.cut:
        out.warn(cut.told("texts"))
    kept = [dict(list(row.items())[:top]) for row in weights]
    kind = "query" if query else "document"
    data = [{"text": text, "kind": kind, "weights": row} for text, row in zip(lines, kept, strict=True)]
    sizes = [len(row) for row in weights]
    out.result(data, lambda console: _print(console, lines, kept, sizes))


def _to_file(
    encoder: TextEncoder,
    sources: Sequence[str],
    queries: bool,
    key: KeyFormat | None,
    options: dict[str, Any],
    out: Output,
) -> None:
    from oskit.archive.token_weights import Prune
    from oskit.cluster.ingest.to_file import encode_to_file
    from oskit.data.files import count_records, read_documents
    from oskit.data.parts import Part

    path, text, title = options["output"], options["text_field"] or "text", options["title_field"] or "title"
    letters = options["dead_letter"] or f"{path}.refused.jsonl"
    for source in sources:
        if source != "-" and Path(source).resolve() in (Path(path).resolve(), Path(letters).resolve()):
            raise UsageError(f"{source} is a source and would be written to", hint="Name another file")
    if Path(path).resolve() == Path(letters).resolve():
        raise UsageError(f"-o and --dead-letter are both {path}", hint="Name another file")
    part = Part.parse(options["part"]) if options["part"] else None
    prune = Prune.parse(options["prune"]) if options["prune"] else None
    kind = options["file_format"]
    documents = read_documents(
        sources, format=kind, id_field=options["id_field"], text_field=text, title_field=title
    )
    if part is not None:
        documents = part.only(documents)
    if options["fields"] is not None:
        kept = {name.strip() for name in options["fields"].split(",")}
        documents = (_with_fields(item, kept) for item in documents)
    total = None if out.quiet else count_records(sources, format=kind)
    with out.progress(f"Encoding into {path}", total=total and total // (part.of if part else 1)) as bar:
        report = encode_to_file(
            documents,
            encoder,
            path,
            key=key,
            queries=queries,
            prune=prune,
            duplicates=options["duplicates"] or "refuse",
            embedding_field=options["embedding_field"] or "embedding",
            text_field=text,
            title_field=title,
            dead_letter=letters,
            progress=bar.advance,
        )
    told = report.to_dict()
    told["file"] = told.pop("index")
    told["encoded"] = told.pop("indexed")
    told |= {"part": part and str(part), "in_other_parts": part and part.elsewhere}
    out.result(told, lambda console: _print_report(console, report, part))
    if report.language_warning is not None:
        out.warn(report.language_warning)
    if report.refused:
        click.get_current_context().exit(SOME_REFUSED)


def _with_fields(item: Document | Refusal, kept: set[str]) -> Document | Refusal:
    from oskit.data.documents import Document

    if not isinstance(item, Document):
        return item
    return replace(item, fields={name: value for name, value in item.fields.items() if name in kept})


def _print_report(console: Console, report: IngestReport, part: Part | None) -> None:
    rate = f"{report.seconds:.1f} s, {report.docs_per_second:,.1f} docs/s"
    if report.encoder_busy is not None:
        rate += f", encoder busy {report.encoder_busy:.0%} of the time"
    written = f"Encoded {report.indexed:,} of {report.read:,} records into {report.index} ({rate})"
    console.print(written, markup=False, soft_wrap=True)
    if part is not None:
        console.print(f"  this is part {part}: {part.elsewhere:,} records are in the others", markup=False)
    if (cut := report.truncation) is not None and cut.cut:
        advice = "split them into passages, or let oskit ingest --chunk do so"
        console.print(f"  {cut.told('documents')}; {advice}", markup=False, soft_wrap=True)
    if report.duplicates:
        console.print(f"  {report.told_duplicates}", markup=False, soft_wrap=True)
    if report.refused:
        console.print(f"  {report.refused:,} were refused, kept in {report.dead_letter}", markup=False)
        for reason, count in report.reasons.items():
            console.print(f"    {count:,} times: {reason}", markup=False, soft_wrap=True)


def _texts(texts: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for text in texts:
        if text != "-":
            lines.append(text)
            continue
        try:
            lines += [line.rstrip("\r\n") for line in sys.stdin]
        except UnicodeDecodeError as error:
            raise DataError(
                f"standard input is not UTF-8: {error.reason} at byte {error.start}",
                hint="Convert it first, for instance with iconv.",
            ) from error
    if not lines:
        raise UsageError("there is no text on standard input", hint="Give one text a line.")
    return lines


def _open(model: str, loader: Loader, runtime: Runtime, out: Output) -> TextEncoder:
    from oskit.archive.archive import is_archive
    from oskit.encoder.opening import open_encoder

    if is_archive(Path(model).expanduser()) and (given := loader.given(but=("device",))):
        raise UsageError(
            f"--{given[0]} has no effect on an archive",
            hint="Leave it out, or name the model.",
        )
    return open_encoder(model, runtime, load=loader.load, notify=out.note)


def _print(
    console: Console, texts: Sequence[str], rows: Sequence[Mapping[str, float]], sizes: Sequence[int]
) -> None:
    from rich.markup import escape

    for number, (text, row, size) in enumerate(zip(texts, rows, sizes, strict=True)):
        if number:
            console.print()
        hidden = f", {size - len(row)} more" if size > len(row) else ""
        counted = f"{size} token{'' if size == 1 else 's'}{hidden}"
        console.print(f"[bold]{escape(text) or '(empty)'}[/]  [dim]{counted}[/]", soft_wrap=True)
        _bars(console, row)


def _bars(console: Console, row: Mapping[str, float]) -> None:
    from rich.cells import cell_len

    if not row:
        return
    name_width = max(map(cell_len, row))
    largest = max(row.values())
    room = max(10, min(BAR, console.width - name_width - 12))
    for token, weight in row.items():
        padding = " " * (name_width - cell_len(token))
        # Eighths of a block, so that close weights differ.
        eighths = round(weight / largest * room * 8)
        bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
        console.print(f"  {padding}{token}  {weight:7.4f}  {bar or '▏'}", markup=False, soft_wrap=True)
