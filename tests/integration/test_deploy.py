"""Deploying to a real OpenSearch: one model for one content, retries, resume, causes, and no orphans."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import archives
import incidents
import numpy as np
import onnx
import pytest
import tiny
from faulty_proxy import Fault, FaultyProxy
from incidents import Incident
from leftovers import models_of, nothing_is_left
from opensearchpy import OpenSearch

from exporters import export_encoder
from oskit.archive.archive import Archive, open_archive
from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.retry import RetryPolicy
from oskit.cluster.models import deploy
from oskit.cluster.models import prediction_parity as comparison
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.deployment_plan import plan_deployment
from oskit.cluster.models.predict import await_ready, predict
from oskit.cluster.models.registry import (
    delete_empty_group,
    existing_model,
    find_model,
    get_model,
    list_models,
    request,
    search_groups,
)
from oskit.cluster.models.retire import delete_model, undeploy_model
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import ClusterError, ClusterSettingsError, ModelError, PredictionMismatchError

pytestmark = pytest.mark.integration

PREFIX = "oskit-test-deploy"
CHUNK = r"POST .*/upload_chunk/"
SETTINGS = "plugins.ml_commons."


@pytest.fixture(scope="module", autouse=True)
def _nothing_left(client: OpenSearch) -> Iterator[None]:
    yield
    for model in list_models(client):
        if model.name.startswith(PREFIX):
            delete_model(client, model.model_id, own=True)
    for group_id, name in search_groups(client, {"match_all": {}}).items():
        if name.startswith(PREFIX):
            delete_empty_group(client, group_id)


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "DEPLOY_PAUSE_S", 0.2)


def quick(url: str) -> OpenSearch:
    """A client with little patience."""
    return connect(
        ConnectionSettings(url=url), policy=RetryPolicy(attempts=4, first_wait_s=0.01, max_wait_s=0.05)
    )


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Archive]:
    """Makes archives with names that are this module's."""
    folder = tmp_path_factory.mktemp("archives")

    def make_archive(name: str, **options: Any) -> Archive:
        return open_archive(archives.encoder_archive(folder / f"{PREFIX}-{name}.zip", **options))

    return make_archive


@pytest.fixture(scope="module")
def big(make: Callable[..., Archive]) -> Archive:
    """An archive of two chunks."""
    archive = make("big", size=1800)
    assert archive.total_chunks == 2
    return archive


@pytest.fixture(scope="module")
def encoder(make: Callable[..., Archive]) -> Archive:
    return make("encoder", seed=1)


def expected_weights(text: str, *, seed: int, size: int = 200) -> dict[str, float]:
    """The encoder of :mod:`archives`, written down a second time."""
    tokenizer = archives.tokenizer(size)
    model = onnx.load_from_string(archives.graph(size, seed=seed))
    matrix = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "E")
    weights = np.log1p(np.maximum(matrix[tokenizer.encode(text).ids], 0).max(axis=0))
    return {tokenizer.decode([i]): float(w) for i, w in enumerate(weights) if w > 0}


def test_a_deployed_model_predicts_what_the_archive_does(client: OpenSearch, encoder: Archive) -> None:
    stages: list[str] = []
    deployed = deploy_archive(client, encoder, progress=lambda what, _done, _total: stages.append(what))

    assert deployed.state == "DEPLOYED"
    assert not deployed.reused
    assert deployed.compared_texts > 3
    assert deployed.max_difference is not None
    assert deployed.max_difference < 1e-5
    assert "Uploading" in stages
    assert any(stage.startswith("Deploying") for stage in stages)
    (weights,) = predict(
        client, existing_model(client, deployed.model_id), ["a building permit over 7 words"]
    )
    assert weights == pytest.approx(expected_weights("a building permit over 7 words", seed=1), abs=1e-5)
    assert list(weights.values()) == sorted(weights.values(), reverse=True)


