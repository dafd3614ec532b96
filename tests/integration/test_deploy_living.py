"""Deploying where others are at work: traffic on the model, other runs of the same archive."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import archives
import incidents
import pytest
from faulty_proxy import Fault, FaultyProxy
from incidents import Incident
from leftovers import models_of, nothing_is_left
from opensearchpy import OpenSearch
from traffic import Traffic

from oskit.archive.archive import Archive, open_archive
from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.retry import RetryPolicy
from oskit.cluster.models import deploy, rivals
from oskit.cluster.models.deploy import DeployedModel, deploy_archive
from oskit.cluster.models.registry import (
    IN_MEMORY_STATES,
    ModelInfo,
    delete_empty_group,
    existing_model,
    groups_called,
    list_models,
    wait_until,
)
from oskit.cluster.models.retire import delete_model
from oskit.errors import ClusterError, ClusterSettingsError, OskitError

pytestmark = pytest.mark.integration

CHUNK = r"POST .*/upload_chunk/"
DEPLOY = r"POST .*/_deploy$"
FAILED = json.dumps({"state": "FAILED", "error": json.dumps({"n1": "Disk Circuit Breaker is open"})}).encode()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "DEPLOY_PAUSE_S", 0.2)
    monkeypatch.setattr(rivals, "STANDS_STILL_S", 1.5)


def quick(url: str) -> OpenSearch:
    """A client with little patience."""
    return connect(
        ConnectionSettings(url=url), policy=RetryPolicy(attempts=4, first_wait_s=0.01, max_wait_s=0.05)
    )


@pytest.fixture
def two_chunks(client: OpenSearch, tmp_path: Path) -> Iterator[Archive]:
    """An archive of two chunks, of which nothing is left afterwards."""
    archive = open_archive(archives.encoder_archive(tmp_path / "oskit-test-living.zip", size=1800, seed=31))
    assert archive.total_chunks == 2
    yield archive
    for model_id in models_of(client, archive):
        delete_model(client, model_id, force=True)
    assert nothing_is_left(client, archive)


@pytest.fixture(scope="module")
def serving(
    client: OpenSearch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Archive, ModelInfo]]:
    """A model that serves, and its archive."""
    path = tmp_path_factory.mktemp("serving") / "oskit-test-serving.zip"
    archive = open_archive(archives.encoder_archive(path, seed=32))
    model_id = deploy_archive(client, archive, configure_cluster=True).model_id
    yield archive, existing_model(client, model_id)
    delete_model(client, model_id, force=True)


def settled(client: OpenSearch, model: ModelInfo) -> None:
    """Until the model is DEPLOYED, also as searches see it."""

    def is_deployed() -> bool:
        found = list_models(client, {"ids": {"values": [model.model_id]}})
        return existing_model(client, model.model_id).state == "DEPLOYED" == found[0].state

    assert wait_until(is_deployed, wait_s=20)


REFUSALS = {
    "500 for the deployment": Fault(DEPLOY, "status", times=999, status=500),
    "400 for the deployment": Fault(DEPLOY, "status", times=999, status=400),
    "503 for every deployment": Fault(DEPLOY, "status", times=999, status=503),
    "the task of the deployment fails": Fault(
        "GET .*/tasks/", "status", times=999, status=200, answer=FAILED
    ),
    "the deployment takes too long": Fault(
        "GET .*/tasks/", "status", times=999, status=200, answer=b'{"state": "RUNNING"}'
    ),
    "503 for the comparison": Fault("POST .*/_predict/", "status", times=999, status=503),
}


@pytest.mark.parametrize(
    "fault",
    [
        incidents.fault(
            fault,
            during="`deploy --redeploy` of a model that serves",
            what=what,
            then="it says why; the model is as before, and no prediction fails meanwhile",
        )
        for what, fault in REFUSALS.items()
    ],
)
def test_a_redeployment_that_fails_leaves_the_model_serving(
    client: OpenSearch,
    cluster_url: str,
    serving: tuple[Archive, ModelInfo],
    fault: Fault,
    incident: Incident,
) -> None:
    archive, model = serving
    settled(client, model)  # the deployment of the test before may still be counted
    fault.times = 999
    with Traffic(cluster_url, model), FaultyProxy(cluster_url, fault) as proxy:
        with pytest.raises(OskitError) as raised:
            deploy_archive(quick(proxy.url), archive, redeploy=True, wait_s=2)
        assert not proxy.count("_undeploy|DELETE")
        told = f"{model.model_id} goes on answering, and is DEPLOYED"
        incident.said(raised.value, "" if "predict" in fault.pattern else told)
    settled(client, model)
    incident.orphans(set(models_of(client, archive)) - {model.model_id})


def test_a_lost_deployment_of_a_model_that_serves_is_sent_again(
    client: OpenSearch, cluster_url: str, serving: tuple[Archive, ModelInfo]
) -> None:
    """The old copy answers all the while, which proves nothing."""
    archive, model = serving
    with FaultyProxy(cluster_url, Fault(DEPLOY, "status", times=2)) as proxy:
        deployed = deploy_archive(quick(proxy.url), archive, redeploy=True)
        assert proxy.count(DEPLOY) == 3
    assert (deployed.model_id, deployed.state) == (model.model_id, "DEPLOYED")


@dataclass
class Run:
    """`oskit deploy` in a thread of its own."""

    archive: Archive
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    deployed: DeployedModel | None = None
    error: BaseException | None = None
    stages: list[str] = field(default_factory=list)

    def start(self) -> Run:
        self._thread = threading.Thread(target=self._deploy)
        self._thread.start()
        return self

    def _deploy(self) -> None:
        try:
            self.deployed = deploy_archive(
                quick(self.url),
                self.archive,
                notify=self.notes.append,
                progress=lambda what, _done, _total: self.stages.append(what),
                **self.options,
            )
        except BaseException as error:
            self.error = error

    def end(self) -> Run:
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self

    @property
    def model_id(self) -> str:
        assert self.deployed is not None, self.error
        return self.deployed.model_id


def is_seen_in_memory(client: OpenSearch, archive: Archive) -> bool:
    """Whether a search, which is a second behind, sees the archive's model being deployed or deployed."""
    found = list_models(client, {"term": {"model_content_hash_value": archive.sha256}})
    return any(model.state in IN_MEMORY_STATES for model in found)


