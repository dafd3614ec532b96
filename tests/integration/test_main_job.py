"""The main job in every combination: archive format, architecture, index kind, encode mode.

All of it runs twice, on a node that is a process of this machine and on a containerised OpenSearch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from opensearchpy import OpenSearch

from exporters import export_encoder
from oskit.archive.archive import Archive, open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.index.mapping import IndexSettings, delete_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.retire import delete_model
from oskit.data.collection import Collection
from oskit.demo.data import demo_collection, demo_encoder
from oskit.encoder.document_frequencies import corpus_idf
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.inference_free import inference_free
from oskit.evaluation.live.verify import verify

pytestmark = pytest.mark.integration

QUERIES = 40
FORMATS = ("onnx", "torchscript")
ARCHITECTURES = ("symmetric", "inference-free")


class Place(NamedTuple):
    """A cluster with every model deployed on it."""

    client: OpenSearch
    models: dict[str, str]


@pytest.fixture(scope="module")
def collection() -> Collection:
    """The first questions of the demo's collection, and the answers to all of them."""
    whole = demo_collection()
    queries = dict(list(whole.queries.items())[:QUERIES])
    wanted = {document for query in queries for document in whole.qrels[query]}
    corpus = [document for document in whole.documents() if document.id in wanted]
    corpus += [document for document in whole.documents() if document.id not in wanted][:QUERIES]
    return Collection(
        queries=queries,
        qrels={query: whole.qrels[query] for query in queries},
        corpus=tuple(corpus),
        name="faq-head",
    )


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, collection: Collection) -> dict[str, Path]:
    """The demo's encoder in both formats, for each architecture a folder."""
    symmetric = NeuralSparseEncoder.from_pretrained(str(demo_encoder()), device="cpu")
    idf = corpus_idf((document.passage for document in collection.documents()), symmetric)
    encoders = {"symmetric": symmetric, "inference-free": inference_free(symmetric, idf)}
    folders = {name: tmp_path_factory.mktemp(name) for name in encoders}
    for name, encoder in encoders.items():
        export_encoder(encoder, folders[name], formats=("torchscript", "onnx"), name=f"main-job-{name}")
    return folders


def _archives(exports: dict[str, Path]) -> Iterator[tuple[str, Archive]]:
    """Every archive, with a name of its own: the two formats are different contents."""
    for architecture, folder in exports.items():
        for part in sorted(folder.iterdir()):
            yield f"main-job-{architecture}-{part.name}", open_archive(part)


@pytest.fixture(scope="module", params=["process", pytest.param("container", marks=pytest.mark.container)])
def place(request: pytest.FixtureRequest, exports: dict[str, Path]) -> Iterator[Place]:
    """The process and the container in turn, each with both formats of both architectures deployed."""
    url = request.getfixturevalue("cluster_url" if request.param == "process" else "container_url")
    with connect(ConnectionSettings(url=url)) as client:
        deployed = [deploy_archive(client, archive, name=name) for name, archive in _archives(exports)]
        for model in deployed:
            assert model.state == "DEPLOYED"
            assert model.max_difference is not None and model.max_difference < 1e-3
        yield Place(client, {model.sha256: model.model_id for model in deployed})
        for model_id in {model.model_id for model in deployed}:
            delete_model(client, model_id, own=True)


@pytest.mark.parametrize("encode", ["client", "cluster"])
@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("model_format", FORMATS)
def test_the_cluster_retrieves_what_the_encoder_means(
    place: Place,
    exports: dict[str, Path],
    collection: Collection,
    model_format: str,
    architecture: str,
    kind: str,
    encode: str,
) -> None:
    folder = exports[architecture]
    archive = open_archive(folder / model_format)
    query_archive = open_archive(folder / "tokenizer") if architecture == "inference-free" else archive
    encoder = ArchiveEncoder.open(archive)
    assert encoder.architecture == architecture
    index = f"main-job-{model_format}-{architecture}-{kind}-{encode}".replace("_", "-")
    try:
        loaded = ingest(
            place.client,
            index,
            collection.documents(),
            encode=encode,
            encoder=encoder,
            model_id=place.models[archive.sha256] if encode == "cluster" else None,
            settings=IndexSettings(kind),
        )
        assert (loaded.read, loaded.indexed, loaded.refused) == (2 * QUERIES, 2 * QUERIES, 0)
        report = verify(
            place.client,
            index,
            collection,
            encoder,
            by="model",
            model_id=place.models[query_archive.sha256],
        )
    finally:
        delete_index(place.client, index)
    assert report.passed, report.failures
    cluster, exact = report.run("cluster").quality, report.run("exact").quality
    assert cluster["nDCG@10"] == pytest.approx(exact["nDCG@10"], abs=0.01)
    assert cluster["nDCG@10"] > 0.6