def test_predictions_by_token_id(client: OpenSearch, encoder: Archive) -> None:
    model_id = deploy_archive(client, encoder).model_id
    tokenizer = archives.tokenizer()
    (by_token,) = predict(client, existing_model(client, model_id), ["sparse retrieval"])
    (by_id,) = predict(client, existing_model(client, model_id), ["sparse retrieval"], key="id")
    assert {tokenizer.decode([int(key)]): weight for key, weight in by_id.items()} == by_token


def test_the_same_content_is_one_model_whatever_its_state(client: OpenSearch, encoder: Archive) -> None:
    first = deploy_archive(client, encoder)
    again = deploy_archive(client, encoder)
    assert (again.model_id, again.reused) == (first.model_id, True)

    assert undeploy_model(client, first.model_id, own=True).state == "UNDEPLOYED"
    after = deploy_archive(client, encoder)
    assert (after.model_id, after.reused, after.state) == (first.model_id, False, "DEPLOYED")
    assert models_of(client, encoder) == [first.model_id]


def test_a_model_that_is_only_called_deployed(
    client: OpenSearch, encoder: Archive, set_setting: Callable[[str, Any], None]
) -> None:
    """As after the restart of a node: the index says DEPLOYED, no node has it in memory."""
    set_setting("sync_up_job_interval_in_seconds", 0)  # or the cluster may find out by itself just then
    model_id = deploy_archive(client, encoder).model_id
    undeploy_model(client, model_id, own=True)
    client.update(
        index=".plugins-ml-model",
        id=model_id,
        body={"doc": {"model_state": "DEPLOYED"}},
        params={"refresh": "true"},
    )
    with pytest.raises(ModelError, match="not ready"):
        predict(client, existing_model(client, model_id), ["a permit"])
    model, notes = find_model(client, model_id), list[str]()
    with pytest.raises(ModelError, match=r"did not answer for 0\.5 s: .*not in memory") as raised:
        await_ready(client, model, notify=notes.append, wait_s=0.5)
    assert "oskit deploy" in str(raised.value)
    assert len(notes) == 1 and "waiting for it" in notes[0]
    deployed = deploy_archive(client, encoder)
    assert (deployed.model_id, deployed.state) == (model_id, "DEPLOYED")
    assert predict(client, existing_model(client, model_id), ["a permit"])
    await_ready(client, model, notify=notes.append, wait_s=0)
    assert len(notes) == 1


def test_the_formats_of_an_encoder_are_side_by_side(client: OpenSearch, tmp_path: Path) -> None:
    folder = tiny.build("bert", tmp_path / "encoder")
    exported = export_encoder(
        NeuralSparseEncoder.from_pretrained(folder, device="cpu"), tmp_path / "out", name=f"{PREFIX}-formats"
    )
    ids = [deploy_archive(client, archive).model_id for archive in exported]
    assert len(set(ids)) == 2
    again = [deploy_archive(client, archive, replace=True) for archive in reversed(exported)]
    assert [model.model_id for model in again] == ids[::-1]
    assert all(model.reused and not model.replaced for model in again)
    with pytest.raises(ModelError, match=r"TORCH_SCRIPT.*ONNX|ONNX.*TORCH_SCRIPT"):
        find_model(client, f"{PREFIX}-formats")
    named = [find_model(client, f"{PREFIX}-formats:{format_}") for format_ in ("torchscript", "onnx")]
    assert [model.model_id for model in named] == ids
    for model_id in ids:
        delete_model(client, model_id, own=True)


def test_another_name_makes_another_model(client: OpenSearch, encoder: Archive) -> None:
    first = deploy_archive(client, encoder)
    other = deploy_archive(client, encoder, name=f"{PREFIX}-alias")
    assert other.model_id != first.model_id
    assert deploy_archive(client, encoder, name=f"{PREFIX}-alias").model_id == other.model_id
    assert deploy_archive(client, encoder).model_id == first.model_id
    delete_model(client, other.model_id, own=True)


