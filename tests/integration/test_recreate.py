"""``--recreate`` fails between deleting and creating: what there was answers again, as it did before."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import incidents
import pytest
from faulty_proxy import Fault, FaultyProxy
from incidents import Incident
from opensearchpy import OpenSearch
from opensearchpy.exceptions import ConflictError
from tiny_models import TinyModels, documents, index, tiny, write_documents

from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.index import trials
from oskit.cluster.index.kept import kept_name
from oskit.cluster.index.mapping import IndexSettings
from oskit.cluster.ingest.load import ingest
from oskit.cluster.ingest.plan import plan_load
from oskit.data.documents import Document
from oskit.errors import ClusterError, IndexingError

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

GOOD = [Document("1", "quick fox"), Document("2", "brown dog")]
GIVEN = ("uuid", "creation_date", "provided_name", "version", "resize", "blocks", "hidden", "routing",
         "routing_partition_size", "auto_expand_replicas")  # fmt: skip


def answers(client: OpenSearch, name: str, *, expand: str = "all") -> dict[str, Any]:
    """What people have of an index: hits by its aliases, their options, its mapping and its settings."""
    client.indices.refresh(index=name)
    found = client.indices.get(index=f"{name}*", params={"expand_wildcards": expand})
    one = found[name]
    body = {"query": {"match": {"passage": "quick dog"}}}
    hits = {alias: client.search(index=alias, body=body)["hits"]["hits"] for alias in (name, *one["aliases"])}
    asked = {
        alias: [(hit["_id"], hit["_score"], hit["_source"]) for hit in each] for alias, each in hits.items()
    }  # fmt: skip
    settings = {
        key: value
        for key, value in one["settings"]["index"].items()
        if key not in GIVEN and value is not None
    }
    return {"indexes": sorted(found), "asked": asked, "aliases": one["aliases"], "mappings": one["mappings"],
            "settings": settings}  # fmt: skip


@pytest.fixture
def old(client: OpenSearch, tiny: TinyModels, index: str) -> Iterator[dict[str, Any]]:
    """An index with aliases, a setting and a note of others, and documents that are not among the new."""
    settings = IndexSettings(settings={"refresh_interval": "7s"})
    ingest(client, index, [*documents(7), *GOOD], encoder=tiny.encoder, settings=settings)
    client.indices.put_alias(index=index, name=f"{index}-some", body={"filter": {"ids": {"values": ["1"]}}})
    client.indices.put_alias(index=index, name=f"{index}-write", body={"is_write_index": True})
    yield answers(client, index)
    client.indices.delete(index=f"{index}*", params={"expand_wildcards": "all"}, ignore=404)


def check_takes_documents(client: OpenSearch, index: str) -> None:
    """Nothing blocks it; nothing is written either, which would change BM25's scores."""
    with pytest.raises(ConflictError):
        client.create(index=index, id="d0", body={})


REFUSALS = {
    "a setting that only this name's index may not have": (400, "illegal_argument_exception"),
    "a plugin that fails": (500, "exception"),
    "a limit of shards that others have just reached": (400, "validation_exception"),
    "no permission to create": (403, "security_exception"),
}


@pytest.mark.parametrize("cause", REFUSALS)
def test_a_new_index_that_is_refused(
    cluster_url: str, client: OpenSearch, tiny: TinyModels, index: str, old: dict[str, Any], cause: str
) -> None:
    status, kind = REFUSALS[cause]
    said = json.dumps({"error": {"type": kind, "reason": "on purpose"}, "status": status}).encode()
    fault = Fault(rf"^PUT /{index}$", times=99, status=status, answer=said)
    with FaultyProxy(cluster_url, fault) as proxy:
        mine = connect(ConnectionSettings(url=proxy.url, retry_for=1))
        with pytest.raises(ClusterError, match=r"stays as it is: .*on purpose"):
            ingest(mine, index, documents(30), encoder=tiny.encoder, recreate=True)
        assert proxy.count(rf"^DELETE /{index}(\?|$)") == 1
    assert answers(client, index) == old
    check_takes_documents(client, index)
    assert ingest(client, index, documents(30), encoder=tiny.encoder, recreate=True).indexed == 30
    found = answers(client, index)
    assert (found["indexes"], found["aliases"]) == ([index], old["aliases"])
    assert client.count(index=index)["count"] == 30


