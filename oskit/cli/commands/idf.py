"""``oskit idf``: the weight of each token in queries, from a corpus of your own."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oskit.cli.options import SOME_REFUSED, output_options, with_options
from oskit.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.cli.output import Output
    from oskit.data.documents import Document, Refusal

SHOWN = 5

# fmt: off
_OPTIONS = [
    click.option("-o", "--output", required=True, metavar="FILE", type=click.Path(dir_okay=False),
                 help="Where the table is written, such as idf.json."),
    click.option("--model", metavar="MODEL", default="distilbert/distilbert-base-uncased", show_default=True,
                 help="Whose tokens: a folder, a tokenizer.json, an archive, or a Hub repository."),
    click.option("--max-length", metavar="TOKENS", type=click.IntRange(min=3), default=512, show_default=True,
                 help="Count this many tokens of a document, as many as the encoder reads."),
    click.option("--format", "file_format", type=click.Choice(["jsonl", "csv", "tsv", "parquet"]),
                 help="Format of the sources.  [by their names; stdin is jsonl]"),
    click.option("--text-field", metavar="NAME", default="text", show_default=True,
                 help="Field with the text."),
    click.option("--title-field", metavar="NAME", default="title", show_default=True,
                 help="Field with the title, which is put in front of the text."),
]
# fmt: on


@click.command("idf")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@functools.partial(with_options, options=_OPTIONS)
@output_options
def idf(sources: tuple[str, ...], out: Output, **options: Any) -> None:
    """Compute idf.json, the query weights of a corpus.

    Every token gets ln(1 + (N - df + 0.5) / (df + 0.5)): N documents, df of them with the token. That is the
    query side of an inference-free encoder: in the folder of a masked language model the file makes it one.
    Every token of the vocabulary is in it; special tokens weigh 0.

    A SOURCE is what `oskit ingest` reads: a JSONL, CSV, TSV or Parquet file, a folder in BEIR's layout, or -
    for stdin; compressed or not. Texts are tokenized on all cores (RAYON_NUM_THREADS limits them), without
    torch. If records were refused, the rest is counted and the exit code is 10.

    \b
    Examples:
      oskit idf corpus.jsonl.gz -o my-encoder/idf.json --model my-encoder
      oskit idf data/scifact shop.csv --text-field description -o idf.json --model out
      zcat dump.gz | oskit idf - -o idf.json --model tokenizer.json --json
    """
    from oskit.archive.idf import write_idf
    from oskit.data.files import count_records, read_documents
    from oskit.encoder.document_frequencies import count_documents
    from oskit.encoder.loader.tokenizer_files import open_vocabulary

    documents = read_documents(
        sources,
        format=options["file_format"],
        text_field=options["text_field"],
        title_field=options["title_field"],
    )
    vocabulary = open_vocabulary(options["model"])
    texts = _Texts()
    total = None if out.quiet else count_records(sources, format=options["file_format"])
    with out.progress("Counting tokens", total) as bar:
        try:
            counted = count_documents(
                texts.of(documents), vocabulary, max_length=options["max_length"], progress=bar.advance
            )
        except DataError as error:
            if not texts.refused:
                raise
            raise DataError(f"all {texts.refused:,} records were refused: {texts.first[0]}") from error
    vector = counted.idf(vocabulary)
    path = Path(options["output"])
    write_idf(path, vector, vocabulary)
    weighing = vector[vocabulary.weight_mask() > 0]
    seen = int(((counted.frequencies > 0) & (vocabulary.weight_mask() > 0)).sum())
    result = {
        "file": str(path),
        "model": options["model"],
        "documents": counted.documents,
        "refused": texts.refused,
        "reasons": texts.reasons,
        "tokens": len(weighing),
        "tokens_seen": seen,
        "smallest": float(weighing.min()),
        "largest": float(weighing.max()),
    }
    out.result(result, lambda console: _print(console, result))
    if texts.refused:
        for where in texts.first:
            out.warn(where)
        click.get_current_context().exit(SOME_REFUSED)


@dataclass
class _Texts:
    """The texts of documents, and what was refused on the way."""

    refused: int = 0
    first: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def of(self, documents: Iterator[Document | Refusal]) -> Iterator[str]:
        from oskit.data.documents import Refusal

        for item in documents:
            if not isinstance(item, Refusal):
                yield item.passage
                continue
            self.refused += 1
            self.reasons[item.reason] = self.reasons.get(item.reason, 0) + 1
            if len(self.first) < SHOWN:
                self.first.append(f"{item.where}: {item.reason}")


def _print(console: Console, result: dict[str, Any]) -> None:
    def tell(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    tell(f"Wrote {result['file']}: {result['tokens']:,} tokens of {result['model']}")
    tell(f"  {result['documents']:,} documents, {result['tokens_seen']:,} tokens occur in them")
    tell(f"  weights from {result['smallest']:.4g} to {result['largest']:.4g}")
    if result["refused"]:
        tell(f"  {result['refused']:,} records were refused")
        for reason, count in result["reasons"].items():
            tell(f"    {count:,} times: {reason}")
