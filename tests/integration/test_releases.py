"""Releases behind an alias: built beside the living one, proved, put in its place, and brought back."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import incidents
import pytest
from archives import encoder_archive
from faulty_proxy import Fault, FaultyProxy
from incidents import Incident
from opensearchpy import OpenSearch
from tiny_models import TinyModels, documents, index, indexed, tiny, write_documents

from oskit.archive.archive import open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.index import pruning, releases
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.registry import get_model
from oskit.cluster.models.retire import delete_model, undeploy_model
from oskit.cluster.search.search import Searcher
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.evaluation.live import release_proof

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

DOCS = [replace(doc, text=" ".join([doc.text] * 3).strip()) for doc in documents(40)]


@pytest.fixture
def alias(client: OpenSearch, index: str) -> Iterator[str]:
    """The name of an alias that is gone afterwards, with all of its releases."""
    yield index
    for name in client.indices.get(index=f"{index}*", params={"expand_wildcards": "all"}):
        client.indices.delete(index=name)
        client.ingest.delete_pipeline(id=f"{name}-sparse-encoding", ignore=404)
    client.ingest.delete_pipeline(id=f"{index}-seen", ignore=404)


Oskit = Callable[..., Any]


@pytest.fixture
def oskit(cluster_url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> Oskit:
    """Runs a command with --json: its result, or the exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    numbers = itertools.count()
    monkeypatch.setattr(  # they are called by the second, for which no test waits
        "oskit.cluster.ingest.release.release_name",
        lambda *words: f"{releases.release_name(*words)}-{next(numbers)}",
    )

    def run(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        ended = main([*map(str, words), "--json", "--url", cluster_url])
        told = capsys.readouterr()
        run.said = told.err  # type: ignore[attr-defined]
        assert ended == code, told.err
        return json.loads(told.out) if code in (0, 10) and told.out else told.err

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "docs.jsonl", DOCS)


def started(*words: object) -> subprocess.Popen[str]:
    """`oskit` as a shell would start it, in the folder of the test."""
    command = [sys.executable, "-m", "oskit", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def behind(client: OpenSearch, alias: str) -> str:
    (name,) = client.indices.get_alias(name=alias)
    return str(name)


def indexes(client: OpenSearch, alias: str) -> list[str]:
    return sorted(client.indices.get(index=f"{alias}*", params={"expand_wildcards": "all"}))


SPARSE_VECTOR = ["--index-kind", "sparse_vector"]
CHUNKED = [*SPARSE_VECTOR, "--chunk", "tokens:16,overlap:4"]


def how_of(tiny: TinyModels, mode: str) -> list[str]:
    by_cluster = ["--encode", "cluster", "--model", tiny.encoder_id] if mode == "cluster" else []
    return ["--release", "--archive", str(tiny.archive), *by_cluster]


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("client", []),
        ("cluster", SPARSE_VECTOR),
        ("client", CHUNKED),
    ],
    ids=["rank_features", "sparse_vector, encoded by the cluster", "in chunks"],
)
def test_a_release_takes_the_place_of_the_living_one_and_goes_back(
    client, tiny: TinyModels, alias, oskit: Oskit, source: Path, mode: str, more: list[str]
):
    how = [*how_of(tiny, mode), *more]
    first = oskit("ingest", alias, source, *how)
    assert (first["before"], first["indexed"]) == (None, 40)
    assert first["verified"]["documents"] >= 39, "one is empty"
    assert first["verified"]["hits"] > 0
    assert behind(client, alias) == first["release"]
    assert first["release"].startswith(f"{alias}-20")
    client.indices.put_alias(
        index=first["release"], name=alias, body={"filter": {"range": {"n": {"lt": 30}}}}
    )
    write_documents(
        source, [*DOCS, *(Document(f"e{n}", "quick brown fox", fields={"n": n}) for n in (1, 50))]
    )
    second = oskit("ingest", alias, source, *how)
    assert (second["before"], second["indexed"]) == (first["release"], 42)
    found = client.indices.get_alias(name=alias)
    options = {"filter": {"range": {"n": {"lt": 30}}}, "is_write_index": True}
    assert found == {second["release"]: {"aliases": {alias: options}}}
    assert client.count(index=alias)["count"] == 30
    rows = {row["release"]: row for row in oskit("releases", alias)}
    assert [row["state"] for row in rows.values()] == ["live", "retired"], "newest first"
    assert (rows[second["release"]]["documents"], rows[second["release"]]["before"]) == (42, first["release"])
    back = oskit("rollback", alias)
    assert (back["index"], back["before"]) == (first["release"], second["release"])
    assert client.indices.get_alias(name=alias) == {first["release"]: {"aliases": {alias: options}}}
    assert "no release before" in oskit("rollback", alias, code=7)
    assert oskit("rollback", alias, second["release"])["index"] == second["release"]


