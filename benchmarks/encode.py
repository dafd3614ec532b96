"""Encoding as ratios within one run, with memory and quality: python -m benchmarks.encode [MODEL].

With ``--collection`` the texts are those of a judged collection, and each contender's vectors are ranked.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from scipy.sparse import csr_matrix, vstack

if TYPE_CHECKING:
    import torch

    from oskit.encoder.model import NeuralSparseEncoder

BATCH_SIZE = 32
"""Texts of a batch where a contender wants to be told; FASTEMBED's logits would need gigabytes."""
FASTEMBED_BATCH_SIZE = 8
WARM_UP = 8
"""Texts that are encoded before it counts."""

REFERENCE, FASTEMBED = "SparseEncoder.encode_document (torch, fp32)", "ONNX of the logits, pooled in numpy"
RUNTIMES: dict[str, tuple[str, str, str | None]] = {
    "oskit, ONNX Runtime, plain head": ("plain", "onnxruntime", None),
    "oskit, ONNX Runtime": ("exact", "onnxruntime", None),
    "oskit, OpenVINO": ("plain", "openvino", None),
    "oskit, OpenVINO bf16": ("plain", "openvino", "bf16"),
    "oskit, ONNX Runtime int8": ("int8", "onnxruntime", None),
    "oskit, OpenVINO int8": ("int8", "openvino", None),
    "oskit, torch": ("model", "torch", None),
    "oskit, torch bf16": ("model", "torch", "bf16"),
}
"""Each with the archive (or the model's folder), the back end and the precision."""

Encode = Callable[[Sequence[str]], csr_matrix]


@click.command()
@click.argument("model", required=False)
@click.option("--texts", "path", type=click.Path(exists=True, dir_okay=False),
              help="JSONL with a field `text`; without it the demo's collection.")  # fmt: skip
@click.option("--collection", "judged", type=click.Path(exists=True, file_okay=False),
              help="Judged texts in BEIR's layout; nDCG@10 is told, too.")  # fmt: skip
@click.option("--queries", default=300, show_default=True, help="Of the collection, at most.")
@click.option("--int8", is_flag=True, help="Also archives in int8, calibrated on the collection.")
@click.option("--only", multiple=True, help="Contenders whose names hold this; the references always run.")
@click.option("--count", default=200, show_default=True, help="Texts of each round.")
@click.option("--characters", type=int, help="Cut texts to so many.")
@click.option("--threads", default=2, show_default=True, help="Of each contender.")
@click.option("--repeats", default=3, show_default=True, help="Rounds; each contender runs once in a round.")
def main(
    model: str | None,
    path: str | None,
    judged: str | None,
    queries: int,
    int8: bool,
    only: tuple[str, ...],
    count: int,
    characters: int | None,
    threads: int,
    repeats: int,
) -> None:
    """Measure encoding of MODEL, by default the demo's encoder.

    Each contender has a process of its own, so that its peak memory is known; they take turns, and only one
    is there at a time, since all of them together need more memory than a small machine has.
    """
    from oskit.demo.data import demo_encoder

    source = model or str(demo_encoder())
    collection = _Judged(judged, queries, count) if judged else None
    texts = [text[:characters] for text in (collection.texts if collection else _texts(path, count))]
    with tempfile.TemporaryDirectory() as folder:
        _export(source, Path(folder), judged if int8 else None)
        wanted = [
            name
            for name, (what, *_) in RUNTIMES.items()
            if (int8 or what != "int8") and (not only or any(part in name for part in only))
        ]
        names = [REFERENCE, FASTEMBED, *wanted]
        rounds, vectors, ndcg, peaks = [], {}, {}, dict.fromkeys(names, 0)
        for number in range(repeats):
            times = {}
            for name in names:
                contender = _Contender(name, source, folder, threads)
                contender.encode(texts[:WARM_UP])
                times[name], vectors[name] = contender.encode(texts)
                peaks[name] = max(peaks[name], contender.peak())
                if collection is not None and not number:
                    ndcg[name] = collection.ndcg(vectors[name], contender.encode(collection.questions)[1])
                contender.close()
            rounds.append(times)
    lengths = [len(text) for text in texts]
    click.echo(f"{len(texts)} texts of {statistics.mean(lengths):.0f} characters, {repeats} rounds, median\n")
    click.echo(
        f"{'':<46}{'docs/s':>8}{'x ST':>7}{'x FE':>7}{'MB':>7}{'largest difference':>20}{'cosine':>9}"
        + f"{'nDCG@10':>10}" * bool(ndcg)
    )
    for name in names:
        rate = len(texts) / statistics.median(times[name] for times in rounds)
        against = [statistics.median(t[other] / t[name] for t in rounds) for other in (REFERENCE, FASTEMBED)]
        difference = abs(vectors[name] - vectors[REFERENCE]).max()
        told = f"{ndcg[name]:>10.4f}" if ndcg else ""
        click.echo(
            f"{name:<46}{rate:>8.1f}{against[0]:>7.2f}{against[1]:>7.2f}{peaks[name] / 1e6:>7.0f}"
            f"{difference:>20.1e}{_cosine(vectors[name], vectors[REFERENCE]):>9.5f}{told}"
        )