def test_a_tokenizer_archive(client: OpenSearch, tmp_path: Path) -> None:
    archive = open_archive(archives.tokenizer_archive(tmp_path / f"{PREFIX}-tokenizer.zip"))
    deployed = deploy_archive(client, archive)
    assert deployed.function_name == "SPARSE_TOKENIZE"
    assert deployed.max_difference == pytest.approx(0, abs=1e-6)
    tokenizer = archives.tokenizer()
    (weights,) = predict(client, existing_model(client, deployed.model_id), ["the permit the"])
    ids = {token: tokenizer.token_to_id(token) for token in ("the", "permit")}
    assert weights == {token: 1 + (token_id % 7) / 2 for token, token_id in ids.items()}
    delete_model(client, deployed.model_id, own=True)


def test_a_name_is_not_taken_over_unless_asked(client: OpenSearch, make: Callable[..., Archive]) -> None:
    old, new = make("named", seed=2), make("named-new", seed=3)
    name = f"{PREFIX}-named"
    first = deploy_archive(client, old)
    with pytest.raises(ModelError, match="other content") as raised:
        deploy_archive(client, new, name=name)
    assert "--replace" in str(raised.value)
    assert not models_of(client, new)

    second = deploy_archive(client, new, name=name, replace=True)
    assert second.replaced == (first.model_id,)
    assert get_model(client, first.model_id) is None
    assert find_model(client, name).model_id == second.model_id
    delete_model(client, second.model_id, own=True)


