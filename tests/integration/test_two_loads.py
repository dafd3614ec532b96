"""Two loads of 20,000 documents at once, into what an alias serves, while others search and update."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from incidents import Incident
from opensearchpy import OpenSearch
from opensearchpy.helpers import scan
from tiny_models import TinyModels, tiny

from oskit.cluster.index.mapping import delete_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.search.search import search
from oskit.data.documents import Document

__all__ = ["tiny"]

pytestmark = pytest.mark.integration

COUNT = 20_000


@pytest.fixture
def live(client: OpenSearch, tiny: TinyModels) -> Iterator[str]:
    """An alias of an index that has a document, a setting and an entry in ``_meta`` of somebody else."""
    name = f"twice-{uuid.uuid4().hex[:8]}"
    ingest(client, name, [Document("first", "quick brown fox")], encoder=tiny.encoder)
    client.indices.put_settings(index=name, body={"index": {"refresh_interval": "3s"}})
    ours = client.indices.get_mapping(index=name)[name]["mappings"]["_meta"]
    client.indices.put_mapping(index=name, body={"_meta": {**ours, "theirs": 1}})
    client.indices.put_alias(index=name, name=f"{name}-live")
    yield f"{name}-live"
    delete_index(client, name)


@pytest.mark.incident(
    during="`ingest` into an alias",
    what="another load of the same documents, begun three seconds later, and searches meanwhile",
    then="both load all; settings and entries of others stay; no search fails",
)
def test_two_loads_at_once(
    client: OpenSearch, cluster_url: str, tiny: TinyModels, live: str, tmp_path: Path, incident: Incident
) -> None:
    source = tmp_path / "many.jsonl"
    lines = ({"_id": f"{n}", "text": "fox" if n % 7 else "quick fox"} for n in range(COUNT))
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "oskit", "ingest", live, str(source), "--archive", str(tiny.archive),
               "--url", cluster_url, "--json"]  # fmt: skip
    done, searches = threading.Event(), 0
    failures: list[Exception] = []

    def searching() -> None:
        nonlocal searches
        while not done.is_set():
            try:
                assert search(client, live, "brown fox", encoder=tiny.encoder).hits
                searches += 1
            except Exception as error:
                failures.append(error)

    searcher = threading.Thread(target=searching)
    searcher.start()
    try:
        loads = []
        for _ in range(2):
            loads.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
                )
            )
            time.sleep(3)
        answers = [load.communicate(timeout=300) for load in loads]
    finally:
        done.set()
        searcher.join()
    said = "\n".join(told for _, told in answers)
    assert [load.returncode for load in loads] == [0, 0], said
    for answer, _ in answers:
        report = json.loads(answer)
        assert (report["read"], report["indexed"], report["refused"]) == (COUNT, COUNT, 0)
    incident.said(said, "Changed in the cluster: POST .*_bulk")
    assert not failures
    assert searches > 5
    (index,) = client.indices.get_alias(name=live)
    found = [hit["_id"] for hit in scan(client, index=index, _source=False, size=5000)]
    incident.documents(["first", *map(str, range(COUNT))], found)
    settings = client.indices.get_settings(index=index)[index]["settings"]["index"]
    assert settings["refresh_interval"] == "3s"
    assert client.indices.get_mapping(index=index)[index]["mappings"]["_meta"]["theirs"] == 1
