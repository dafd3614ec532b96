"""Documents per second, as ratios within one run: python -m benchmarks.throughput [--url URL]."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.archive import Archive
    from oskit.data.documents import Document

BATCH_SIZE = 32
INDEX = "oskit-benchmark"

Contender = Callable[[], float]
"""Does the work once and returns the seconds it took."""


@click.command()
@click.option("--url", help="An OpenSearch that runs; without it a local node is started.")
@click.option("--model", help="Encoder; without it that of the demo.")
@click.option("--documents", "count", default=503, show_default=True, help="Documents of each run.")
@click.option("--repeats", default=5, show_default=True, help="Rounds; each contender runs once in a round.")
def main(url: str | None, model: str | None, count: int, repeats: int) -> None:
    """Measure documents per second.

    The contenders take turns, and a ratio is the median over the rounds, so that a slow moment of the machine
    hits all of them.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contenders = prepare(folder, stack, url, model, count)
        rounds = [{name: run() for name, run in contenders.items()} for _ in range(repeats + 1)][1:]
    rates = {name: count / statistics.median(times[name] for times in rounds) for name in contenders}
    click.echo(f"{count} documents, {repeats} rounds, median\n")
    for name, rate in rates.items():
        click.echo(f"{name:<44}{rate:>9.1f} docs/s")
    click.echo("\nratio, median over the rounds")
    for ours, theirs in RATIOS:
        ratio = statistics.median(times[theirs] / times[ours] for times in rounds)
        click.echo(f"{ours + ' / ' + theirs:<76}{ratio:>6.2f}")


CLIENT, CLUSTER_ONNX, CLUSTER_TORCHSCRIPT = (
    "client path (ONNX Runtime)",
    "cluster path (ONNX)",
    "cluster path (TorchScript)",
)
ENCODE, REFERENCE = "encode alone (ONNX Runtime)", "SparseEncoder.encode_document (torch)"
RATIOS = (
    (CLIENT, CLUSTER_ONNX),
    (CLIENT, CLUSTER_TORCHSCRIPT),
    (CLUSTER_ONNX, CLUSTER_TORCHSCRIPT),
    (CLIENT, REFERENCE),
    (ENCODE, REFERENCE),
)


def prepare(
    folder: Path, stack: ExitStack, url: str | None, model: str | None, count: int
) -> dict[str, Contender]:
    """Load, export and deploy; returns the contenders. What it makes on the cluster goes with ``stack``."""
    from exporters import export_encoder
    from oskit.archive.encoder import ArchiveEncoder
    from oskit.cluster.client.connection import ConnectionSettings, connect
    from oskit.cluster.index.mapping import delete_index
    from oskit.demo.data import demo_collection, demo_encoder
    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.localnode import LocalNode

    encoder = NeuralSparseEncoder.from_pretrained(model or demo_encoder())
    reference = NeuralSparseEncoder.from_pretrained(model or demo_encoder())
    reference.streaming = False  # as sentence-transformers computes it
    onnx, torchscript = export_encoder(encoder, folder, formats=("onnx", "torchscript"), name=INDEX)
    address = url or stack.enter_context(LocalNode()).url
    client = connect(ConnectionSettings(url=address))
    models = {archive.sha256: _deploy(client, archive, stack) for archive in (onnx, torchscript)}
    stack.callback(delete_index, client, INDEX)
    documents = _documents(list(demo_collection().documents()), count)
    texts = [document.passage for document in documents]
    runtime = ArchiveEncoder.open(onnx)
    return {
        CLIENT: lambda: _ingest(client, documents, encoder=runtime),
        CLUSTER_ONNX: lambda: _ingest(client, documents, encode="cluster", model_id=models[onnx.sha256]),
        CLUSTER_TORCHSCRIPT: lambda: _ingest(
            client, documents, encode="cluster", model_id=models[torchscript.sha256]
        ),
        ENCODE: lambda: _seconds(lambda: runtime.document_matrix(texts)),
        REFERENCE: lambda: _seconds(lambda: reference.encode_document(texts, batch_size=BATCH_SIZE)),
    }


def _documents(known: list[Document], count: int) -> list[Document]:
    """``count`` documents: the collection's, again and again with new ids where it has fewer."""
    from dataclasses import replace

    chosen = islice(cycle(known), count)
    return [replace(document, id=str(number)) for number, document in enumerate(chosen)]


def _deploy(client: OpenSearch, archive: Archive, stack: ExitStack) -> str:
    from oskit.cluster.models.deploy import deploy_archive
    from oskit.cluster.models.retire import delete_model

    model = deploy_archive(client, archive, name=f"{INDEX}-{archive.path.parent.name}")
    if not model.reused:
        stack.callback(delete_model, client, model.model_id, force=True)
    return model.model_id


def _ingest(client: OpenSearch, documents: list[Document], **how: object) -> float:
    """Seconds from nothing to a searchable index; the index is new each time."""
    from oskit.cluster.ingest.load import ingest

    report = ingest(client, INDEX, documents, recreate=True, **how)
    if report.indexed != len(documents):
        raise click.ClickException(f"only {report.indexed} of {len(documents)} documents were indexed")
    return report.seconds


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