class _Judged:
    """The first documents of a collection and queries that are judged on them."""

    def __init__(self, folder: str, queries: int, count: int) -> None:
        from oskit.data.collection import Collection

        collection = Collection.open(folder)
        documents = list(islice(collection.documents(), count))
        self._ids = [document.id for document in documents]
        self.texts = [document.passage for document in documents]
        known = set(self._ids)
        self._qrels = {
            query: {document: grade for document, grade in grades.items() if document in known}
            for query, grades in collection.qrels.items()
        }
        self._asked = [query for query in collection.queries if any(self._qrels.get(query, {}).values())][
            :queries
        ]
        self.questions = [collection.queries[query] for query in self._asked]

    def ndcg(self, documents: csr_matrix, questions: csr_matrix) -> float:
        from oskit.evaluation.offline.metrics import quality

        scores = (questions @ documents.T).toarray()
        run = {
            query: {
                self._ids[at]: float(row[at]) for at in np.argsort(-row, kind="stable")[:10] if row[at] > 0
            }
            for query, row in zip(self._asked, scores, strict=True)
        }
        judged = {query: self._qrels[query] for query in self._asked}
        return quality(run, judged, ["nDCG@10"]).mean["nDCG@10"]


def _texts(path: str | None, count: int) -> list[str]:
    if path is None:
        from oskit.demo.data import demo_collection

        found = [document.passage for document in demo_collection().documents()]
    else:
        with Path(path).open(encoding="utf-8") as lines:
            found = [json.loads(line)["text"] for line in lines]
    return found[:count]


def _cosine(ours: csr_matrix, theirs: csr_matrix) -> float:
    """The least of all texts that have weights."""
    from oskit.archive.likeness import cosines

    return float(cosines(ours, theirs)[np.diff(theirs.indptr) > 0].min())


def _export(source: str, folder: Path, calibrate: str | None) -> None:
    """The archives, and the logits alone, as others run them."""
    import torch

    from exporters import export_encoder
    from oskit.encoder.model import NeuralSparseEncoder

    encoder = NeuralSparseEncoder.from_pretrained(source, device="cpu")
    for head in ("plain", "exact"):
        export_encoder(
            encoder,
            folder / head,
            formats=["onnx"],
            name="encode",
            allow_untrained=True,
            head="plain" if head == "plain" else "auto",
        )
    if calibrate:
        export_encoder(
            encoder, folder / "int8", formats=["onnx"], name="encode", quantize="int8", calibrate=calibrate
        )

    ids = torch.arange(8).reshape(2, 4) + 5
    axes = {0: "batch", 1: "length"}
    with logits(encoder) as network:
        torch.onnx.export(
            network, (ids, torch.ones_like(ids)), str(folder / "logits.onnx"), dynamo=False,
            input_names=["ids", "mask"], output_names=["logits"], opset_version=17,
            dynamic_axes={"ids": axes, "mask": axes, "logits": axes},
        )  # fmt: skip