class Readers:
    """Searches all the while, up to 50 in a second, never sent again. Use it as a context manager.

    Attributes:
        answered: How many, by the version of the documents that they saw.
        problems: What failed, and answers of documents of two versions.
    """

    def __init__(self, url: str, alias: str, encoder: ArchiveEncoder) -> None:
        client = connect(ConnectionSettings(url=url, retry_for=0))
        searcher = Searcher(client, alias, encoder=encoder)
        body = {"size": 10, "query": {"match": {"passage": "quick"}}}

        def bare() -> set[Any]:
            hits = client.search(index=alias, body=body)["hits"]["hits"]
            assert len({hit["_index"] for hit in hits}) == 1
            return {hit["_source"]["version"] for hit in hits}

        def by_searcher() -> set[Any]:
            return {hit.source["version"] for hit in searcher.search("quick fox").hits}

        self.answered: dict[Any, int] = {}
        self.problems: list[object] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(ask,)) for ask in (bare, by_searcher)]

    def _ask(self, ask: Callable[[], set[Any]]) -> None:
        while not self._over.wait(0.04):
            try:
                (version,) = ask()
                self.answered[version] = self.answered.get(version, 0) + 1
            except Exception as problem:
                self.problems.append(problem)

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)


def versioned(path: Path, version: int) -> Path:
    docs = [Document(f"d{n}", f"quick brown fox {n}", fields={"version": version}) for n in range(12)]
    return write_documents(path, docs)


@pytest.mark.incident(
    during="`ingest --release`",
    what="searches go on, by oskit and by the bare API, while the alias moves and older releases go",
    then="none fails, and none sees documents of two releases",
)
def test_readers_see_one_release_at_a_time(
    cluster_url, client, tiny: TinyModels, alias, oskit: Oskit, source: Path, incident: Incident
):
    how = how_of(tiny, "client")
    oskit("ingest", alias, versioned(source, 0), *how)
    with Readers(cluster_url, alias, tiny.encoder) as readers:
        for version in range(1, 5):
            done = oskit("ingest", alias, versioned(source, version), *how, "--keep", 2)
        oskit("rollback", alias)
    incident.said(done["notes"], "Deleting .*, which was living until")
    assert not readers.problems, readers.problems[:3]
    assert set(readers.answered) == {0, 1, 2, 3, 4}
    assert len(indexes(client, alias)) == 2
    assert len(done["pruned"]["indexes"]) == 1
    incident.orphans(indexes(client, alias)[2:])


STEPS = {
    "before there is an index": Fault(r"PUT /[^/]*-20\d+-[^/]*$", "hang"),
    "in the load": Fault(r"POST .*_bulk", "hang"),
    "before it is verified": Fault(r"GET .*/_segments", "hang"),
    "before the alias moves": Fault(r"POST /_aliases", "hang"),
    "just after the alias moved": Fault(r"POST /_aliases", "swallow"),
    "in the pruning": Fault(r"DELETE /[^_]", "hang"),
}


SAID = {
    "before there is an index": "Next: oskit releases",
    "in the load": "interrupted|Deleted .*, which a run left unfinished",
    "before it is verified": "Deleted .*, which a run left unfinished",
    "before the alias moves": "Deleted .*, which was never put in place",
    "just after the alias moved": "Next: oskit releases",
    "in the pruning": "Deleting .*, which was living until",
}