def test_where_no_index_may_be_made_any_more_it_answers_as_an_alias_until_one_may(
    cluster_url: str, client: OpenSearch, tiny: TinyModels, index: str, old: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    told: list[str] = []
    with FaultyProxy(cluster_url, Fault(rf"^PUT .*{index}$", times=99, status=403)) as proxy:
        mine = connect(ConnectionSettings(url=proxy.url, retry_for=0))
        with pytest.raises(ClusterError, match=rf"'{index}' is an alias of '{kept_name(index)}' now"):
            ingest(mine, index, documents(30), encoder=tiny.encoder, recreate=True)
    assert [client.count(index=name)["count"] for name in (index, f"{index}-some")] == [9, 1]
    check_takes_documents(client, index)
    monkeypatch.setattr(trials, "is_abandoned", lambda *_: True)  # the process would be gone
    assert ingest(client, index, GOOD, encoder=tiny.encoder, notify=told.append).unchanged == 2
    assert "what it held is put back" in told[0]
    assert answers(client, index) == old


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "oskit", *words], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, cwd=folder, text=True)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        incidents.fault(name, during="`ingest --recreate`, the old index deleted", what=what, then=then)
        for name, what, then in (
            ("SIGKILL", "`oskit` is killed (SIGKILL)", "the next load puts back what the index held"),
            ("SIGTERM", "`oskit` is asked to end (SIGTERM)", "it puts back what the index held"),
        )
    ],
)  # fmt: skip
def test_an_end_between_deleting_and_creating(
    cluster_url: str, client: OpenSearch, tiny: TinyModels, index: str, old: dict[str, Any], tmp_path: Path,
    name: str, incident: Incident,
) -> None:  # fmt: skip
    source = str(write_documents(tmp_path / "docs.jsonl", documents(30)))
    more = str(write_documents(tmp_path / "more.jsonl", GOOD))
    load = ["ingest", index, "--archive", str(tiny.archive)]
    with FaultyProxy(cluster_url, Fault(rf"^PUT /{index}$", "hang")) as proxy:
        process = begin(tmp_path, *load, source, "--recreate", "--url", proxy.url)
        proxy.wait_for(rf"^PUT /{index}$")
        incident.begins()
        process.send_signal(getattr(signal, name))
        said = process.communicate(timeout=60)[1]
    if name == "SIGKILL":
        assert not client.indices.exists(index=index)
        calls = plan_load(client, index, IndexSettings(), encoder=tiny.encoder).calls(client, 2, 500)
        assert calls[0].path == f"{kept_name(index)}/_clone/{index}", "a dry run tells it"
        again = begin(tmp_path, *load, more, "--url", cluster_url)
        said = again.communicate(timeout=120)[1]
        assert again.returncode == 0, said
        incident.said(said, "what it held is put back")
    else:
        assert process.returncode == 128 + signal.SIGTERM
        assert "Traceback" not in said
        incident.said(said, "interrupted")
    incident.is_over()
    found = answers(client, index)
    incident.documents(["1", "2", *(f"d{n}" for n in range(7))], sorted(
        hit["_id"] for hit in client.search(index=index, body={"size": 99})["hits"]["hits"]))  # fmt: skip
    assert found == old
    check_takes_documents(client, index)


def test_a_kill_before_the_old_one_is_deleted_leaves_it_writable(
    cluster_url: str, client: OpenSearch, tiny: TinyModels, index: str, old: dict[str, Any], tmp_path: Path
) -> None:
    source = str(write_documents(tmp_path / "docs.jsonl", documents(30)))
    for pattern in (rf"^PUT /{index}/_clone", rf"^DELETE /{index}(\?|$)"):
        with FaultyProxy(cluster_url, Fault(pattern, "hang")) as proxy:
            process = begin(tmp_path, "ingest", index, source, "--archive", str(tiny.archive), "--recreate",
                            "--url", proxy.url)  # fmt: skip
            proxy.wait_for(pattern)
            process.kill()
            process.communicate()
        ingest(client, index, GOOD, encoder=tiny.encoder)
        assert answers(client, index) == old
        check_takes_documents(client, index)


