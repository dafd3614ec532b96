"""``oskit serve`` with ML Commons as its client: a connector, a remote model, a pipeline and a search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import archives
import pytest
from opensearchpy import OpenSearch

from oskit.archive.encoder import ArchiveEncoder

pytestmark = pytest.mark.integration

NAME = "oskit-test-serve"
TOKEN = "a-token-of-the-tests"
ML = "/_plugins/_ml"
SOAK_S = float(os.environ.get("OSKIT_SOAK_S", "60"))
TEXTS = [f"the quick fox number {number} gets a building permit {'x' * (number % 7)}" for number in range(60)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archives.encoder_archive(tmp_path_factory.mktemp("serve") / "tiny.zip", 2000)


@contextmanager
def serve(*arguments: str) -> Iterator[tuple[str, int]]:
    """URL and process of a service."""
    command = [sys.executable, "-m", "oskit", "serve", *arguments, "--port", "0", "--json", "--quiet"]
    environment = {**os.environ, "OSKIT_SERVE_TOKEN": TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        told = ""
        while not told.endswith("\n}\n"):
            told += process.stdout.readline()
        try:
            yield json.loads(told)["url"], process.pid
        finally:
            process.terminate()
    assert process.returncode == 0


@contextmanager
def remote_model(client: OpenSearch, url: str) -> Iterator[str]:
    """A deployed remote model behind ``url``; all that it needs is put back."""

    def call(method: str, path: str, body: Any = None) -> Any:
        return client.transport.perform_request(method, path, body=body)

    regex, private = (
        f"plugins.ml_commons.{name}"
        for name in ("trusted_connector_endpoints_regex", "connector.private_ip_enabled")
    )
    settings = call("GET", "/_cluster/settings?include_defaults=true&flat_settings=true")
    trusted = next(
        settings[level][regex]
        for level in ("transient", "persistent", "defaults")
        if regex in settings[level]
    )
    call(
        "PUT",
        "/_cluster/settings",
        {"persistent": {regex: [*trusted, "^http://127\\.0\\.0\\.1:.*$"], private: True}},
    )
    connector = call("POST", f"{ML}/connectors/_create", _connector(url))["connector_id"]
    body = {
        "name": NAME,
        "function_name": "remote",
        "connector_id": connector,
        "model_config": {"model_type": "sparse_encoding"},
    }
    model = call("POST", f"{ML}/models/_register?deploy=true", body)["model_id"]
    while call("GET", f"{ML}/models/{model}").get("model_state") != "DEPLOYED":
        time.sleep(0.1)
    try:
        yield model
    finally:
        call("POST", f"{ML}/models/{model}/_undeploy")
        call("DELETE", f"{ML}/models/{model}")
        call("DELETE", f"{ML}/connectors/{connector}")
        call("PUT", "/_cluster/settings", {"persistent": {regex: None, private: None}})


def _connector(url: str) -> dict[str, Any]:
    return {
        "name": NAME,
        "version": "1",
        "protocol": "http",
        "parameters": {"input_docs_processed_step_size": "32", "skip_validating_missing_parameters": "true"},
        "credential": {"key": TOKEN},
        "actions": [
            {
                "action_type": "predict",
                "method": "POST",
                "url": f"{url}/v1/sparse",
                "headers": {"content-type": "application/json", "authorization": "Bearer ${credential.key}"},
                "pre_process_function": "connector.pre_process.cohere.embedding",
                "request_body": '{"texts": ${parameters.texts}, "sparse_embedding_format": '
                '"${parameters.sparse_embedding_format:-WORD}"}',
            }
        ],
        "client_config": {
            "max_connection": 30,
            "read_timeout": 60,
            "max_retry_times": 5,
            "retry_backoff_millis": 200,
            "retry_backoff_policy": "exponential_equal_jitter",
            "retry_timeout_seconds": 60,
        },
    }


def test_ml_commons_gets_the_archive_s_weights_and_waits_out_an_overload(
    client: OpenSearch, archive: Path
) -> None:
    """The queue holds 20 texts: batches of 16 at once are refused at first, and all stored in the end."""
    encoder = ArchiveEncoder.open(archive)
    with serve(str(archive), "--max-queue", "20") as (url, _), remote_model(client, url) as model:
        for style, key in (("WORD", "token"), ("TOKEN_ID", "id")):
            body = {"text_docs": TEXTS[:40], "parameters": {"sparse_embedding_format": style}}
            path = f"{ML}/_predict/sparse_encoding/{model}"
            results = client.transport.perform_request("POST", path, body=body)["inference_results"]
            rows = [row for found in results for row in found["output"][0]["dataAsMap"]["response"]]
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


def test_a_minute_under_load_leaves_memory_flat(archive: Path) -> None:
    """Several clients, good and bad requests in turn; OSKIT_SOAK_S makes it longer."""
    bodies = [
        json.dumps({"texts": TEXTS[start : start + size]}).encode()
        for start, size in ((0, 32), (5, 1), (30, 16))
    ]
    bodies += [b"{", b'{"texts": [1]}', json.dumps({"texts": ["long " * 20_000]}).encode()]
    with serve(str(archive)) as (url, process), ThreadPoolExecutor(6) as pool:
        until = time.monotonic() + SOAK_S

        def client(number: int) -> int:
            asked = number
            while time.monotonic() < until:
                _post(f"{url}/v1/sparse", bodies[asked % len(bodies)])
                asked += 1
            return asked - number

        clients = [pool.submit(client, number) for number in range(6)]
        time.sleep(SOAK_S / 3)
        early = _resident(process)
        assert sum(found.result() for found in clients) > 100
        assert _resident(process) < early + 20_000_000
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


def _resident(process: int) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
