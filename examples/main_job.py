"""The main job in Python: load, export, deploy, ingest, search, verify, on a node that ends with the script.

    python examples/main_job.py [MODEL [COLLECTION]]

MODEL is a folder or a repository on the Hugging Face Hub, COLLECTION a folder in BEIR's layout. Without them
the encoder and the questions of ``oskit demo`` are used.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from exporters import export_encoder
from oskit.archive.encoder import ArchiveEncoder
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.search.search import search
from oskit.data.collection import Collection
from oskit.demo.data import demo_collection, demo_encoder
from oskit.encoder.model import NeuralSparseEncoder
from oskit.evaluation.live.verify import verify
from oskit.evaluation.reports.verification import write_verification
from oskit.localnode import LocalNode


def main_job(model: str, collection: Collection, folder: Path, url: str, *, index: str = "main-job") -> float:
    """Take an encoder to proven retrieval at ``url``; returns nDCG@10."""
    encoder = NeuralSparseEncoder.from_pretrained(model)
    print(f"loaded {encoder.load_report.source}: {encoder.load_report.architecture}")

    (archive,) = export_encoder(encoder, folder / "archives", formats=("onnx",), name=index)
    print(f"exported {archive.path.name}: {archive.size / 1e6:.1f} MB")

    client = connect(ConnectionSettings(url=url))
    deployed = deploy_archive(client, archive)
    print(f"deployed {deployed.model_id}: {deployed.state}, difference {deployed.max_difference}")

    runtime = ArchiveEncoder.open(archive)
    loaded = ingest(client, index, collection.documents(), encoder=runtime, recreate=True)
    print(f"ingested {loaded.indexed} documents, {loaded.docs_per_second:.0f} a second")

    question = next(iter(collection.queries.values()))
    found = search(client, index, question, model_id=deployed.model_id, size=3, explain=True)
    print(f"\n{question}")
    for hit in found.hits:
        print(f"  {hit.score:6.2f}  {hit.source['text'][:70]}  {', '.join(list(hit.matched)[:5])}")

    report = verify(client, index, collection, runtime, by="model", model_id=deployed.model_id)
    for path in write_verification(report, folder):
        print(f"wrote {path}")
    report.raise_for_disagreement()
    quality = report.run("cluster").quality["nDCG@10"]
    print(f"nDCG@10 {quality:.4f}, exact {report.run('exact').quality['nDCG@10']:.4f}")
    return quality


def main(arguments: list[str]) -> None:
    """Run it with what is asked for."""
    model = arguments[0] if arguments else str(demo_encoder())
    collection = Collection.open(arguments[1]) if len(arguments) > 1 else demo_collection()
    with TemporaryDirectory() as folder, LocalNode() as node:
        main_job(model, collection, Path(folder), node.url)


if __name__ == "__main__":
    main(sys.argv[1:])