def test_where_the_name_of_what_is_kept_is_taken_nobody_is_kept_from_writing(
    client: OpenSearch, tiny: TinyModels, index: str, old: dict[str, Any]
) -> None:
    """As by a clone that a killed run left, whose trial somebody has deleted."""
    client.indices.create(index=kept_name(index))
    with pytest.raises(IndexingError, match=rf"(?s){kept_name(index)}.*DELETE {kept_name(index)}"):
        ingest(client, index, documents(30), encoder=tiny.encoder, recreate=True)
    check_takes_documents(client, index)
    client.indices.delete(index=kept_name(index))
    assert answers(client, index) == old


def test_what_others_make_of_its_name_meanwhile_stays(
    cluster_url: str, client: OpenSearch, tiny: TinyModels, index: str, old: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Another oskit's that found the first one gone, and an index that somebody made on purpose."""
    source = str(write_documents(tmp_path / "docs.jsonl", documents(30)))
    replacing = ["ingest", index, source, "--archive", str(tiny.archive), "--recreate"]
    with FaultyProxy(cluster_url, Fault(rf"^PUT /{index}$", "hang")) as proxy:
        process = begin(tmp_path, *replacing, "--url", proxy.url)
        proxy.wait_for(rf"^PUT /{index}$")
        process.kill()
        process.communicate()
    fields = {"properties": {"price": {"type": "double"}}, "_meta": {"of": "a template"}}
    template = {"index_patterns": [index], "template": {"mappings": fields, "aliases": {f"{index}-t": {}}}}
    client.indices.put_index_template(name=index, body=template)
    client.index(index=index, id="theirs", body={"when": "2026-11-29"})  # a write alone makes nothing
    with FaultyProxy(cluster_url, Fault(rf"^PUT /{index}$", "delay", seconds=6)) as proxy:
        ingest(client, index, GOOD, encoder=tiny.encoder)
        client.indices.delete_index_template(name=index)
        assert answers(client, index) == old
        process = begin(tmp_path, *replacing, "--url", proxy.url)
        proxy.wait_for(rf"^PUT /{index}$")
        monkeypatch.setattr(trials, "is_abandoned", lambda *_: True)  # as after ten minutes
        assert ingest(client, index, [Document("new", "quick fox")], encoder=tiny.encoder).indexed == 1
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 7
    assert "stays as it is" in said
    assert f"somebody else has made an index '{index}'" in said
    client.indices.refresh(index=index)
    assert client.count(index=index)["count"] == 10
    with FaultyProxy(cluster_url, Fault(rf"^PUT /{index}$", "hang")) as proxy:
        process = begin(tmp_path, *replacing, "--url", proxy.url)
        proxy.wait_for(rf"^PUT /{index}$")
        process.kill()
        process.communicate()
    client.indices.create(index=index, body={"mappings": {"properties": {"price": {"type": "double"}}}})
    client.index(index=index, id="theirs", body={"price": 1}, params={"refresh": "true"})
    for _ in range(2):
        with pytest.raises(IndexingError, match=rf"(?s)somebody else.*{kept_name(index)}"):
            ingest(client, index, GOOD, encoder=tiny.encoder)
    assert [client.count(index=name)["count"] for name in (index, kept_name(index))] == [1, 10]
    client.indices.delete(index=index)
    assert ingest(client, index, GOOD, encoder=tiny.encoder).unchanged == 2
    assert client.count(index=index)["count"] == 10


def test_of_two_that_replace_an_index_at_once_one_does(
    cluster_url: str, client: OpenSearch, tiny: TinyModels, index: str, old: dict[str, Any]
) -> None:
    """The other one is told, and whichever it is, the index is whole."""
    ends: list[Any] = []

    def run(number: int) -> None:
        mine = connect(ConnectionSettings(url=cluster_url))
        docs = [Document(f"{number}-{n}", "quick fox") for n in range(20)]
        try:
            ends.append(ingest(mine, index, docs, encoder=tiny.encoder, recreate=True).indexed)
        except ClusterError as error:
            ends.append(error)

    for _ in range(3):
        ends.clear()
        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 20 in ends
        assert all(end == 20 or "replace" in str(end) for end in ends), ends
        found = answers(client, index)
        assert (found["indexes"], found["aliases"]) == ([index], old["aliases"])
        assert client.count(index=index)["count"] == 20


@contextmanager
def writing(url: str, index: str) -> Iterator[list[int]]:
    """Somebody else writes all the while; what was answered."""
    client, stop, said = connect(ConnectionSettings(url=url, retry_for=0)), threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            try:
                client.index(index=index, body={"passage": "theirs"})
                said.append(201)
            except Exception as error:
                said.append(getattr(error, "status_code", 0))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield said
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_others_who_write_meanwhile_do_not_make_the_new_index(
    cluster_url: str, client: OpenSearch, tiny: TinyModels, index: str, old: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ingest(client, f"{index}-as-it-should-be", documents(30), encoder=tiny.encoder)
    found = client.indices.get_mapping(index=f"{index}-as-it-should-be").popitem()[1]["mappings"]
    wanted, count, loaded = found["properties"], 30, documents(30)
    with writing(cluster_url, index) as said:
        time.sleep(0.3)
        try:
            ingest(client, index, documents(30), encoder=tiny.encoder, recreate=True)
        except IndexingError as error:  # they were faster every time: then all that it held is kept
            assert re.search("stays as it is|is an alias of|the next load puts back", str(error))
            wanted, count, loaded = old["mappings"]["properties"], 9, GOOD
    assert 201 in said
    monkeypatch.setattr(trials, "is_abandoned", lambda *_: True)  # the process would be gone
    ingest(client, index, loaded, encoder=tiny.encoder)
    assert (
        client.indices.get_mapping(index=index)[index]["mappings"]["properties"]["embedding"]
        == wanted["embedding"]
    )
    assert client.indices.get_alias(index=index)[index]["aliases"] == old["aliases"]
    ours = {"query": {"bool": {"must_not": {"term": {"passage": "theirs"}}}}}
    assert client.count(index=index, body=ours)["count"] == count


def test_without_the_permission_to_keep_it_says_so_and_goes_on(
    cluster_url: str, client: OpenSearch, tiny: TinyModels, index: str, old: dict[str, Any],
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = str(write_documents(tmp_path / "docs.jsonl", documents(30)))
    load = ["ingest", index, source, "--archive", str(tiny.archive), "--recreate", "--retry-for", "0"]
    refused = json.dumps({"error": {"type": "security_exception", "reason": "no permissions"}, "status": 403})
    for what in ("_settings", f"_clone/{kept_name(index)}"):
        fault = Fault(rf"^PUT /{index}/{what}", times=9, status=403, answer=refused.encode())
        with FaultyProxy(cluster_url, fault) as proxy:
            assert main([*load, "--url", proxy.url]) == 0
        assert "is kept nowhere while it is replaced" in capsys.readouterr().err
        assert answers(client, index)["indexes"] == [index]
        check_takes_documents(client, index)
    # Then a refusal costs the documents, and is told with what brings the aliases back.
    faults = [Fault(rf"^PUT /{index}/_clone", times=9, status=403, answer=refused.encode()),
              Fault(rf"^PUT /{index}$", times=9, status=403, answer=refused.encode())]  # fmt: skip
    with FaultyProxy(cluster_url, *faults) as proxy:
        assert main([*load, "--url", proxy.url]) == 7
    said = capsys.readouterr().err
    assert f"'{index}' was deleted" in said
    assert f"{index}-some" in said
    assert main([*load[:-1], "1", "--url", cluster_url]) == 0
    assert answers(client, index)["aliases"] == old["aliases"]
