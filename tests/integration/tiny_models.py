"""Tiny models on the real cluster, and documents made of their words."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from archives import SPECIAL, WORDS, encoder_archive, graph, tokenizer_archive
from onnx import numpy_helper
from opensearchpy import OpenSearch

from oskit.archive.archive import open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.cluster.index.mapping import delete_index
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.retire import delete_model
from oskit.data.documents import Document


@dataclass(frozen=True)
class TinyModels:
    """Archives, the same deployed, and the encoder that computes what they do."""

    archive: Path
    query_archive: Path
    encoder: ArchiveEncoder
    inference_free: ArchiveEncoder
    encoder_id: str
    tokenizer_id: str


def graph_that_keeps_words() -> bytes:
    """The tiny encoder, but every token gives weight to itself too, as trained encoders do."""
    model = onnx.load_from_string(graph(seed=7))
    (matrix,) = [tensor for tensor in model.graph.initializer if tensor.name == "E"]
    weights = numpy_helper.to_array(matrix).copy()
    weights[range(len(SPECIAL), len(weights)), range(len(SPECIAL), len(weights))] += 5
    matrix.CopyFrom(numpy_helper.from_array(weights, "E"))
    return model.SerializeToString()


@pytest.fixture(scope="session")
def tiny(client: OpenSearch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyModels]:
    """An encoder and a tokenizer, deployed."""
    folder = tmp_path_factory.mktemp("tiny")
    archive = encoder_archive(
        folder / f"ingtest-encoder-{uuid.uuid4().hex[:8]}.zip", model=graph_that_keeps_words()
    )
    query_archive = tokenizer_archive(folder / f"ingtest-tokenizer-{uuid.uuid4().hex[:8]}.zip")
    ids = [
        deploy_archive(client, open_archive(path), configure_cluster=True).model_id
        for path in (archive, query_archive)
    ]
    yield TinyModels(
        archive,
        query_archive,
        ArchiveEncoder.open(archive),
        ArchiveEncoder.open(archive, query=query_archive),
        *ids,
    )
    for model_id in ids:
        delete_model(client, model_id, own=True)


@pytest.fixture
def index(client: OpenSearch) -> Iterator[str]:
    """The name of an index that is gone afterwards."""
    name = f"ingtest-{uuid.uuid4().hex[:10]}"
    yield name
    delete_index(client, name)


def documents(count: int = 40) -> list[Document]:
    """Documents of a few words and characters, some with a title, one of them empty."""
    draw = random.Random(1)
    marks = [".", ",", "?", "a", "7", "\x01", "\N{GRINNING FACE}", "Ж"]
    made = []
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, 9)) + draw.choices(marks, k=2)
        title = draw.choice(WORDS) if number % 3 == 0 else ""
        made.append(Document(f"d{number}", " ".join(words), title, {"n": number}))
    if count > 5:
        made[5] = Document("d5", "")
    return made


def encoder_of(pipeline: dict[str, Any]) -> dict[str, Any]:
    """What encodes in an ingest pipeline."""
    (own,) = [step["sparse_encoding"] for step in pipeline["processors"] if "sparse_encoding" in step]
    return own


def indexed(client: OpenSearch, name: str) -> list[dict[str, Any]]:
    """The hits for all documents of a small index."""
    client.indices.refresh(index=name)
    answer = client.search(index=name, body={"size": 1000, "query": {"match_all": {}}})
    return list(answer["hits"]["hits"])


def write_documents(path: Path, docs: list[Document]) -> Path:
    """As JSON lines."""
    lines = [{"_id": doc.id, "text": doc.text, "title": doc.title, **doc.fields} for doc in docs]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


QUERIES = ["building permit", "how long does it take", "quick brown fox .", "sparse retrieval 7 ?"]