def test_a_model_that_a_pipeline_uses_stays(
    client: OpenSearch,
    make: Callable[..., Archive],
    cluster_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"{PREFIX}-used"
    old = deploy_archive(client, make("used", seed=4))
    processor = {"sparse_encoding": {"model_id": old.model_id, "field_map": {"text": "embedding"}}}
    client.ingest.put_pipeline(id=f"{PREFIX}-pipeline", body={"processors": [processor]})
    notes: list[str] = []
    try:
        with pytest.raises(ModelError, match=f"ingest pipeline '{PREFIX}-pipeline'"):
            delete_model(client, old.model_id)
        archive = make("used-new", seed=5)
        command = ["deploy", str(archive.path), "--name", name, "--replace", "--dry-run", "--json"]
        assert main([*command, "--url", cluster_url]) == 0
        (planned,) = json.loads(capsys.readouterr().out)
        assert f"{PREFIX}-pipeline" in planned["stays"][old.model_id]
        assert not [call for call in planned["calls"] if old.model_id in call["path"]]
        new = deploy_archive(client, archive, name=name, replace=True, notify=notes.append)
        assert new.kept == (old.model_id,)
        assert new.replaced == ()
        assert get_model(client, old.model_id).is_deployed  # type: ignore[union-attr]
        assert any(f"{PREFIX}-pipeline" in note for note in notes)
    finally:
        client.ingest.delete_pipeline(id=f"{PREFIX}-pipeline")
    with pytest.raises(ModelError, match="2 models are named") as raised:
        find_model(client, name)
    assert old.model_id in str(raised.value)
    assert new.model_id in str(raised.value)
    delete_model(client, old.model_id, own=True)
    delete_model(client, new.model_id, own=True)


def test_a_group_is_made_once_and_goes_with_a_failure(
    client: OpenSearch, make: Callable[..., Archive]
) -> None:
    archive, group = make("grouped", seed=6), f"{PREFIX}-group"
    broken = make("grouped-broken", model=archives.graph(ir_version=11))
    with pytest.raises(ModelError):
        deploy_archive(client, broken, group=group, compare=False)
    assert group not in search_groups(client, {"match_all": {}}).values()

    deployed = deploy_archive(client, archive, group=group)
    (group_id,) = [key for key, name in search_groups(client, {"match_all": {}}).items() if name == group]
    assert get_model(client, deployed.model_id).group_id == group_id  # type: ignore[union-attr]
    assert deploy_archive(client, archive, group=group_id).model_id == deployed.model_id
    delete_model(client, deployed.model_id, own=True)
    assert delete_empty_group(client, group_id)


def test_a_group_of_others_stays_though_it_has_the_models_name(
    client: OpenSearch, make: Callable[..., Archive]
) -> None:
    archive, broken = make("theirs", seed=6), make("broken", model=archives.graph(ir_version=11))
    said = {"name": archive.name, "description": "Who may use it is seen to by another team."}
    group_id = request(client, "POST", "/model_groups/_register", said)["model_group_id"]
    with pytest.raises(ModelError):
        deploy_archive(client, broken, name=archive.name, compare=False)
    deployed = deploy_archive(client, archive)
    assert get_model(client, deployed.model_id).group_id == group_id  # type: ignore[union-attr]
    delete_model(client, deployed.model_id)
    assert search_groups(client, {"ids": {"values": [group_id]}}) == {group_id: archive.name}
    assert delete_empty_group(client, group_id)


def test_an_interrupted_upload_goes_on(client: OpenSearch, cluster_url: str, big: Archive) -> None:
    def interrupt(what: str, done: int, _total: int) -> None:
        if what == "Uploading" and done > 0:
            raise KeyboardInterrupt

    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        deploy_archive(client, big, progress=interrupt, notify=notes.append)
    (half,) = models_of(client, big)
    assert any(half in note for note in notes)
    assert plan_deployment(client, big).action == "resume"

    with FaultyProxy(cluster_url) as proxy:
        deployed = deploy_archive(quick(proxy.url), big)
        assert deployed.model_id == half
        assert [line for line in proxy.requests if re.search(CHUNK, line)] == [
            f"POST /_plugins/_ml/models/{half}/upload_chunk/1"
        ]
    delete_model(client, half, own=True)
    assert nothing_is_left(client, big)


PASSING = (
    ("the upload", Fault(CHUNK, "status", times=2, status=503), "503 for a chunk", "it is sent again"),
    ("the upload", Fault(CHUNK, "status", times=3, status=429), "429 for a chunk", "it is sent again"),
    (
        "the upload",
        Fault(CHUNK, "reset", times=2),
        "the connection is cut in the middle of a chunk",
        "it is sent again",
    ),
    (
        "the upload",
        Fault(CHUNK, "lose-answer", times=1),
        "the answer to the last chunk is lost",
        "it looks whether the model is whole, and sends nothing again",
    ),
    (
        "the upload",
        Fault("POST .*/_register_meta", "lose-answer", times=1),
        "the answer to the registration is lost",
        "it looks whether the model is there",
    ),
    (
        "the deployment",
        Fault("GET .*/tasks/", "status", times=2, status=502),
        "502 for the state of the task",
        "it asks again",
    ),
    (
        "the deployment",
        Fault("POST .*/_deploy", "lose-answer", times=1),
        "the answer to the deployment is lost",
        "it looks whether the model is being deployed",
    ),
)


@pytest.mark.parametrize(
    "fault",
    [
        incidents.fault(fault, during=f"`deploy`, {during}", what=what, then=then)
        for during, fault, what, then in PASSING
    ],
)
def test_a_passing_failure_is_retried(
    client: OpenSearch,
    cluster_url: str,
    make: Callable[..., Archive],
    fault: Fault,
    incident: Incident,
) -> None:
    archive = make("retried", seed=7)
    with FaultyProxy(cluster_url, fault) as proxy:
        incident.begins()
        deployed = deploy_archive(quick(proxy.url), archive)
        incident.is_over()
        assert fault.times == 0
        assert (proxy.count(fault.pattern) == 1) == (fault.kind == "lose-answer"), "it is looked for"
    at_once = fault.kind == "lose-answer" and fault.pattern != CHUNK  # found, not waited for
    incident.said("", *[] if at_once else ["trying again"])
    incident.orphans(set(models_of(client, archive)) - {deployed.model_id})
    delete_model(client, deployed.model_id, own=True)
    assert nothing_is_left(client, archive)


@pytest.mark.parametrize(
    "kind",
    [
        incidents.fault(
            kind,
            during="`deploy`, the upload",
            what=what,
            then="it gives up after --retry-for, names the chunk and takes back what it made",
        )
        for kind, what in (("status", "503 for every chunk"), ("reset", "the connection is cut every time"))
    ],
)
def test_giving_up_leaves_nothing(
    client: OpenSearch,
    cluster_url: str,
    big: Archive,
    kind: Any,
    incident: Incident,
) -> None:
    with FaultyProxy(cluster_url, Fault(CHUNK + "1", kind, times=99)) as proxy:
        with pytest.raises(ClusterError) as told:
            deploy_archive(quick(proxy.url), big)
        assert proxy.count(CHUNK + "1") == 4
    incident.said(told.value, "chunk 2 of 2", "(trying again.*){3}")
    incident.orphans(models_of(client, big))
    assert nothing_is_left(client, big)


@pytest.mark.incident(
    during="`deploy`, the deployment",
    what="the cluster deploys the model already, for somebody else or by itself after a restart",
    then="it waits for that deployment",
)
def test_a_deployment_beside_another_of_the_model_waits_for_it(
    client: OpenSearch, cluster_url: str, big: Archive, incident: Incident
) -> None:
    notes: list[str] = []
    with FaultyProxy(cluster_url, Fault("POST .*/_deploy", "twice")) as proxy:
        incident.begins()
        deployed = deploy_archive(quick(proxy.url), big, notify=notes.append)
        incident.is_over()
    incident.said(notes, "already deploying")
    assert deployed.state == "DEPLOYED"
    incident.orphans(set(models_of(client, big)) - {deployed.model_id})
    delete_model(client, deployed.model_id, own=True)
    assert nothing_is_left(client, big)


@pytest.mark.incident(
    during="`deploy`, the upload",
    what="the cluster goes away, so that nothing can be taken back",
    then="it names the model that is left; the same command again goes on with it",
)
def test_a_cluster_that_goes_away_leaves_an_upload_that_can_go_on(
    client: OpenSearch, cluster_url: str, make: Callable[..., Archive], incident: Incident
) -> None:
    archive = make("gone", seed=8)
    faults = (Fault(CHUNK, "reset", times=99), Fault("(DELETE|_undeploy)", "status", times=99))
    with FaultyProxy(cluster_url, *faults) as proxy, pytest.raises(ClusterError) as raised:
        deploy_archive(quick(proxy.url), archive)
    (left,) = models_of(client, archive)
    incident.said(raised.value, left)
    assert deploy_archive(client, archive).model_id == left
    incident.orphans(set(models_of(client, archive)) - {left})
    delete_model(client, left, own=True)


def broken(name: str) -> tuple[dict[str, bytes | str], str]:
    """The files of an archive that the cluster cannot deploy, and what it should say."""
    tokenizer = archives.tokenizer().to_str()
    return {
        "input-names": (
            {"model.onnx": archives.graph(inputs=""), "tokenizer.json": tokenizer},
            r"inputs are not named as ML Commons.*Invalid input tensor name: input1\.input_ids",
        ),
        "ir-version": (
            {"model.onnx": archives.graph(ir_version=11), "tokenizer.json": tokenizer},
            "newer than the cluster's ONNX Runtime",
        ),
        "damaged-onnx": (
            {"model.onnx": archives.graph()[:5000], "tokenizer.json": tokenizer},
            r"the \.onnx file is damaged",
        ),
        "damaged-pt": (
            {"model.pt": b"not a model" * 100, "tokenizer.json": tokenizer},
            r"the \.pt file is damaged",
        ),
        "bad-tokenizer": (
            {"model.onnx": archives.graph(), "tokenizer.json": '{"model": {}}'},
            r"tokenizer\.json or idf\.json is missing or cannot be read",
        ),
    }[name]


BROKEN = {
    "input-names": "the graph's inputs have other names",
    "ir-version": "the graph is newer than the cluster's ONNX Runtime",
    "damaged-onnx": "the archive's .onnx file is damaged",
    "damaged-pt": "the archive's .pt file is damaged",
    "bad-tokenizer": "the archive's tokenizer.json cannot be read",
}


@pytest.mark.parametrize(
    "name",
    [
        incidents.fault(
            name,
            during="`deploy`, the deployment",
            what=what,
            then="it tells the cause in words and what to do, and takes back what it made",
        )
        for name, what in BROKEN.items()
    ],
)
def test_a_failed_deployment_tells_the_cause_and_leaves_nothing(
    client: OpenSearch, tmp_path: Path, name: str, incident: Incident
) -> None:
    files, message = broken(name)
    archive = open_archive(archives.write_zip(tmp_path / f"{PREFIX}-{name}.zip", files))
    with pytest.raises(ModelError) as raised:
        deploy_archive(client, archive, compare=False)
    incident.said(raised.value, message)
    assert raised.value.hint
    incident.orphans(models_of(client, archive))
    assert nothing_is_left(client, archive)


@pytest.mark.incident(
    during="`deploy`, the deployment",
    what="what arrived is not what was announced",
    then="the cluster refuses it; it says so and takes back what it made",
)
def test_content_that_is_not_what_was_announced(
    client: OpenSearch, make: Callable[..., Archive], incident: Incident
) -> None:
    archive = replace(make("changed", seed=9), sha256="0" * 64)
    with pytest.raises(ModelError) as raised:
        deploy_archive(client, archive, compare=False)
    incident.said(raised.value, r"not what was announced.*model content changed")
    incident.orphans(models_of(client, archive))
    assert nothing_is_left(client, archive)


@pytest.mark.incident(
    during="`deploy`, the deployment",
    what="the model predicts something else than its archive",
    then="it tells a token and both weights, and takes back what it made",
)
def test_a_model_that_predicts_something_else_is_taken_back(
    client: OpenSearch,
    make: Callable[..., Archive],
    monkeypatch: pytest.MonkeyPatch,
    incident: Incident,
) -> None:
    archive, other = make("mismatch", seed=10), make("mismatch-other", seed=11)
    expected = comparison.expectation(other)
    monkeypatch.setattr(deploy, "expectation", lambda _archive: expected)
    with pytest.raises(PredictionMismatchError) as raised:
        deploy_archive(client, archive)
    incident.said(raised.value, r"token '.+' weighs \d")
    assert raised.value.exit_code == 9
    incident.orphans(models_of(client, archive))
    assert nothing_is_left(client, archive)


@pytest.fixture
def set_setting(client: OpenSearch) -> Iterator[Callable[[str, Any], None]]:
    """Changes a setting of ML Commons and puts it back."""
    changed: dict[str, Any] = {}
    before = client.cluster.get_settings(params={"flat_settings": "true"})["persistent"]

    def change(name: str, value: Any) -> None:
        changed[SETTINGS + name] = before.get(SETTINGS + name)
        client.cluster.put_settings(body={"persistent": {SETTINGS + name: value}})

    yield change
    client.cluster.put_settings(body={"persistent": changed})


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("allow_registering_model_via_local_file", False, "true"),
        ("only_run_on_ml_node", True, "false"),
        ("max_model_on_node", 0, None),
    ],
)
def test_a_setting_in_the_way_is_named_and_changed_only_when_asked(
    client: OpenSearch,
    make: Callable[..., Archive],
    set_setting: Callable[[str, Any], None],
    name: str,
    value: Any,
    wanted: str | None,
) -> None:
    archive = make("settings", seed=12)
    set_setting(name, value)
    with pytest.raises(ClusterSettingsError, match=name) as raised:
        deploy_archive(client, archive)
    call = re.search(r"PUT _cluster/settings (\{.*\}\})", str(raised.value))
    assert call is not None
    assert SETTINGS + name in json.loads(call[1])["persistent"]
    assert not models_of(client, archive)

    deployed = deploy_archive(client, archive, configure_cluster=True)
    now = client.cluster.get_settings(params={"flat_settings": "true"})["persistent"][SETTINGS + name]
    assert now == wanted or (wanted is None and int(now) > 0)
    delete_model(client, deployed.model_id, own=True)