@pytest.mark.parametrize(
    ("step", "name"),
    [
        incidents.fault(
            step,
            name,
            during=f"`ingest --release`, {step}",
            what={"SIGKILL": "`oskit` is killed (SIGKILL)", "SIGTERM": "`oskit` is asked to end (SIGTERM)"}[
                name
            ],
            then="searches are answered as before it; the same command again cleans up and goes live"
            if "after" not in step and step != "in the pruning"
            else "the new release answers; the same command again cleans up and goes live",
        )
        for step in STEPS
        for name in ("SIGKILL", "SIGTERM")
        if name == "SIGKILL" or step in ("in the load", "before the alias moves")
    ],
)
def test_a_release_that_is_killed_costs_nothing(
    cluster_url, client, tiny: TinyModels, alias, oskit: Oskit, source: Path, step, name, incident: Incident
):
    how = [*how_of(tiny, "cluster"), *SPARSE_VECTOR, "--keep", 2]
    for version in range(2 if step == "in the pruning" else 1):
        first = oskit("ingest", alias, versioned(source, version), *how)["release"]
    before = indexes(client, alias)
    fault = Fault(**vars(STEPS[step]))
    if name == "SIGTERM" and step == "in the load":
        fault = Fault(fault.pattern, "delay", seconds=5)  # what is sent is waited for
    with FaultyProxy(cluster_url, fault) as proxy:
        versioned(source, 5)
        process = started("ingest", alias, source, *how, "--url", proxy.url)
        proxy.wait_for(STEPS[step].pattern, wait_s=180)
        if STEPS[step].kind == "swallow":
            wait_for(lambda: behind(client, alias) != first)
        incident.begins()
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if name == "SIGKILL" else 143), said
    moved = step in ("just after the alias moved", "in the pruning")
    assert (behind(client, alias) == first) != moved
    assert {hit["_source"]["version"] for hit in hits(client, alias)} == {5 if moved else len(before) - 1}
    if name == "SIGTERM" and step == "in the load":
        assert indexes(client, alias) == before, "it cleaned up itself"
    again = oskit("ingest", alias, versioned(source, 6), *how)
    incident.is_over()
    incident.documents([f"d{n}" for n in range(12)], [hit["_id"] for hit in hits(client, alias)])
    assert {hit["_source"]["version"] for hit in hits(client, alias)} == {6}
    incident.orphans(set(indexes(client, alias)) - {again["release"], again["before"]})
    pipelines = client.ingest.get_pipeline(params={"ignore": 404})
    kept = {f"{again[which]}-sparse-encoding" for which in ("release", "before")}
    assert {name for name in pipelines if alias in name} == kept
    incident.said(f"{said} {oskit.said}", SAID[step])


def hits(client: OpenSearch, alias: str) -> list[dict[str, Any]]:
    found = client.search(index=alias, body={"size": 100, "query": {"match": {"passage": "quick"}}})
    return list(found["hits"]["hits"])


def wait_for(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)


def count(client: OpenSearch, name: str) -> int:
    client.indices.refresh(index=name)
    return int(client.count(index=name)["count"])


def write(client: OpenSearch, alias: str) -> None:
    client.index(index=alias, id="theirs", body={"text": "quick fox"}, refresh=True)


REFUSED: dict[str, tuple[list[Any], list[str], int, str]] = {
    "nothing to load": ([], [], 7, "no documents were loaded, so nothing goes live: there are none"),
    "all are refused": ([{"text": 1, "": 1}], [], 7, "all 1 records were refused"),
    "too many are refused": (
        [*DOCS, {"nothing": 1}],
        [],
        10,
        "1 of 41 records were refused, more than 1.00%",
    ),
    "much less than is living": (DOCS[:20], [], 7, "it shows 20 documents, and .* 40; .*|--yes"),
    "a routing that would miss documents": (DOCS, ["--shards", "2"], 7, "the routing 'r'"),
    "a filter that needs another mapping": (DOCS, [], 7, "has a filter that the new index cannot have"),
    "a living one that nobody may change": (DOCS, [], 7, "away from '.*index.blocks.read_only blocks it"),
    "parts": (DOCS, ["--part", "1/2"], 2, "--part has no effect with --release"),
    "no encoder": (DOCS, [], 2, "compared with exact scores, which needs the encoder"),
}


