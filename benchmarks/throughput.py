"""Documents per second, as ratios within one run: python -m benchmarks.throughput [--url URL].

Loads in both modes and single predictions, with every kind of archive; beside them what others do: an encoder
called by sentence-transformers, and TorchScript as opensearch-py-ml 1.3 traces it (all logits, then maxima).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.encode import logits

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.archive import Archive
    from oskit.archive.text_encoder import TextEncoder
    from oskit.cluster.models.registry import ModelInfo
    from oskit.data.documents import Document
    from oskit.encoder.model import NeuralSparseEncoder

BATCH_SIZE = 32
PREDICTIONS = 20
"""Texts of a round of predictions, one a call."""
INDEX = "oskit-benchmark"

Contender = Callable[[], float]
"""Does the work once and returns the seconds it took."""

PY_ML, TORCHSCRIPT, PLAIN, EXACT, INT8 = (
    "TorchScript as opensearch-py-ml traces it",
    "TorchScript",
    "ONNX, plain head",
    "ONNX",
    "ONNX int8",
)
REFERENCE = "SparseEncoder.encode_document (torch)"


@click.command()
@click.option("--url", help="An OpenSearch that runs; without it a local node is started.")
@click.option("--model", help="Encoder; without it that of the demo.")
@click.option("--texts", "path", type=click.Path(exists=True, dir_okay=False),
              help="Documents to load; without them the demo's collection.")  # fmt: skip
@click.option("--words", type=int, help="Cut texts to so many.")
@click.option("--documents", "count", default=503, show_default=True, help="Documents of each load.")
@click.option("--repeats", default=5, show_default=True, help="Rounds; each contender runs once in a round.")
@click.option(
    "--calibrate", type=click.Path(exists=True), help="Also an archive in int8, calibrated on this."
)
@click.option("--batch-sizes", default="32", show_default=True,
              help="Of the pipeline; each archive is given the best of them.")  # fmt: skip
@click.option("--only", multiple=True, help="Archives whose names begin so.")
def main(
    url: str | None,
    model: str | None,
    path: str | None,
    words: int | None,
    count: int,
    repeats: int,
    calibrate: str | None,
    batch_sizes: str,
    only: tuple[str, ...],
) -> None:
    """Measure documents per second.

    The contenders take turns, and a ratio is the median over the rounds, so that a slow moment of the machine
    hits all of them.
    """
    sizes = [int(size) for size in batch_sizes.split(",")]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        documents = documents_of(path, count, words)
        contenders = _prepare(folder, stack, url, model, documents, calibrate, sizes, only)
        rounds = [{name: run() for name, run in contenders.items()} for _ in range(repeats + 1)][1:]
    mean_words = statistics.mean(len(document.passage.split()) for document in documents)
    click.echo(f"{count} documents of {mean_words:.0f} words, {repeats} rounds, median\n")
    names = list(contenders)
    units = {name: PREDICTIONS if name.startswith("_predict") else count for name in names}
    first_of = {name: next(n for n in names if n.split(":")[0] == name.split(":")[0]) for name in names}
    click.echo(f"{'':<64}{'texts/s':>9}  x the first of its kind")
    for name in names:
        rate = units[name] / statistics.median(times[name] for times in rounds)
        ratio = statistics.median(times[first_of[name]] / times[name] for times in rounds)
        click.echo(f"{name:<64}{rate:>9.1f}{ratio:>8.2f}")
    cluster, client = ([n for n in names if n.startswith(kind)] for kind in ("pipeline", "client"))
    click.echo("\nclient beside the pipeline, median over the rounds")
    for ours in client:
        for theirs in cluster:
            ratio = statistics.median(times[theirs] / times[ours] for times in rounds)
            click.echo(f"{ours + ' / ' + theirs:<100}{ratio:>6.2f}")


def _prepare(
    folder: Path,
    stack: ExitStack,
    url: str | None,
    source: str | None,
    documents: list[Document],
    calibrate: str | None,
    sizes: Sequence[int],
    only: Sequence[str],
) -> dict[str, Contender]:
    """Load, export and deploy; what it makes on the cluster goes with ``stack``."""
    from oskit.archive.encoder import ArchiveEncoder
    from oskit.cluster.client.connection import ConnectionSettings, connect
    from oskit.cluster.index.mapping import delete_index
    from oskit.demo.data import demo_encoder
    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.localnode import LocalNode

    encoder = NeuralSparseEncoder.from_pretrained(source or demo_encoder(), device="cpu")
    archives = _archives(encoder, folder, calibrate)
    if only:
        archives = {name: archive for name, archive in archives.items() if name.startswith(tuple(only))}
    client = connect(ConnectionSettings(url=url or stack.enter_context(LocalNode()).url))
    models = {name: _deploy(client, archive, stack) for name, archive in archives.items()}
    stack.callback(delete_index, client, INDEX)
    texts = [document.passage for document in documents]
    encoder.streaming = False  # as sentence-transformers computes it
    found: dict[str, Contender] = {
        f"encode: {REFERENCE}": lambda: _seconds(
            lambda: encoder.encode_document(texts, batch_size=BATCH_SIZE, show_progress_bar=False)
        )
    }
    for name in [name for name in (EXACT, INT8) if name in archives]:
        here = ArchiveEncoder.open(archives[name])
        found[f"encode: {name}"] = _Encode(here, texts)
        found[f"client: {name}"] = _Load(client, documents, {"encoder": here})
    for name, model in models.items():
        how: dict[str, Any] = {"encode": "cluster", "model_id": model.model_id}
        tried = {size: _Load(client, documents, {**how, "pipeline_batch_size": size}) for size in sizes}
        seconds = {size: load() for size, load in tried.items()} if len(sizes) > 1 else {sizes[0]: 0.0}
        best = min(seconds, key=lambda size: seconds[size])
        found[f"pipeline: {name}, batch_size {best}"] = tried[best]
    for name, model in models.items():
        found[f"_predict: {name}"] = _Predict(client, model, texts[:PREDICTIONS])
    return found


@dataclass
class _Encode:
    encoder: TextEncoder
    texts: list[str]

    def __call__(self) -> float:
        return _seconds(lambda: self.encoder.document_matrix(self.texts))


@dataclass
class _Load:
    """Seconds from nothing to a searchable index; the index is new each time."""

    client: OpenSearch
    documents: list[Document]
    how: dict[str, Any]

    def __call__(self) -> float:
        from oskit.cluster.ingest.load import ingest

        report = ingest(self.client, INDEX, self.documents, recreate=True, **self.how)
        if report.indexed != len(self.documents):
            raise click.ClickException(
                f"only {report.indexed} of {len(self.documents)} documents were indexed"
            )
        return report.seconds


@dataclass
class _Predict:
    """One call of ``_predict`` for each text, as a search by the model does it."""

    client: OpenSearch
    model: ModelInfo
    texts: list[str]

    def __call__(self) -> float:
        from oskit.cluster.models.predict import predict

        return _seconds(lambda: [predict(self.client, self.model, [text]) for text in self.texts])


def _archives(encoder: NeuralSparseEncoder, folder: Path, calibrate: str | None) -> dict[str, Archive]:
    from exporters import export_encoder

    (plain,) = export_encoder(encoder, folder / "plain", formats=["onnx"], name=INDEX, head="plain")
    exact, torchscript = export_encoder(encoder, folder / "out", formats=["onnx", "torchscript"], name=INDEX)
    found = {
        PY_ML: _as_py_ml_traces_it(encoder, torchscript, folder / "py-ml"),
        TORCHSCRIPT: torchscript,
        PLAIN: plain,
        EXACT: exact,
    }
    if calibrate:
        (found[INT8],) = export_encoder(
            encoder, folder / "int8", formats=["onnx"], name=INDEX, quantize="int8", calibrate=calibrate
        )
    return found


def _as_py_ml_traces_it(encoder: NeuralSparseEncoder, ours: Archive, folder: Path) -> Archive:
    """Its ``NeuralSparseModel`` (sparse_encoding_model.py) in the place of the model of our archive."""
    import hashlib
    from zipfile import ZipFile

    import torch

    from exporters.archive import write_zip
    from oskit.archive.archive import REGISTER_BODY_NAME, open_archive

    special = sorted(encoder.vocabulary.special_ids)

    class NeuralSparseModel(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            mask = features["attention_mask"]
            result = self.network(features["input_ids"], mask)
            values, _ = torch.max(result * mask.unsqueeze(-1), dim=1)
            values = torch.log(1 + torch.relu(values))
            values[:, special] = 0
            return {"output": values}

    folder.mkdir()
    ids = torch.arange(8).reshape(1, 8) + 5
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with logits(encoder) as network:
        model = NeuralSparseModel(network).eval()
        torch.jit.trace(model, features, strict=False).save(folder / "model.pt")  # type: ignore[no-untyped-call]
    with ZipFile(ours.path) as archive:
        others = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".pt")}
    zip_path = folder / ours.path.name
    write_zip(zip_path, {**others, "model.pt": folder / "model.pt"})
    content = zip_path.read_bytes()
    body = json.loads(ours.path.with_name(REGISTER_BODY_NAME).read_text())
    body |= {
        "model_content_hash_value": hashlib.sha256(content).hexdigest(),
        "model_content_size_in_bytes": len(content),
    }
    (folder / REGISTER_BODY_NAME).write_text(json.dumps(body))
    return open_archive(zip_path)


def documents_of(path: str | None, count: int, words: int | None) -> list[Document]:
    """``count`` documents: the collection's, again and again with new ids where it has fewer."""
    from dataclasses import replace

    from oskit.data.documents import Document
    from oskit.data.files import read_documents
    from oskit.demo.data import demo_collection

    known = read_documents([path]) if path else demo_collection().documents()
    chosen = islice(cycle([found for found in known if isinstance(found, Document)]), count)
    numbered = [replace(document, id=str(number)) for number, document in enumerate(chosen)]
    if words is None:
        return numbered
    return [replace(document, text=" ".join(document.text.split()[:words])) for document in numbered]


def _deploy(client: OpenSearch, archive: Archive, stack: ExitStack) -> ModelInfo:
    from oskit.cluster.models.deploy import deploy_archive
    from oskit.cluster.models.registry import find_model
    from oskit.cluster.models.retire import delete_model

    model = deploy_archive(client, archive, name=f"{INDEX}-{archive.sha256[:12]}")
    if not model.reused:
        stack.callback(delete_model, client, model.model_id, force=True)
    return find_model(client, model.model_id)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