@pytest.mark.incident(
    during="`deploy`, the deployment",
    what="an open memory breaker",
    then="it tries again for a while, then names the breaker and the setting and takes back what it made",
)
def test_an_open_memory_breaker_is_named(
    client: OpenSearch,
    make: Callable[..., Archive],
    set_setting: Callable[[str, Any], None],
    incident: Incident,
) -> None:
    archive = make("breaker", seed=13)
    set_setting("jvm_heap_memory_threshold", 1)
    assert [problem.certain for problem in plan_deployment(client, archive).problems] == [False]
    notes: list[str] = []
    with pytest.raises(ClusterSettingsError, match=r"heap is too full.*Memory Circuit Breaker") as raised:
        deploy_archive(client, archive, notify=notes.append)
    incident.said([*notes, raised.value], "trying again", "jvm_heap_memory_threshold")
    incident.orphans(models_of(client, archive))
    assert nothing_is_left(client, archive)


def test_missing_models_name_their_neighbours(client: OpenSearch, encoder: Archive) -> None:
    deploy_archive(client, encoder)
    with pytest.raises(ModelError, match="Did you mean") as raised:
        find_model(client, f"{PREFIX}-encodre")
    assert f"{PREFIX}-encoder" in str(raised.value)
    for action in (undeploy_model, delete_model):
        with pytest.raises(ModelError, match="no model with the id"):
            action(client, "no-such-model")