@pytest.mark.parametrize("cause", REFUSED)
def test_what_is_no_release_leaves_the_living_one(
    client, tiny: TinyModels, alias, oskit: Oskit, source: Path, cause: str
):
    docs, more, code, said = REFUSED[cause]
    how = how_of(tiny, "client")
    first = oskit("ingest", alias, source, *how)["release"]
    if "routing" in cause:
        client.indices.put_alias(index=first, name=alias, body={"search_routing": "r"})
    if "nobody may change" in cause:
        client.indices.put_settings(index=first, body={"index.blocks.read_only": True})
    if "filter" in cause:
        client.indices.put_mapping(index=first, body={"properties": {"q": {"type": "nested"}}})
        only = {"nested": {"path": "q", "query": {"term": {"q.x": 1}}}}
        client.indices.put_alias(index=first, name=alias, body={"filter": only})
    before = client.indices.get(index=f"{alias}*", params={"expand_wildcards": "all"})
    write_documents(source, [doc for doc in docs if isinstance(doc, Document)])
    with source.open("a") as file:
        file.writelines(json.dumps(doc) + "\n" for doc in docs if isinstance(doc, dict))
    how = [*how[:1], "--encode", "cluster", "--model", tiny.encoder_id] if cause == "no encoder" else how
    told = oskit("ingest", alias, source, *how, *more, "--dead-letter", "refused.jsonl", code=code)
    assert re.search(said, str(told)) or re.search(said, oskit.said)
    after = client.indices.get(index=f"{alias}*", params={"expand_wildcards": "all"})
    if cause == "much less than is living":  # it is right, and may be taken all the same
        (ready,) = after.keys() - before.keys()
        client.indices.put_settings(index=ready, body={"index.blocks.write": True})  # it can be read
        assert oskit("rollback", alias, ready)["before"] == first
    else:
        assert after == before
    client.indices.put_settings(index=first, body={"index.blocks.read_only": None})


def test_an_index_is_no_alias(client, tiny: TinyModels, alias, oskit: Oskit, source: Path):
    how = how_of(tiny, "client")
    oskit("ingest", alias, source, *how[1:])
    for words in (["ingest", alias, source, *how], ["ingest", alias, source, *how, "--dry-run"]):
        told = oskit(*words, code=7)
        assert "is an index itself, and releases are behind an alias" in told and "POST _aliases" in told
    for command in ("releases", "rollback"):
        assert "Name an alias" in oskit(command, alias, code=7)
    assert "there is no alias" in oskit("releases", f"{alias}-other", code=7)


def test_a_dry_run_tells_the_calls_and_changes_nothing(
    client, tiny: TinyModels, alias, oskit: Oskit, source: Path
):
    calls = oskit("ingest", alias, source, *how_of(tiny, "client"), "--dry-run")["calls"]
    assert [call["method"] for call in calls] == ["PUT", "POST", "POST"]
    assert calls[0]["body"]["mappings"]["_meta"]["oskit"]["release"]["of"] == alias
    assert calls[-1]["body"]["actions"] == [
        {"add": {"index": calls[0]["path"], "alias": alias, "is_write_index": True}}
    ]
    assert not indexes(client, alias)