WHEN: dict[str, Callable[[FaultyProxy, OpenSearch, Archive], object]] = {
    "at the same moment": lambda proxy, client, archive: None,
    "while the first one uploads": lambda proxy, client, archive: proxy.wait_for(CHUNK + "0"),
    "while the first one sends the last chunk": lambda proxy, client, archive: proxy.wait_for(CHUNK + "1"),
    "while the first one deploys": lambda proxy, client, archive: wait_until(
        lambda: is_seen_in_memory(client, archive), wait_s=60
    ),
}


@pytest.mark.parametrize(
    "when",
    [
        incidents.fault(
            when,
            during="`deploy`",
            what=f"a second one of the same archive begins {what}",
            then="one model comes of it; whoever comes second waits for it and says so",
        )
        for what, when in WHEN.items()
    ],
)
def test_two_at_once_make_one_model(
    client: OpenSearch,
    cluster_url: str,
    two_chunks: Archive,
    when: Callable[[FaultyProxy, OpenSearch, Archive], object],
    incident: Incident,
) -> None:
    slow = Fault(CHUNK, "delay", times=2, seconds=1.0)
    with FaultyProxy(cluster_url, slow) as proxy:
        first = Run(two_chunks, proxy.url).start()
        when(proxy, client, two_chunks)
        second = Run(two_chunks, cluster_url).start()
        runs = [first.end(), second.end()]
    (model_id,) = models_of(client, two_chunks)
    assert [run.model_id for run in runs] == [model_id, model_id], [run.error for run in runs]
    assert existing_model(client, model_id).state == "DEPLOYED"
    made = [run.deployed for run in runs if run.deployed is not None]
    assert any(not one.reused and not one.shared for one in made), "one of them made it"
    assert any(one.reused or one.shared for one in made), "and the other knows that"
    for run, one in zip(runs, made, strict=True):
        assert one.shared == any("another run" in note.lower() for note in run.notes)
    shared = any(one.shared for one in made)
    incident.said([*runs[0].notes, *runs[1].notes], "(?i)another run" if shared else "")
    incident.orphans(set(models_of(client, two_chunks)) - {model_id})