def test_the_commands(
    cluster_url: str, client: OpenSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archives.write_manifest(archives.encoder_archive(tmp_path / "onnx" / f"{PREFIX}-pair.zip", seed=14))
    archives.tokenizer_archive(tmp_path / "tokenizer" / f"{PREFIX}-pair-tokenizer.zip")
    url = ["--url", cluster_url]

    def oskit(*words: str) -> Any:
        assert main([*words, *url, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    plans = oskit("deploy", str(tmp_path), "--dry-run")
    assert [plan["action"] for plan in plans] == ["upload", "upload"]
    assert not [model for model in list_models(client) if model.name.startswith(f"{PREFIX}-pair")]

    deployed = oskit("deploy", str(tmp_path))
    assert [model["function_name"] for model in deployed] == ["SPARSE_ENCODING", "SPARSE_TOKENIZE"]
    assert [model["max_length"] for model in deployed] == [128, None]  # one has a manifest
    assert main(["deploy", str(tmp_path / "onnx"), *url]) == 0
    assert "up to 128" in capsys.readouterr().out
    listed = {model["model_id"]: model for model in oskit("models")}
    assert all(listed[model["model_id"]]["state"] == "DEPLOYED" for model in deployed)
    assert all(model["name"] for model in listed.values())  # chunks of an archive are no models

    assert main(["models", *url]) == 0
    table = capsys.readouterr().out
    assert all(model["model_id"] in table for model in deployed)

    (undeployed,) = oskit("undeploy", f"{PREFIX}-pair")
    assert undeployed["state"] == "UNDEPLOYED"
    assert main(["delete", f"{PREFIX}-pair", *url]) == 2  # not asked, not deleted
    assert "--yes" in capsys.readouterr().err
    oskit("delete", f"{PREFIX}-pair", deployed[1]["model_id"], "--yes")
    assert not {model["model_id"] for model in oskit("models")} & {model["model_id"] for model in deployed}
