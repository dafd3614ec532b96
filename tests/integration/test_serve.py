"""``oskit serve`` with ML Commons as its client: a connector, a remote model, a pipeline and a search."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import archives
import pytest
from opensearchpy import OpenSearch
from served import TOKEN, serve, state

from oskit.archive.archive import open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.text_encoder import KeyFormat
from oskit.cluster.models.configuration import PRIVATE, TRUSTED
from oskit.cluster.models.connectors import Remote
from oskit.cluster.models.predict import predict
from oskit.cluster.models.registry import existing_model
from oskit.cluster.models.remote import deploy_remote
from oskit.cluster.models.retire import delete_model
from oskit.errors import ClusterSettingsError, ModelError, PredictionMismatchError

pytestmark = pytest.mark.integration

NAME = "oskit-test-serve"
SOAK_S = float(os.environ.get("OSKIT_SOAK_S", "60"))
TEXTS = [f"the quick fox number {number} gets a building permit {'x' * (number % 7)}" for number in range(60)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archives.encoder_archive(tmp_path_factory.mktemp("serve") / "tiny.zip", 2000)


@contextmanager
def remote_model(client: OpenSearch, archive: Path, url: str) -> Iterator[str]:
    """A deployed remote model behind ``url``; the cluster is as before at the end."""
    before = state(client)
    remote, opened = Remote(url, TOKEN), open_archive(archive)
    model = deploy_remote(client, opened, remote, name=NAME, configure_cluster=True)
    assert not model.reused and model.max_difference is not None
    again = deploy_remote(client, opened, remote, name=NAME)
    assert again.reused and again.model_id == model.model_id
    try:
        yield model.model_id
    finally:
        delete_model(client, model.model_id, force=True)
        values = {name: before[0]["persistent"].get(name) for name in (TRUSTED, PRIVATE)}
        client.cluster.put_settings(body={"persistent": values})
        time.sleep(1.5)  # searches lag behind
    assert state(client) == before


def test_ml_commons_gets_the_archive_s_weights_and_waits_out_an_overload(
    client: OpenSearch, archive: Path
) -> None:
    """The queue holds 20 texts: batches of 16 at once are refused at first, and all stored in the end."""
    encoder = ArchiveEncoder.open(archive)
    with serve(str(archive), "--max-queue", "20") as (url, _), remote_model(client, archive, url) as model:
        keys: tuple[KeyFormat, ...] = ("token", "id")
        for key in keys:
            rows = predict(client, existing_model(client, model), TEXTS[:40], key=key)
            for row, wanted in zip(rows, encoder.document_weights(TEXTS[:40], key=key), strict=True):
                assert row == pytest.approx(wanted, abs=1e-5)
        processor = {
            "sparse_encoding": {"model_id": model, "field_map": {"text": "vector"}, "batch_size": 16}
        }
        client.ingest.put_pipeline(id=NAME, body={"processors": [processor]})
        mapping = {"properties": {"text": {"type": "text"}, "vector": {"type": "rank_features"}}}
        client.indices.create(index=NAME, body={"mappings": mapping})
        try:
            lines = [
                line
                for number, text in enumerate(TEXTS)
                for line in ({"index": {"_id": str(number)}}, {"text": text})
            ]
            done = client.bulk(body=lines, index=NAME, params={"pipeline": NAME, "refresh": "true"})
            assert not done["errors"]
            stored = client.search(index=NAME, body={"size": 100})["hits"]["hits"]
            assert len(stored) == len(TEXTS)
            for hit in stored:
                (wanted,) = encoder.document_weights([hit["_source"]["text"]])
                assert hit["_source"]["vector"] == pytest.approx(wanted, abs=1e-5)
            query = {"neural_sparse": {"vector": {"query_text": TEXTS[7], "model_id": model}}}
            scores = encoder.document_matrix(TEXTS) @ encoder.query_matrix([TEXTS[7]]).T
            hits = client.search(index=NAME, body={"size": 5, "query": query})["hits"]["hits"]
            best = sorted(scores.toarray().ravel(), reverse=True)[:5]
            assert [hit["_score"] for hit in hits] == pytest.approx(best, rel=0.01)
        finally:
            client.indices.delete(index=NAME)
            client.ingest.delete_pipeline(id=NAME)
        assert 'status="429"' in _page(url)


def test_a_failed_remote_deployment_leaves_nothing_behind(
    client: OpenSearch, archive: Path, tmp_path: Path
) -> None:
    other = archives.encoder_archive(tmp_path / "other.zip", 2000, seed=1)
    opened = open_archive(archive)
    before = state(client)
    with serve(str(other)) as (url, _):
        with pytest.raises(ClusterSettingsError, match="does not let its connectors reach"):
            deploy_remote(client, opened, Remote(url, TOKEN), name=NAME)
        with pytest.raises(PredictionMismatchError, match="does not predict"):
            deploy_remote(client, opened, Remote(url, TOKEN), name=NAME, configure_cluster=True)
        with pytest.raises(ModelError, match="401"):
            deploy_remote(client, opened, Remote(url, "wrong"), name=NAME, configure_cluster=True)
    time.sleep(1.5)
    assert state(client) == before


def test_a_soak_at_four_fifths_of_what_it_can_leaves_nothing_behind(archive: Path) -> None:
    """Several clients, good and bad requests in turn; OSKIT_SOAK_S makes it longer (3600 is an hour)."""
    bodies = [
        json.dumps({"texts": TEXTS[start : start + size]}).encode()
        for start, size in ((0, 32), (5, 1), (30, 16))
    ]
    bodies += [b"{", b'{"texts": [1]}', json.dumps({"texts": ["long " * 20_000]}).encode()]
    with serve(str(archive)) as (url, process), ThreadPoolExecutor(6) as pool:

        def load(seconds: float, rate: float = float("inf")) -> float:
            """Requests a second, no more than ``rate``."""
            start, numbers = time.monotonic(), count()

            def client(_: int) -> None:
                while (now := time.monotonic()) < start + seconds:
                    number = next(numbers)
                    time.sleep(max(0.0, min(start + number / rate - now, seconds)))
                    _post(f"{url}/v1/sparse", bodies[number % len(bodies)])

            list(pool.map(client, range(6)))
            return next(numbers) / (time.monotonic() - start)

        usual = 0.8 * load(SOAK_S / 6)
        load(SOAK_S / 3, usual)
        early = _state(process)
        load(SOAK_S / 2, usual)
        memory, files, threads = _state(process)
        assert memory < early[0] + 20_000_000 and files <= early[1] + 6 and threads <= early[2]
        page = _page(url)
        assert 'oskit_queue_texts{kind="documents",model="tiny"} 0.0' in page and 'status="500"' not in page


def _post(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, {"authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        assert error.code in (400, 422)


def _page(url: str) -> str:
    request = urllib.request.Request(f"{url}/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read(), "utf-8")


def _state(process: int) -> tuple[int, int, int]:
    """Bytes of memory, open files, threads."""
    there = Path("/proc") / str(process)
    pages = int((there / "statm").read_text().split()[1])
    files, threads = (len(list((there / kind).iterdir())) for kind in ("fd", "task"))
    return pages * os.sysconf("SC_PAGE_SIZE"), files, threads