@pytest.mark.incident(
    during="`ingest --release`",
    what="another release of the alias is being built",
    then="the second ends at once and says who builds; the first goes live",
)
def test_two_at_once(
    cluster_url, client, tiny: TinyModels, alias, oskit: Oskit, source: Path, monkeypatch, incident: Incident
):
    how = how_of(tiny, "client")
    first = oskit("ingest", alias, versioned(source, 0), *how)["release"]
    with FaultyProxy(cluster_url, Fault(r"POST .*_bulk", "delay", seconds=8)) as proxy:
        process = started("ingest", alias, source, *how, "--url", proxy.url)
        proxy.wait_for(r"POST .*_bulk", wait_s=180)
        incident.begins()
        there = indexes(client, alias)
        oskit("ingest", alias, source, *how, code=7)
        incident.is_over()
        incident.said(oskit.said, f"another release of .* is being built: .* by process {process.pid} on ")
        # Even if it looked for others before there was one.
        monkeypatch.setattr("oskit.cluster.ingest.release.tidy", lambda *_: None)
        oskit("ingest", alias, source, *how, code=7)
        # Or began in the same second.
        (building,) = set(there) - {first}
        monkeypatch.setattr("oskit.cluster.ingest.release.release_name", lambda *_: building)
        oskit("ingest", alias, source, *how, code=7)
        assert re.search(f"is being built: .* by process {process.pid} ", oskit.said)
        assert indexes(client, alias) == there
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert behind(client, alias) == building


@pytest.mark.parametrize(("ago", "is_deleted"), [(10, False), (2 * releases.SILENT_AFTER_S, True)])
def test_what_another_machine_builds_goes_only_once_it_has_been_silent(
    client, tiny: TinyModels, alias, oskit: Oskit, source: Path, ago: float, is_deleted: bool
):
    beat = datetime.fromtimestamp(time.time() - ago, UTC).isoformat()
    record = {"of": alias, "state": "building", "host": "elsewhere", "machine": "?", "pid": 1, "beat": beat}
    theirs, others = f"{alias}-20260101-000000-x", f"{alias}-20260101-000000-y"
    meta = {"kind": "rank_features", "release": record}
    client.indices.create(index=theirs, body={"mappings": {"_meta": {"oskit": meta}}})
    meta["release"] = record | {"of": "another", "beat": "2020-01-01T00:00:00Z"}
    client.indices.create(index=others, body={"mappings": {"_meta": {"oskit": meta}}})
    oskit("ingest", alias, source, *how_of(tiny, "client"), code=0 if is_deleted else 7)
    assert (theirs in indexes(client, alias)) != is_deleted
    assert others in indexes(client, alias)


def test_what_others_write_to_the_living_one_meanwhile_is_not_lost_in_silence(
    client, tiny: TinyModels, alias, oskit: Oskit, source: Path, monkeypatch
):
    how = how_of(tiny, "client")
    first = oskit("ingest", alias, source, *how)["release"]
    original = release_proof.check_release

    def with_a_writer(*args: Any, **kwargs: Any) -> Any:
        write(client, alias)
        return original(*args, **kwargs)

    monkeypatch.setattr(release_proof, "check_release", with_a_writer)
    told = oskit("ingest", alias, source, *how, code=7)
    assert "was written to 1 times while it was built" in told
    assert behind(client, alias) == first
    second = oskit("ingest", alias, source, *how, "--yes")["release"]
    assert "All the same" in oskit.said
    assert "which was never put in place" in oskit.said
    assert indexes(client, alias) == sorted([first, second])

    def with_another_move(*args: Any, **kwargs: Any) -> Any:
        actions = [{"remove": {"index": second, "alias": alias}}, {"add": {"index": first, "alias": alias}}]
        client.indices.update_aliases(body={"actions": actions})
        return original(*args, **kwargs)

    monkeypatch.setattr(release_proof, "check_release", with_another_move)
    told = oskit("ingest", alias, source, *how, "--yes", code=7)
    assert "somebody has moved the alias" in told
    assert behind(client, alias) == first
    ready = re.search(r"oskit rollback \S+ (\S+)", told)
    assert ready
    assert oskit("rollback", alias, ready[1])["before"] == first


