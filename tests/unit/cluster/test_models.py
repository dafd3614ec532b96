"""The parts of deploying that need no cluster; the rest is in tests/integration/test_deploy.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import archives
import click
import pytest
from opensearchpy import OpenSearch

from oskit.archive.agreement import agree, largest_difference
from oskit.archive.archive import open_archive
from oskit.cli.commands.models import delete
from oskit.cluster.ingest.encoders import find_encoder_model
from oskit.cluster.models import rivals
from oskit.cluster.models.deploy import deploy_archive, node_errors
from oskit.cluster.models.deployment_plan import archives_in
from oskit.cluster.models.prediction_parity import TEXTS, expectation
from oskit.cluster.models.preflight import SettingProblem, parse_bytes, raise_for_problems
from oskit.cluster.models.registry import ModelInfo, find_model
from oskit.errors import ArchiveError, ClusterSettingsError, IndexingError, ModelError, UntrainedEncoderError


def test_the_words_of_several_nodes() -> None:
    assert node_errors(json.dumps({"a": "same", "b": "same", "c": "other\n"})) == "same; other"
    assert node_errors("not JSON") == "not JSON"
    assert node_errors("{}") == "no reason given"


def test_the_largest_difference() -> None:
    assert largest_difference({"a": 1.0, "b": 2.0}, {"a": 1.25, "b": 2.0}) == ("a", 0.25)
    assert largest_difference({"a": 1.0}, {"b": 0.5}) == ("a", 1.0)
    assert largest_difference({}, {}) == ("", 0.0)


def test_pruning_may_decide_otherwise_at_its_threshold_only() -> None:
    ours, theirs = {"a": 3.0, "b": 0.3}, {"a": 3.0}
    assert largest_difference(ours, theirs, pruned=True) == ("", 0.0)
    assert largest_difference(theirs, ours, pruned=True) == ("", 0.0)
    assert largest_difference(ours, theirs) == ("b", 0.3)
    assert largest_difference({"a": 3.0, "b": 2.0, "c": 0.3}, {"a": 3.0, "c": 0.3}, pruned=True) == ("b", 2.0)


def test_quantised_vectors_agree_by_length_and_direction() -> None:
    ours = {str(i): 1.0 + i % 3 for i in range(200)}

    def both(other: dict[str, float], *, pruned: bool = False) -> tuple[bool, bool]:
        exact, nearly = (agree(ours, other, quantized=q, pruned=pruned) for q in (False, True))
        return exact, nearly

    assert both(ours) == (True, True)
    # One weight is far off, as a rounding carried on makes it.
    assert both({**ours, "0": 0.3}) == (False, True)
    # No single weight is, but all are: an activation that is missing, another scale, other tokens.
    assert both({token: weight * 0.8 for token, weight in ours.items()}) == (False, False)
    assert both({token: weight + (-1) ** int(token) * 0.4 for token, weight in ours.items()}) == (
        False,
        False,
    )
    assert both({}) == (False, False)
    assert agree({}, {}, quantized=True, pruned=False)
    assert both({token: weight for token, weight in ours.items() if token != "0"}, pruned=True) == (
        True,
        True,
    )


def test_an_archive_says_what_must_be_predicted(tmp_path: Path) -> None:
    expected = expectation(open_archive(archives.encoder_archive(tmp_path / "e.zip")))
    assert expected is not None
    assert expected.texts == TEXTS
    assert all(expected.weights)
    assert expected.key == "token"


def test_a_name_is_enough_where_one_model_has_it_and_the_format_tells_two_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = [
        ModelInfo("1", "quick", "1", "DEPLOYED", "SPARSE_ENCODING", "ONNX"),
        ModelInfo("2", "quick", "2", "DEPLOYED", "SPARSE_ENCODING", "TORCH_SCRIPT"),
        ModelInfo("3", "alone", "1", "DEPLOYED", "SPARSE_ENCODING", "TORCH_SCRIPT"),
        ModelInfo("4", "alone:onnx", "1", "DEPLOYED", "SPARSE_ENCODING", "TORCH_SCRIPT"),
    ]
    monkeypatch.setattr("oskit.cluster.models.registry.list_models", lambda client: there)
    wanted = {"quick:onnx": "1", "quick:torchscript": "2", "alone": "3", "alone:torchscript": "3", "2": "2"}
    wanted["alone:onnx"] = "4"  # a name that ends like this is that model's
    found = {name: find_model(OpenSearch(), name).model_id for name in wanted}
    assert found == wanted
    with pytest.raises(ModelError, match="2 models are named 'quick'") as raised:
        find_model(OpenSearch(), "quick")
    assert raised.value.hint == "Give the id of one, or quick:onnx or quick:torchscript"


@pytest.mark.parametrize("kind", ["TEXT_EMBEDDING", "SPARSE_TOKENIZE", "TEXT_SIMILARITY"])
def test_a_model_that_is_no_sparse_encoder_encodes_no_documents(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    there = [ModelInfo("1", "m", "1", "DEPLOYED", kind), ModelInfo("2", "r", "1", "DEPLOYED", "REMOTE")]
    monkeypatch.setattr("oskit.cluster.models.registry.list_models", lambda client: there)
    with pytest.raises(IndexingError, match=r"'m' is .*--model"):
        find_encoder_model(OpenSearch(), "m")
    assert find_encoder_model(OpenSearch(), "r").model_id == "2"


@pytest.mark.parametrize(("seen", "now", "found"), [
    ("DEPLOYING", "DEPLOYED", "DEPLOYED"),
    ("REGISTERED", "DEPLOYING", "DEPLOYING"),  # which the load waits for
    ("DEPLOYED", "DEPLOYED", "DEPLOYED"),
    ("DEPLOYING", "DEPLOY_FAILED", None),
    ("UNDEPLOYED", "UNDEPLOYED", None),
])  # fmt: skip
def test_a_model_is_taken_as_it_is_and_not_as_searches_still_see_it(
    monkeypatch: pytest.MonkeyPatch, seen: str, now: str, found: str | None
) -> None:
    model = ModelInfo("1", "m", "1", seen, "SPARSE_ENCODING")
    monkeypatch.setattr("oskit.cluster.models.registry.list_models", lambda client: [model])
    monkeypatch.setattr(
        "oskit.cluster.models.registry.get_model", lambda client, model_id: replace(model, state=now)
    )
    if found is not None:
        assert find_encoder_model(OpenSearch(), "m").state == found
        return
    with pytest.raises(IndexingError, match=f"'m' .1. is not deployed: {now}"):
        find_encoder_model(OpenSearch(), "m")


@pytest.mark.parametrize(
    ("text", "size"),
    [("5gb", 5 * 1024**3), ("5368709120b", 5368709120), ("1.5kb", 1536), ("12", None), ("xb", None)],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_bytes(text) == size


def test_the_call_that_changes_all_settings() -> None:
    problems = [
        SettingProblem("plugins.a", "one", True),
        SettingProblem("plugins.b", "two", 7),
        SettingProblem("plugins.c", "may pass", 95, certain=False),
    ]
    with pytest.raises(ClusterSettingsError) as raised:
        raise_for_problems(problems)
    assert 'PUT _cluster/settings {"persistent": {"plugins.a": true, "plugins.b": 7}}' in str(raised.value)
    assert "may pass" not in str(raised.value)
    raise_for_problems(problems[2:])


class TestArchivesIn:
    def test_one_archive(self, tmp_path: Path) -> None:
        path = archives.encoder_archive(tmp_path / "a" / "e.zip")
        assert [found.path for found in archives_in(path)] == [path]
        assert [found.path for found in archives_in(path.parent)] == [path]
        with pytest.raises(ArchiveError, match="is onnx, not torchscript"):
            archives_in(path, "torchscript")

    def test_an_export_means_its_encoder_and_its_tokenizer(self, tmp_path: Path) -> None:
        onnx = archives.encoder_archive(tmp_path / "onnx" / "e.zip")
        files: dict[str, bytes | str] = {"m.pt": b"model", "tokenizer.json": archives.tokenizer().to_str()}
        script = archives.write_zip(tmp_path / "torchscript" / "e.zip", files)
        assert [found.path for found in archives_in(tmp_path)] == [onnx]
        tokenizer = archives.tokenizer_archive(tmp_path / "tokenizer" / "t.zip")
        assert [found.path for found in archives_in(tmp_path)] == [onnx, tokenizer]
        assert [found.path for found in archives_in(tmp_path, "torchscript")] == [script, tokenizer]

    def test_a_format_that_was_not_exported(self, tmp_path: Path) -> None:
        archives.encoder_archive(tmp_path / "onnx" / "e.zip")
        with pytest.raises(ArchiveError, match="no torchscript archive, only onnx"):
            archives_in(tmp_path, "torchscript")


def test_an_untrained_archive_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    path = archives.encoder_archive(tmp_path / "e.zip")
    archives.write_manifest(path, source={"model": "base", "head": "random"})
    with pytest.raises(UntrainedEncoderError, match="random projection"):
        deploy_archive(None, open_archive(path))  # type: ignore[arg-type]


def test_ids_that_begin_with_a_hyphen_are_no_options() -> None:
    ids = ["-SaRD6IBmnDfhX8_wDUh", "wiaHD6IBmnDfhX8_gTXu", "--aRD6IBmnDfhX8_wDUh"]
    help_names: dict[str, Any] = {"help_option_names": ["-h", "--help"]}  # click keeps the first that it sees
    context = delete.make_context("delete", [ids[0], "--yes", ids[1], ids[2]], **help_names)
    assert sorted(context.params["names"]) == sorted(ids)
    assert context.params["yes"] is True
    with pytest.raises(click.UsageError):
        delete.make_context("delete", ["--no-such-option"], **help_names)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({"second": "REGISTERING", "first": "REGISTERING"}, "first"),
        ({"second": "REGISTERED", "first": "REGISTERING"}, "first"),
        ({"second": "DEPLOYED"}, "second"),
        ({"fourth": "REGISTERING"}, None),  # it comes after our own
        ({"fourth": "DEPLOYED"}, "fourth"),
    ],
)
def test_of_several_runs_all_follow_the_first(
    monkeypatch: pytest.MonkeyPatch, states: dict[str, str], expected: str | None
) -> None:
    """The cluster lists the newest model first."""
    order = {"first": 1, "second": 2, "own": 3, "fourth": 4}
    monkeypatch.setattr(rivals, "sequence_numbers", lambda *_: order)
    others = [ModelInfo(key, key, "1", state, "SPARSE_ENCODING") for key, state in states.items()]
    archive: Any = SimpleNamespace(sha256="")
    found = rivals.earlier_model(cast("Any", None), archive, "own", order["own"], others)
    assert (found and found.model_id) == expected