def test_two_at_once_and_one_by_another_name(
    client: OpenSearch, cluster_url: str, two_chunks: Archive
) -> None:
    runs = [Run(two_chunks, cluster_url).start() for _ in range(2)]
    named = Run(two_chunks, cluster_url, {"name": "oskit-test-living-too"}).start()
    ids = {run.end().model_id for run in runs}
    assert len(ids) == 1
    assert set(models_of(client, two_chunks)) == ids | {named.end().model_id}
    assert {existing_model(client, model_id).state for model_id in models_of(client, two_chunks)} == {
        "DEPLOYED"
    }


@pytest.mark.incident(
    during="`deploy`",
    what="a second one of the same archive relies on the model, and the first one fails in its comparison",
    then="the model stays; the first one says that it is deployed but not proven",
)
def test_a_run_that_fails_does_not_take_back_what_another_found_good(
    client: OpenSearch, cluster_url: str, two_chunks: Archive, incident: Incident
) -> None:
    with FaultyProxy(cluster_url) as proxy:
        proxy.faults.append(Fault("POST .*/_predict/", "delay", seconds=1.0))  # whether it is ready
        proxy.faults.append(Fault("POST .*/_predict/", "status", times=999))
        first = Run(two_chunks, proxy.url).start()
        proxy.wait_for(DEPLOY)
        second = Run(two_chunks, cluster_url).start().end()
        first.end()
    assert isinstance(first.error, ClusterError)
    incident.said(first.error, f"{second.model_id} is deployed, but not proven")
    assert existing_model(client, second.model_id).state == "DEPLOYED"
    incident.orphans(set(models_of(client, two_chunks)) - {second.model_id})


@pytest.mark.incident(
    during="`deploy`",
    what="the run that is waited for fails and takes its model back",
    then="the run that waited begins again with a model of its own",
)
def test_a_run_that_is_waited_for_and_fails(
    client: OpenSearch, cluster_url: str, two_chunks: Archive, incident: Incident
) -> None:
    faults = (Fault(CHUNK + "0", "delay", seconds=1.0), Fault(CHUNK + "1", "status", times=999, status=400))
    with FaultyProxy(cluster_url, *faults) as proxy:
        first = Run(two_chunks, proxy.url).start()
        proxy.wait_for(CHUNK + "0")
        second = Run(two_chunks, cluster_url).start()
        assert isinstance(first.end().error, ClusterError)
        second.end()
    incident.said(first.error, "chunk 2 of 2")
    assert models_of(client, two_chunks) == [second.model_id]
    assert existing_model(client, second.model_id).state == "DEPLOYED"
    incident.orphans(set(models_of(client, two_chunks)) - {second.model_id})


class Killed(BaseException):
    """As if the process were gone."""


WRITES = ("_register_meta", "upload_chunk/0", "upload_chunk/1", "_deploy")


