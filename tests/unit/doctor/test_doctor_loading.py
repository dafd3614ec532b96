"""The doctor's loading scenarios."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from oskit.cli import main
from oskit.doctor import check_encoder, check_loading
from tests import tiny


def _statuses(findings: list) -> dict[str, str]:
    return {finding.name: finding.status for finding in findings}


def test_every_scenario_passes_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
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


@pytest.fixture
def doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, dict[str, str]]]]:
    """Run the command; its exit code, and what it found of the encoder and the Hub, by name."""
    monkeypatch.delenv("OSKIT_URL", raising=False)

    def run(*args: str) -> tuple[int, dict[str, dict[str, str]]]:
        code = main(["doctor", *args, "--offline", "--json"])
        findings = json.loads(capsys.readouterr().out or "[]")
        return code, {f["name"]: f for f in findings if f["area"] == "encoder" or f["name"] == "hub"}

    return run


def test_the_command_exits_with_the_code_of_what_failed(
    doctor: Callable[..., tuple[int, dict[str, dict[str, str]]]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{")
    code, found = doctor(str(tmp_path))
    assert (code, found["load"]["status"]) == (5, "failure")
    assert found["load"]["advice"]


def test_the_command_takes_a_model_and_the_loaders_options_as_its_siblings_do(
    doctor: Callable[..., tuple[int, dict[str, dict[str, str]]]], tmp_path: Path
) -> None:
    folder = str(tiny.build("bert", tmp_path / "encoder"))
    code, found = doctor(folder, "--max-length", "16")
    assert (code, found["load"]["status"], found["save and load"]["status"]) == (0, "ok", "ok")
    assert "--offline" in found["hub"]["detail"]
    assert doctor("--model", folder) == doctor(folder), "as older scripts give it"

    headless = str(tiny.build("bert-headless", tmp_path / "headless"))
    assert doctor(headless)[1]["head"]["status"] == "failure"
    code, found = doctor(headless, "--no-fallback")
    assert (code, found["load"]["status"]) == (5, "failure")
    assert "without --no-fallback" in found["load"]["advice"]
    assert doctor("--revision", "v1") == (2, {}), "an option without effect"