def test_an_index_that_others_made_gives_way_and_comes_back(
    client, tiny: TinyModels, alias, oskit: Oskit, source: Path
):
    theirs = f"{alias}-theirs"
    aliases, noted = {alias: {}, f"{alias}-some": {}}, {"_meta": {"team": "search"}}
    made = {"aliases": aliases, "settings": {"refresh_interval": "7s"}, "mappings": noted}
    client.indices.create(index=theirs, body=made)
    how = how_of(tiny, "client")
    first = oskit("ingest", alias, source, *how)
    for lost in ("refresh_interval=7s", "what _meta has of team", f"the aliases {alias}-some"):
        assert lost in oskit.said
    assert first["before"] == theirs
    client.indices.put_settings(index=first["release"], body={"index.blocks.write": True})
    client.indices.clone(index=first["release"], target=f"{alias}-copy")  # with all that is recorded there
    client.indices.put_settings(index=f"{alias}-copy", body={"index.blocks.write": None})
    oskit("ingest", alias, source, *how, "--keep", 2)
    oskit("ingest", alias, source, *how, "--keep", 2)
    assert {theirs, f"{alias}-copy"} < {*indexes(client, alias)}, "they are not ours to delete"
    assert [row["state"] for row in oskit("releases", alias)] == ["live", "retired"]
    client.indices.update_aliases(body={"actions": [{"add": {"index": theirs, "alias": alias}}]})
    assert "leave the alias on one of them" in oskit("ingest", alias, source, *how, code=7)


def test_what_other_programs_write_is_encoded_by_the_new_one_as_well(
    client, tiny: TinyModels, alias, oskit: Oskit, tmp_path, source
):
    how = how_of(tiny, "client")
    first = oskit("ingest", alias, source, *how)["release"]
    oskit("pipeline", "put", alias)
    second = oskit("ingest", alias, source, *how)["release"]
    assert behind(client, alias) == second
    write(client, alias)
    (vector,) = (hit["_source"]["embedding"] for hit in indexed(client, second) if hit["_id"] == "theirs")
    assert vector
    unknown = encoder_archive(tmp_path / "unknown.zip", seed=17)
    told = oskit("ingest", alias, source, "--release", "--archive", unknown, code=7)
    assert f"{second} encodes what other programs write" in told
    assert behind(client, alias) == second
    assert oskit("rollback", alias)["index"] == first
    assert f"{second} was written to 1 times since it went live" in oskit.said
    # What theirs does goes on beside it, or the release does not go live.
    seen = f"{alias}-seen"
    client.ingest.put_pipeline(id=seen, body={"processors": [{"set": {"field": "seen", "value": 1}}]})
    client.indices.put_settings(index=first, body={"index.default_pipeline": seen})
    assert oskit("pipeline", "put", alias, "--replace")["calls"] == seen
    assert f"runs the pipeline {seen!r} on what is written" in oskit("ingest", alias, source, *how, code=7)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"index.default_pipeline": seen}))
    third = oskit("ingest", alias, source, *how, "--settings", settings)["release"]
    write(client, alias)
    found = client.get(index=third, id="theirs")["_source"]
    assert found["seen"] == 1 and found["embedding"] == vector


def test_a_release_that_is_wrong_is_refused(client, tiny: TinyModels, alias, oskit: Oskit, source: Path):
    how = how_of(tiny, "client")
    first = oskit("ingest", alias, source, *how)["release"]
    vectors = [
        {"_id": doc.id, "text": doc.text, "embedding": {key: weight * 1.5 for key, weight in weights.items()}}
        for doc, weights in zip(DOCS, tiny.encoder.document_weights([doc.text for doc in DOCS]), strict=True)
    ]
    source.write_text("".join(json.dumps(record) + "\n" for record in vectors))
    told = oskit("ingest", alias, source, *how, "--encode", "none", code=9)
    assert re.search("does not go live: .*documents have other weights in the index", told)
    assert behind(client, alias) == first
    (refused,) = (row for row in oskit("releases", alias) if row["state"] == "refused")
    assert "other weights" in refused["failures"][0]
    assert "was refused" in oskit("rollback", alias, refused["release"], code=7)
    assert oskit("ingest", alias, source, *how, "--encode", "none", "--no-verify")["verified"] is None
    assert refused["release"] not in indexes(client, alias)


