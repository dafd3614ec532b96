"""oskit without torch: the wheel in a virtual environment of its own, with the oldest versions it allows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opensearchpy import OpenSearch

from exporters import export_encoder
from oskit.data.collection import Collection
from oskit.demo.data import demo_collection, demo_encoder
from oskit.encoder.model import NeuralSparseEncoder

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
INDEX = "light-install"
MODEL = "light-install-encoder"
TRAIN = ("train", "quick", "--set", "data.train=pairs.jsonl")
ABSENT = ("torch", "transformers", "sentence_transformers", "onnx", "matplotlib", "jgo", "docker")


def _uv(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "uv", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of a virtual environment that has the wheel and what its core needs."""
    folder = tmp_path_factory.mktemp("light")
    _uv("build", "-q", "--out-dir", str(folder / "dist"))
    (wheel,) = (folder / "dist").glob("oskit-*.whl")
    _uv("venv", "-q", "--python", sys.executable, str(folder / "venv"))
    python = str(folder / "venv" / "bin" / "python")
    install = ("pip", "install", "-q", "--python", python)
    _uv(*install, "--resolution", "lowest-direct", "-r", "pyproject.toml")
    _uv(*install, "--no-deps", str(wheel))
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's encoder as an ONNX archive, exported with torch in this environment."""
    folder = tmp_path_factory.mktemp("export")
    encoder = NeuralSparseEncoder.from_pretrained(str(demo_encoder()), device="cpu")
    export_encoder(encoder, folder, formats=("onnx",), name=MODEL)
    return folder


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some questions and answers in BEIR layout."""
    folder = tmp_path_factory.mktemp("collection")
    whole = demo_collection()
    queries = dict(list(whole.queries.items())[:20])
    qrels = {query: whole.qrels[query] for query in queries}
    wanted = {document for relevant in qrels.values() for document in relevant}
    corpus = tuple(document for document in whole.documents() if document.id in wanted)
    Collection(queries=queries, qrels=qrels, corpus=corpus, name="light").write(folder)
    return folder


@pytest.fixture
def clean(client: OpenSearch) -> Iterator[None]:
    yield
    from oskit.cluster.models.registry import list_models
    from oskit.cluster.models.retire import delete_model

    client.indices.delete(index=INDEX, params={"ignore_unavailable": "true"})
    for model in list_models(client):
        if model.name == MODEL:
            delete_model(client, model.model_id, own=True)


def test_the_environment_has_no_torch(environment: Path) -> None:
    code = f"import importlib.util as u; print([name for name in {ABSENT!r} if u.find_spec(name)])"
    done = subprocess.run(
        [environment / "python", "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("clean")
def test_deploy_ingest_search_and_verify_without_torch(
    environment: Path, export: Path, collection: Path, cluster_url: str, tmp_path: Path
) -> None:
    def oskit(*arguments: str) -> dict:
        done = subprocess.run(
            [environment / "oskit", *arguments, "--json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OSKIT_URL": cluster_url},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    (model,) = oskit("deploy", str(export))
    assert model["state"] == "DEPLOYED"
    report = oskit("ingest", INDEX, str(collection), "--encode", "client", "--archive", str(export))
    assert report["indexed"] == report["read"] > 0
    hits = oskit("search", INDEX, "What is a building permit?", "--archive", str(export))["hits"]
    assert hits
    proof = oskit("verify", str(collection), "--index", INDEX, "--archive", str(export), "--model", MODEL)
    assert proof["passed"] is True


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("load", "."), "export"),
        (("demo",), "demo"),
        (("recipes", "list"), "train"),
        (TRAIN, "train"),
        ((*TRAIN, "--dry-run"), "train"),
    ],
)
def test_13_what_needs_an_extra_says_which(
    environment: Path, tmp_path: Path, command: tuple[str, ...], extra: str
) -> None:
    done = subprocess.run([environment / "oskit", *command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert f"pip install 'oskit[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
