"""What fusing BM25, sparse and dense search brings: python -m benchmarks.hybrid COLLECTION… [--dense].

Each collection (a folder in BEIR's layout, faq-en or faq-sv) is loaded into an index with the demo's encoder
as it is, BM25 by the language's analyzer, and MiniLM's vectors. The rest is what `oskit tune` does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.encoder import ArchiveEncoder
    from oskit.data.collection import Collection
    from oskit.data.documents import Document
    from oskit.evaluation.live.tune_result import TuneReport
    from oskit.evaluation.offline.dense import DenseModel

INDEX = "oskit-benchmark-hybrid"
LANGUAGES = {"faq-sv": "swedish"}
"""Of collections that are not English."""

_BLOCK = 500


@click.command(help=__doc__)
@click.argument("collections", nargs=-1, required=True)
@click.option("--url", help="An OpenSearch that runs; without it a local node is started.")
@click.option("--queries", default=600, show_default=True, help="Judged queries of a collection, at most.")
@click.option("--documents", default=0, help="The judged documents and others, so many in all; 0 for all.")
@click.option("--dense", is_flag=True, help="Also fuse with all-MiniLM-L6-v2.")
@click.option("--depth", default=100, show_default=True, help="Hits of each side.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for the reports.")
def main(
    collections: Sequence[str],
    url: str | None,
    queries: int,
    documents: int,
    dense: bool,
    depth: int,
    report: Path | None,
) -> None:
    """Load, tune, tell."""
    from exporters import export_encoder
    from oskit.archive.encoder import ArchiveEncoder
    from oskit.cluster.client.connection import ConnectionSettings, connect
    from oskit.demo.data import demo_encoder, demo_teacher
    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.evaluation.offline.dense import DenseModel
    from oskit.evaluation.reports.tuning import write_tuning
    from oskit.localnode import LocalNode

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = NeuralSparseEncoder.from_pretrained(demo_encoder())
        (archive,) = export_encoder(network, folder, formats=("onnx",), name=INDEX)
        encoder = ArchiveEncoder.open(archive)
        model = DenseModel(demo_teacher()) if dense else None
        client = connect(ConnectionSettings(url=url or stack.enter_context(LocalNode()).url))
        for name in collections:
            for sides, found in measured(client, _opened(name, queries, documents), encoder, model, depth):
                click.echo(f"{found.collection['name']}: {sides}: {found.advice}")
                for line in rows(found):
                    click.echo(line)
                if report is not None:
                    write_tuning(found, report / f"{Path(name).name}-{sides.replace(',', '-')}")


def rows(found: TuneReport) -> Iterator[str]:
    """Lines of the table."""
    for row in (*found.alone, *found.fused):
        best, test = row.quality["nDCG@10"], row.significance
        beside = "" if test is None else f", {test.difference:+.4f}, p = {test.p_value:.4f}"
        yield f"  {row.name}: {best:.4f}, held out {row.held_out:.4f}{beside}"
    test = found.significance
    yield (
        f"  held out {found.held_out:.4f}, {test.difference:+.4f} ({test.low:+.4f} … {test.high:+.4f}) over "
        f"{found.alone[0].name}, p = {test.p_value:.4f}; chosen: {' | '.join(dict.fromkeys(found.chosen))}"
    )


def measured(
    client: OpenSearch, collection: Collection, encoder: ArchiveEncoder, model: DenseModel | None, depth: int
) -> Iterator[tuple[str, TuneReport]]:
    """What tuning finds for the sides, in pairs and all together."""
    from oskit.cluster.index.mapping import IndexSettings, delete_index
    from oskit.cluster.ingest.load import ingest
    from oskit.cluster.search.fusion import Fusion
    from oskit.cluster.search.hybrid import Hybrid
    from oskit.evaluation.live.tune import tune
    from oskit.evaluation.offline.fusion_settings import DEFAULT_FUSIONS

    settings = IndexSettings(analyzer=LANGUAGES.get(collection.name, "english"))
    if model is not None:
        vector: dict[str, Any] = {"type": "knn_vector", "dimension": 384}
        vector["method"] = {"name": "hnsw", "engine": "lucene", "space_type": "innerproduct"}
        settings = replace(settings, settings={"knn": True}, mappings={"dense": vector})
    delete_index(client, INDEX)
    start = time.perf_counter()
    ingest(client, INDEX, _with_vectors(collection, model), encoder=encoder, settings=settings)
    click.echo(f"{collection.name}: loaded in {time.perf_counter() - start:.0f} s")
    fusions = [Fusion.parse(name) for name in DEFAULT_FUSIONS]
    tried = ["bm25,sparse"]
    tried += ["bm25,dense", "sparse,dense", "bm25,sparse,dense"] if model is not None else []
    try:
        for names in tried:
            each = names.split(",")
            embed = model.embed_queries if model is not None and "dense" in each else None
            text = ",".join(f"{name}={1 / len(each)}" for name in each)
            sides = Hybrid.parse(text, depth=depth, embed=embed)
            yield names, tune(client, INDEX, collection, encoder, sides=sides, fusions=fusions)
    finally:
        delete_index(client, INDEX)


def _with_vectors(collection: Collection, model: DenseModel | None) -> Iterator[Document]:
    stream = iter(collection.documents())
    while block := list(islice(stream, _BLOCK)):
        if model is None:
            yield from block
            continue
        vectors = model.embed_documents([document.passage for document in block])
        for document, vector in zip(block, vectors, strict=True):
            yield replace(document, fields={**document.fields, "dense": vector.tolist()})


def _opened(name: str, count: int, most: int) -> Collection:
    from oskit.data.collection import Collection
    from oskit.demo.data import demo_collection
    from oskit.evaluation.offline.metrics import judged_queries

    found = demo_collection(name[-2:]) if name in ("faq-en", "faq-sv") else Collection.open(name)
    judged = [query for query in judged_queries(found.qrels) if query in found.queries]
    count = min(count, len(judged))
    queries = {
        query: found.queries[query] for query in (judged[n * len(judged) // count] for n in range(count))
    }
    qrels = {query: found.qrels[query] for query in queries}
    found = replace(found, queries=queries, qrels=qrels, name=Path(name).name)
    return _cut(found, most) if most else found


def _cut(collection: Collection, most: int) -> Collection:
    """The documents that are judged, and others spread over the corpus."""
    judged = {document for of_query in collection.qrels.values() for document in of_query}
    others = [document.id for document in collection.documents() if document.id not in judged]
    room = max(0, min(most - len(judged), len(others)))
    kept = judged.union(others[n * len(others) // room] for n in range(room))
    return replace(collection, corpus=tuple(each for each in collection.documents() if each.id in kept))


if __name__ == "__main__":
    main()