def test_a_release_that_finds_less_is_refused(
    client, tiny: TinyModels, alias, oskit: Oskit, tmp_path, source
):
    docs = [doc for doc in DOCS if doc.text]
    queries = {f"q{n}": " ".join(doc.text.split()[:3]) for n, doc in enumerate(docs)}
    qrels = {f"q{n}": {doc.id: 1} for n, doc in enumerate(docs)}
    judged = ["--judgements", Collection(queries, qrels, tuple(docs)).write(tmp_path / "judged")]
    first = oskit("ingest", alias, source, *how_of(tiny, "client"), *judged)
    assert first["quality"]["value"] > 0.3
    worse = encoder_archive(tmp_path / "worse.zip", seed=11)
    how = ["--release", "--archive", worse, *judged]
    assert re.search(r"does not go live: its nDCG@10 of .* below that of .*, which is living \(p = ",
                     oskit("ingest", alias, source, *how, code=9))  # fmt: skip
    assert behind(client, alias) == first["release"]
    taken = oskit("ingest", alias, source, *how, "--margin", 1)
    assert taken["quality"]["living_value"] == first["quality"]["value"]
    assert taken["quality"]["verdict"] == "worse"
    told = oskit("ingest", alias, source, *how_of(tiny, "client"), *judged, code=7)
    assert "is not deployed" in told, "nothing encodes queries for the living one"
    oskit("ingest", alias, source, *how_of(tiny, "client"), *judged, "--living-archive", worse)


def test_models_go_and_come_with_their_releases(
    client, tiny: TinyModels, alias, oskit: Oskit, tmp_path, source, monkeypatch
):
    archive = encoder_archive(tmp_path / f"{alias}-old.zip", seed=31)
    model = deploy_archive(client, open_archive(archive), configure_cluster=True).model_id
    other = f"{alias}-other"
    old = ["--release", "--archive", archive, "--encode", "cluster", "--model", model]
    first = oskit("ingest", alias, source, *old)["release"]
    second = oskit("ingest", alias, source, *how_of(tiny, "client"), "--keep", 2)
    assert second["pruned"] == {"indexes": [], "models": [], "kept": {}}
    undeploy_model(client, model, force=True)
    assert oskit("rollback", alias)["deployed"] == [model]
    found = Searcher(client, alias).search("quick fox")
    assert found.by == "model"
    assert found.hits
    oskit("ingest", alias, source, *how_of(tiny, "client"), "--keep", 2)
    with monkeypatch.context() as patch:  # cut off in the middle of the pruning
        patch.setattr(pruning, "retire", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        oskit("ingest", alias, source, *how_of(tiny, "client"), "--keep", 2, code=130)
    assert first not in indexes(client, alias)
    assert get_model(client, model) is not None
    oskit("ingest", alias, source, *how_of(tiny, "client"), "--keep", 2)
    assert get_model(client, model) is None
    assert len(indexes(client, alias)) == 2
    assert not client.ingest.get_pipeline(id=f"{first}-sparse-encoding", params={"ignore": 404})
    # A model that something living uses stays, and one that a rollback needs has to be there.
    model = deploy_archive(client, open_archive(archive), configure_cluster=True).model_id
    client.indices.create(
        index=other, body={"mappings": {"_meta": {"oskit": {"kind": "x", "model_id": model}}}}
    )
    fourth = oskit("ingest", alias, source, *old[:-1], model)["release"]
    oskit("ingest", alias, source, *how_of(tiny, "client"))
    kept = oskit("ingest", alias, source, *how_of(tiny, "client"), "--keep", 2)["pruned"]
    assert fourth in kept["indexes"]
    assert f"is used by index '{other}'" in kept["kept"][model]
    assert get_model(client, model) is not None
    client.indices.delete(index=other)
    oskit("ingest", alias, source, *old[:-1], model)
    last = oskit("ingest", alias, source, *how_of(tiny, "client"))["release"]
    delete_model(client, model, force=True)
    assert "was deleted" in oskit("rollback", alias, code=7)
    assert behind(client, alias) == last