@contextmanager
def logits(encoder: NeuralSparseEncoder) -> Iterator[torch.nn.Module]:
    """A module of ``input_ids`` and ``attention_mask`` that gives the logits of all tokens, to be traced."""
    import torch

    from exporters.graph import exportable

    class Logits(torch.nn.Module):
        def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(modules)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
            for part in self.parts:
                features = part(features)
            found: torch.Tensor = features["token_embeddings"]
            return found

    encoder.streaming = False
    with exportable(encoder.anatomy.logit_modules) as modules:
        yield Logits(modules)


class _Contender:
    def __init__(self, name: str, source: str, folder: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, source, folder, threads))
        self._process.start()

    def encode(self, texts: Sequence[str]) -> tuple[float, csr_matrix]:
        self._pipe.send(texts)
        found: tuple[float, csr_matrix] = self._pipe.recv()
        return found

    def peak(self) -> int:
        """Its peak memory in bytes."""
        self._pipe.send(None)
        peak: int = self._pipe.recv()
        return peak

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, name: str, source: str, folder: str, threads: int) -> None:
    encode = _encoder(name, source, Path(folder), threads)
    while True:
        texts = pipe.recv()
        if texts is None:
            pipe.send(_peak())
            continue
        start = time.perf_counter()
        matrix = encode(texts)
        pipe.send((time.perf_counter() - start, matrix))


def _peak() -> int:
    """In bytes. ``getrusage`` would tell the parent's peak, which a child inherits on Linux."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def _encoder(name: str, source: str, folder: Path, threads: int) -> Encode:
    if name in RUNTIMES:
        from oskit.archive.backends import Runtime
        from oskit.archive.encoder import ArchiveEncoder
        from oskit.encoder.opening import open_encoder

        what, backend, precision = RUNTIMES[name]
        if what == "model":
            import torch

            torch.set_num_threads(threads)
            return open_encoder(source, Runtime(backend, precision, "cpu")).document_matrix  # type: ignore[arg-type]
        runtime = Runtime(backend, precision)  # type: ignore[arg-type]
        return ArchiveEncoder.open(folder / what, runtime=runtime, threads=threads).document_matrix
    return _reference(source, threads) if name == REFERENCE else _fastembed(folder, threads)


def _reference(source: str, threads: int) -> Encode:
    import torch
    from sentence_transformers import SparseEncoder

    from oskit.encoder.model import NeuralSparseEncoder

    torch.set_num_threads(threads)
    loaded = NeuralSparseEncoder.from_pretrained(source, device="cpu")
    special = sorted(loaded.vocabulary.special_ids)
    plain = SparseEncoder(modules=list(loaded), device="cpu")
    plain.max_seq_length = loaded.max_length

    def encode(texts: Sequence[str]) -> csr_matrix:
        found = plain.encode_document(list(texts), batch_size=BATCH_SIZE, show_progress_bar=False).coalesce()
        rows, columns = found.indices().numpy()
        keep = ~np.isin(columns, special)
        values = found.values().numpy()[keep]
        return csr_matrix((values, (rows[keep], columns[keep])), shape=tuple(found.shape))

    return encode


def _fastembed(folder: Path, threads: int) -> Encode:
    """As FastEmbed's ``SpladePP`` does: batches in the order given, padded, logits out of the graph."""
    import onnxruntime

    from oskit.archive.archive import open_archive
    from oskit.archive.batching import padded
    from oskit.archive.vocabulary import Vocabulary

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "logits.onnx", options)
    tokenizer = open_archive(folder / "plain").tokenizer()
    tokenizer.enable_truncation(min((tokenizer.truncation or {}).get("max_length", 512), 512))
    tokenizer.no_padding()
    special = sorted(Vocabulary(tokenizer).special_ids)

    def pooled(texts: Sequence[str]) -> csr_matrix:
        ids, mask = padded([encoding.ids for encoding in tokenizer.encode_batch(list(texts))])
        (logits,) = session.run(["logits"], {"ids": ids, "mask": mask})
        weights = np.max(np.log(1 + np.maximum(logits, 0)) * np.expand_dims(mask, -1), axis=1)
        weights[:, special] = 0
        return csr_matrix(weights.astype(np.float32))

    size = FASTEMBED_BATCH_SIZE
    return lambda texts: vstack([pooled(texts[at : at + size]) for at in range(0, len(texts), size)], "csr")


if __name__ == "__main__":
    main()
