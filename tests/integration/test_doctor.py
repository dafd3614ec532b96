"""The doctor's look at a real cluster."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from archives import encoder_archive
from leftovers import orphaned_chunks
from opensearchpy import OpenSearch
from tiny_models import TinyModels, index, tiny

from oskit.archive.archive import CHUNK_SIZE, open_archive
from oskit.cli import main
from oskit.cluster.client.connection import ConnectionSettings
from oskit.cluster.models.registry import (
    delete_empty_group,
    get_model,
    groups_called,
    request,
    search_groups,
    wait_until,
)
from oskit.cluster.models.retire import delete_model
from oskit.cluster.models.upload import register, register_body
from oskit.doctor import check_cluster, leftovers

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration


def test_a_node_of_ours_is_healthy(cluster_url: str) -> None:
    findings = check_cluster(ConnectionSettings(url=cluster_url))
    by_name = {finding.name: finding for finding in findings}
    for name in (
        "connection",
        "version",
        "plugins",
        "may list models",
        "may list indexes",
        "may list pipelines",
    ):
        assert by_name[name].status == "ok", by_name[name]


def test_a_setting_in_the_way_is_named_with_the_call_that_changes_it(
    cluster_url: str, client: OpenSearch, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = "plugins.ml_commons.only_run_on_ml_node"
    client.cluster.put_settings(body={"transient": {setting: True}})
    try:
        assert main(["doctor", "--url", cluster_url, "--json"]) == 7
    finally:
        client.cluster.put_settings(body={"transient": {setting: None}})
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings[setting]["status"] == "failure"
    assert "PUT _cluster/settings" in findings[setting]["advice"]


def test_nothing_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        (finding,) = check_cluster(ConnectionSettings(url=url))
    assert finding.status == "failure"
    assert url in finding.detail
    assert finding.advice


@pytest.fixture
def left_behind(client: OpenSearch, tiny: TinyModels, index: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What earlier versions left behind, beside the like of others; how its names begin, and our entries."""
    content = open_archive(tiny.archive).sha256
    recorded = {"kind": "rank_features", "encode": "cluster", "encoder_sha256": content, "model_id": "gone"}
    ours = {"paused.a": {"refresh_interval_before": "30s"}, "unrecorded": {}}
    for name, entries in ours.items():
        client.indices.create(
            index=f"{index}-{name}",
            body={
                "settings": {"index": {"refresh_interval": "-1", "number_of_replicas": 0}},
                "mappings": {"_meta": {"oskit": {**recorded, **entries}, "theirs": {"owner": "team"}}},
            },
        )
    client.indices.create(index=f"{index}-theirs", body={"settings": {"index": {"refresh_interval": "-1"}}})
    for name, described in (("gone", "gone"), ("other", "another"), ("used", "used")):
        mark = f"oskit: sparse vectors for the index {index}-{described}"
        client.ingest.put_pipeline(
            id=f"{index}-{name}-sparse-encoding", body={"description": mark, "processors": []}
        )
    client.indices.put_settings(
        index=f"{index}-theirs", body={"index": {"default_pipeline": f"{index}-used-sparse-encoding"}}
    )
    client.cluster.put_settings(body={"transient": {"plugins.ml_commons.local_model.enabled": False}})
    yield index, recorded
    client.cluster.put_settings(body={"transient": {"plugins.ml_commons.local_model.enabled": None}})
    client.indices.delete(index=f"{index}-*")
    client.ingest.delete_pipeline(id=f"{index}-*-sparse-encoding", ignore=404)