@pytest.mark.parametrize(
    "path",
    [
        incidents.fault(
            path,
            during="`deploy`",
            what=f"it is killed after the request `{path}`",
            then="the same command again makes one deployed model of it",
        )
        for path in WRITES
    ],
)
def test_a_kill_between_any_two_calls_blocks_nobody(
    client: OpenSearch,
    cluster_url: str,
    two_chunks: Archive,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    incident: Incident,
) -> None:
    doomed = quick(cluster_url)
    perform = doomed.transport.perform_request

    def perform_or_die(method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if url.endswith(path):
            perform(method, url, *args, **kwargs)
            raise Killed
        return perform(method, url, *args, **kwargs)

    monkeypatch.setattr(doomed.transport, "perform_request", perform_or_die)
    with pytest.raises(Killed):
        deploy_archive(doomed, two_chunks)
    incident.begins()
    deployed = deploy_archive(quick(cluster_url), two_chunks)
    incident.is_over()
    incident.said(deployed.state, "DEPLOYED")
    incident.orphans(set(models_of(client, two_chunks)) - {deployed.model_id})


@pytest.fixture
def settings(client: OpenSearch) -> Iterator[Callable[..., dict[str, dict[str, Any]]]]:
    """Changes settings of ML Commons and answers with those that are set; puts all back."""

    def now() -> dict[str, dict[str, Any]]:
        return dict(client.cluster.get_settings(params={"flat_settings": "true"}))

    before = now()

    def change(**changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
        if changed:
            client.cluster.put_settings(body=changed)
        return now()

    yield change
    after = now()
    body = {
        kind: {name: before[kind].get(name) for name in {**after[kind], **before[kind]}}
        for kind in ("persistent", "transient")
    }
    client.cluster.put_settings(body={kind: values for kind, values in body.items() if values})


UPLOADS = "plugins.ml_commons.allow_registering_model_via_local_file"
COUNT = "plugins.ml_commons.max_model_on_node"


def test_a_transient_setting_is_named_and_changed_where_it_is_set(
    client: OpenSearch, two_chunks: Archive, settings: Callable[..., dict[str, dict[str, Any]]]
) -> None:
    settings(transient={UPLOADS: False})
    with pytest.raises(ClusterSettingsError, match="set transiently") as raised:
        deploy_archive(client, two_chunks)
    call = f'PUT _cluster/settings {{"transient": {{"{UPLOADS}": true}}}}'
    assert call in str(raised.value)
    notes: list[str] = []
    deploy_archive(client, two_chunks, configure_cluster=True, notify=notes.append)
    assert settings()["transient"][UPLOADS] == "true"
    assert any(f"transient setting {UPLOADS}" in note for note in notes)


@pytest.mark.incident(
    during="`deploy --configure-cluster`",
    what="the deployment fails",
    then="the settings that it changed are what they were, transient and persistent; it says so",
)
def test_settings_are_put_back_when_the_deployment_fails(
    client: OpenSearch,
    cluster_url: str,
    two_chunks: Archive,
    settings: Callable[..., dict[str, dict[str, Any]]],
    incident: Incident,
) -> None:
    before = settings(transient={UPLOADS: False}, persistent={COUNT: 0})
    notes: list[str] = []
    with FaultyProxy(cluster_url, Fault(CHUNK, "status", times=999, status=400)) as proxy:
        with pytest.raises(ClusterError):
            deploy_archive(quick(proxy.url), two_chunks, configure_cluster=True, notify=notes.append)
        assert proxy.count("PUT .*_cluster/settings") == 2
    assert settings() == before
    incident.said(notes, "Put back.*Put back")
    incident.orphans(models_of(client, two_chunks))


def test_a_dry_run_prints_the_calls_that_are_made(
    client: OpenSearch,
    cluster_url: str,
    two_chunks: Archive,
    settings: Callable[..., dict[str, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings(transient={UPLOADS: False})
    with FaultyProxy(cluster_url) as proxy:
        command = ["deploy", str(two_chunks.path), "--group", "oskit-test-living-group", "--url", proxy.url]
        assert main([*command, "--dry-run", "--json"]) == 0
        (refused,) = json.loads(capsys.readouterr().out)
        assert (refused["calls"], "takes no uploads" in refused["refused"]) == ([], True)
        assert main([*command, "--configure-cluster", "--dry-run"]) == 0
        assert "_register_meta {" in capsys.readouterr().out
        assert main([*command, "--configure-cluster", "--dry-run", "--json"]) == 0
        (planned,) = json.loads(capsys.readouterr().out)
        assert not [line for line in proxy.requests if not line.startswith("GET") and "_search" not in line]
        proxy.requests.clear()
        assert main([*command, "--configure-cluster"]) == 0
    changes = r"PUT|DELETE|POST (?!.*(_search|_predict/[^/]+/[^/]+)$)"
    made = [line.replace(" /", " ") for line in proxy.requests if re.match(changes, line)]
    (model_id,) = models_of(client, two_chunks)
    said = [
        f"{call['method']} {call['path']}".replace("…/_deploy", f"{model_id}/_deploy")
        for call in planned["calls"]
    ]
    (chunks,) = [line for line in said if "upload_chunk" in line]
    uploads = [chunks.replace("…", model_id, 1).replace("…", str(number)) for number in (0, 1)]
    at = said.index(chunks)
    assert made == [*said[:at], *uploads, *said[at + 1 :]]
    delete_model(client, model_id)
    (group_id,) = groups_called(client, "oskit-test-living-group")
    assert delete_empty_group(client, group_id)
