"""What a load costs that has little left to do: python -m benchmarks.encode_once [--url URL]."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.throughput import documents_of

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.encoder import ArchiveEncoder
    from oskit.cluster.ingest.load import IngestReport
    from oskit.data.documents import Document, Refusal

INDEX = "oskit-benchmark-once"


@click.command()
@click.option("--url", help="An OpenSearch that runs; without it a local node is started.")
@click.option("--model", help="Encoder; without it that of the demo.")
@click.option("--documents", "count", default=20_000, show_default=True, help="Documents of the collection.")
@click.option("--words", default=40, show_default=True, help="Of a document; short ones are the hard case.")
def main(url: str | None, model: str | None, count: int, words: int) -> None:
    """Load a file; load it again, with one document changed, and after an interruption at half.

    Encoded here, on ONNX Runtime. Reading, checking and asking the index are part of every figure.
    """
    from exporters import export_encoder
    from oskit.archive.encoder import ArchiveEncoder
    from oskit.cluster.client.connection import ConnectionSettings, connect
    from oskit.cluster.index.mapping import delete_index
    from oskit.demo.data import demo_encoder
    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.localnode import LocalNode

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = NeuralSparseEncoder.from_pretrained(model or demo_encoder())
        (archive,) = export_encoder(network, folder, formats=("onnx",), name=INDEX)
        encoder = ArchiveEncoder.open(archive)
        client = connect(ConnectionSettings(url=url or stack.enter_context(LocalNode()).url))
        stack.callback(delete_index, client, INDEX)
        source = folder / "documents.jsonl"
        _write(source, documents_of(None, count, None), words)
        for line in _measured(client, encoder, source, count):
            click.echo(line)


def _measured(client: OpenSearch, encoder: ArchiveEncoder, source: Path, count: int) -> Iterator[str]:
    from oskit.cluster.index.mapping import delete_index

    first, seconds = _load(client, encoder, source)
    yield f"first load            {seconds:8.1f} s   encoded {first.encoded:,}"
    again, unchanged = _load(client, encoder, source)
    yield _row("again", unchanged, again, seconds)
    lines = source.read_text().splitlines()
    changed = {**json.loads(lines[count // 2]), "text": "Something else altogether."}
    source.write_text("\n".join([*lines[: count // 2], json.dumps(changed), *lines[count // 2 + 1 :]]) + "\n")
    one, took = _load(client, encoder, source)
    yield _row("one changed", took, one, seconds)
    delete_index(client, INDEX)
    _load(client, encoder, source, cut_off_at=count // 2)
    rest, took = _load(client, encoder, source)
    yield _row("after a cut at half", took, rest, seconds)


def _row(what: str, seconds: float, report: IngestReport, first: float) -> str:
    share = f"{seconds / first:.1%} of the first, 1/{first / seconds:.0f}"
    return f"{what:<22}{seconds:8.1f} s   encoded {report.encoded:,}   {share}"


def _load(
    client: OpenSearch, encoder: ArchiveEncoder, source: Path, cut_off_at: int | None = None
) -> tuple[IngestReport, float]:
    """What a load did, and the seconds that it took; it may be interrupted once so many are encoded."""
    from oskit.cluster.ingest.load import IngestInterrupted, ingest
    from oskit.data.files import read_documents

    done = 0

    def progress(records: int) -> None:
        nonlocal done
        done += records

    def stream() -> Iterator[Document | Refusal]:
        for document in read_documents([source]):
            if cut_off_at is not None and done >= cut_off_at:
                raise KeyboardInterrupt
            yield document

    start = time.perf_counter()
    try:
        report = ingest(client, INDEX, stream(), encoder=encoder, progress=progress)
    except IngestInterrupted as interrupted:
        report = interrupted.report
    return report, time.perf_counter() - start


def _write(path: Path, documents: list[Document], words: int) -> None:
    with path.open("w") as file:
        for document in documents:
            short = {"_id": document.id, "text": " ".join(document.passage.split()[:words])}
            file.write(json.dumps(short) + "\n")


if __name__ == "__main__":
    main()