def test_14_what_earlier_versions_left_behind_is_told_and_mended(
    client: OpenSearch,
    cluster_url: str,
    tiny: TinyModels,
    left_behind: tuple[str, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, recorded = left_behind
    monkeypatch.setattr(leftovers, "STILL_S", 0.3)
    monkeypatch.setattr("oskit.doctor.check_loading", lambda **_: [])

    def state() -> tuple[Any, ...]:
        names = f"{index}-*"
        intervals = client.indices.get_settings(index=names, name="index.refresh_interval")
        settings = client.cluster.get_settings(params={"flat_settings": "true"})
        return client.indices.get_mapping(index=names), intervals, client.ingest.get_pipeline(), settings

    def doctor(*options: str) -> dict[str, dict[str, str]]:
        assert main(["doctor", "--url", cluster_url, "--json", *options]) == 7, "local models are off"
        return {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}

    before = state()
    told = doctor()
    assert state() == before, "without --fix nothing is changed"
    paused, unrecorded = (told[f"index '{index}-{name}'"] for name in ("paused.a", "unrecorded"))
    assert (
        f'--fix sends: PUT {index}-paused.a/_settings {{"index": {{"refresh_interval": "30s"}}}}; PUT'
        in (paused["advice"])
    )
    assert "not recorded" in unrecorded["detail"] and '"refresh_interval": null' in unrecorded["advice"]
    assert (
        f"DELETE _ingest/pipeline/{index}-gone-sparse-encoding"
        in (told[f"ingest pipeline '{index}-gone-sparse-encoding'"]["advice"])
    )
    assert {name for name in told if index in name} == {
        *(f"index '{index}-{name}'" for name in ("paused.a", "unrecorded")),
        *(f"model_id of the index '{index}-{name}'" for name in ("paused.a", "unrecorded")),
        f"ingest pipeline '{index}-gone-sparse-encoding'",
    }, "nothing of somebody else's"

    client.indices.put_settings(index=f"{index}-unrecorded", body={"index": {"blocks.read_only": True}})
    mended = doctor("--fix")
    assert "not mended" in mended[f"index '{index}-unrecorded'"]["detail"]
    client.indices.put_settings(index=f"{index}-unrecorded", body={"index": {"blocks.read_only": None}})
    assert "; mended: PUT" in mended[f"index '{index}-paused.a'"]["detail"], "one failure stops no other"
    doctor("--fix")
    mappings, intervals, pipelines, settings = state()
    for name in ("paused.a", "unrecorded"):
        meta = mappings[f"{index}-{name}"]["mappings"]["_meta"]
        assert meta == {"oskit": {**recorded, "model_id": tiny.encoder_id}, "theirs": {"owner": "team"}}
    assert {name: found["settings"]["index"]["refresh_interval"] for name, found in intervals.items()} == {
        f"{index}-paused.a": "30s",
        f"{index}-theirs": "-1",
    }
    assert before[2].keys() - pipelines.keys() == {f"{index}-gone-sparse-encoding"}
    assert settings == before[3], "what pauses local models is somebody's decision"
    assert not {name for name in doctor() if index in name}


def test_14_an_index_that_is_written_to_is_left_alone(
    client: OpenSearch, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = {"_meta": {"oskit": {"kind": "rank_features", "refresh_interval_before": "30s"}}}
    settings = {"index": {"refresh_interval": "-1"}}
    client.indices.create(index=index, body={"settings": settings, "mappings": meta})
    # The load of an earlier version goes on in the moment between the two looks.
    monkeypatch.setattr(leftovers.time, "sleep", lambda _seconds: client.index(index=index, body={}))
    findings = leftovers.check_leftovers(client, fix=True)
    (found,) = [finding for finding in findings if finding.name == f"index '{index}'"]
    assert (found.status, found.detail.count("mended")) == ("warning", 0)
    assert "right now" in (found.advice or "")
    assert client.indices.get_mapping(index=index)[index]["mappings"] == meta


def test_14_uploads_that_nobody_goes_on_with_are_deleted(
    client: OpenSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "STILL_S", 0.3)
    archive = open_archive(encoder_archive(tmp_path / "oskit-test-half.zip", size=1800, seed=33))

    def half(description: str, name: str) -> str:
        described = dataclasses.replace(archive, description=description)
        model_id, _ = register(client, register_body(described, name, None))
        with archive.path.open("rb") as file:
            request(client, "POST", f"/models/{model_id}/upload_chunk/0", file.read(CHUNK_SIZE))
        return model_id

    ours = half("An encoder, exported by oskit.", "oskit-test-half")
    theirs = half("An encoder of somebody else.", "oskit-test-half-theirs")
    lost = half("An encoder, exported by oskit.", "oskit-test-half-lost")
    client.transport.perform_request("DELETE", f"/.plugins-ml-model/_doc/{lost}", params={"refresh": "true"})
    try:
        found = {finding.name: finding for finding in leftovers.check_leftovers(client)}
        assert "1 of 2 chunks" in found[f"model {ours}"].detail and f"model {theirs}" not in found
        assert found[f"model {ours}"].advice == (
            "The same oskit deploy goes on with it; --fix deletes it once it is an hour old"
        )
        assert found[f"model {lost}"].advice == f"--fix sends: DELETE _plugins/_ml/models/{lost}"
        monkeypatch.setattr(leftovers, "ABANDONED_AFTER", timedelta(0))
        leftovers.check_leftovers(client, fix=True)
        assert (get_model(client, ours), get_model(client, lost)) == (None, None)
        assert get_model(client, theirs) is not None
        groups = search_groups(client, {"match_all": {}}).values()
        assert "oskit-test-half" not in groups and "oskit-test-half-theirs" in groups
    finally:
        delete_model(client, theirs, own=True)
        for group in groups_called(client, "oskit-test-half-lost"):
            delete_empty_group(client, group)
    assert wait_until(lambda: not orphaned_chunks(client), wait_s=5)


def test_trials_that_nobody_works_with_are_deleted_and_what_they_remember_is_kept(
    client: OpenSearch,
    cluster_url: str,
    index: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leftovers, "STILL_S", 0.1)
    monkeypatch.setattr("oskit.doctor.check_loading", lambda **_: [])
    host = socket.gethostname()
    nobody, me = {"host": host, "pid": 2**22 + 1}, {"host": host, "pid": os.getpid()}
    aliases = {"aliases": {f"{index}-live": {}}}
    trials = {
        "ended": {**nobody, "for": index},
        "works": {**me, "for": index},
        "needed": {**nobody, "for": f"{index}-gone", **aliases},
        "not-needed": {**nobody, "for": index, **aliases},
    }
    client.indices.create(index=index)
    names = {what: f"{index}-oskit-trial-{what}" for what in trials}
    for what, own in trials.items():
        meta = {"oskit": {"kind": "rank_features", "trial": True, **own}}
        body = {"settings": {"index": {"hidden": True}}, "mappings": {"_meta": meta}}
        client.indices.create(index=names[what], body=body)
    pipeline = {"description": f"oskit: sparse vectors for the index {names['ended']}", "processors": []}
    client.ingest.put_pipeline(id=f"{names['ended']}-sparse-encoding", body=pipeline)
    try:
        main(["doctor", "--url", cluster_url, "--json", "--fix"])
        told = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
        left = client.indices.get(index=f"{index}-*", params={"expand_wildcards": "all"})
        assert sorted(left) == sorted([names["works"], names["needed"]])
        assert f"brings its aliases back ({index}-live)" in told[f"index '{names['needed']}'"]["advice"]
        assert f"{names['ended']}-sparse-encoding" not in client.ingest.get_pipeline(params={"ignore": 404})
    finally:
        for name in names.values():
            client.indices.delete(index=name, params={"ignore_unavailable": "true"})
