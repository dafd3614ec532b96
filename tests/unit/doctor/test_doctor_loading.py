"""The doctor's loading scenarios."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oskit.cli import main
from oskit.doctor import check_encoder, check_loading
from tests import tiny


def _statuses(findings: list) -> dict[str, str]:
    return {finding.name: finding.status for finding in findings}


def test_every_scenario_passes_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    statuses = _statuses(check_loading())
    assert statuses.pop("hub") == "warning"
    assert statuses == {"local folder": "ok", "fallback": "ok", "inference": "ok", "save and load": "ok"}


def test_the_users_encoder_is_loaded_run_and_saved(tmp_path: Path) -> None:
    folder = tiny.build("bert", tmp_path / "encoder")
    statuses = _statuses(check_encoder(str(folder)))
    assert statuses == {"load": "ok", "head": "ok", "inference": "ok", "save and load": "ok"}


def test_an_untrained_encoder_is_a_failure(tmp_path: Path) -> None:
    folder = tiny.build("bert-headless", tmp_path / "encoder")
    findings = check_encoder(str(folder))
    assert _statuses(findings)["head"] == "failure"


def test_the_command_exits_with_the_code_of_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OSKIT_URL", raising=False)
    (tmp_path / "config.json").write_text("{")
    assert main(["doctor", "--model", str(tmp_path), "--json"]) == 5
    findings = json.loads(capsys.readouterr().out)
    failed = [finding for finding in findings if finding["status"] == "failure"]
    assert [finding["area"] for finding in failed] == ["encoder"]
    assert failed[0]["advice"]
