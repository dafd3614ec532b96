"""The doctor's look at the machine and its packages."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from oskit.doctor import Finding, check_machine
from oskit.localnode import paths


def _named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_this_machine_can_run_the_tests() -> None:
    findings = check_machine()
    assert {"python", "memory", "disk", "java", "docker", "core", "export"} <= {f.name for f in findings}
    for name in ("python", "core", "export", "report", "demo"):
        assert _named(findings, name).status == "ok", _named(findings, name)


def test_the_disk_looked_at_is_the_one_a_node_would_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("OSKIT_NODE_USER", "nobody")
    monkeypatch.setattr(paths, "SYSTEM_CACHE", tmp_path / "system-cache")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("OSKIT_CACHE_DIR", str(closed))
    found = _named(check_machine(), "disk")
    assert f"for {tmp_path / 'system-cache'}" in found.detail
    assert not (tmp_path / "system-cache").exists()
    monkeypatch.setenv("OSKIT_NODE_USER", "no-such-user")
    found = _named(check_machine(), "disk")
    assert found.status == "warning"
    assert "no-such-user" in found.detail


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """Pretend that a distribution has another version, or (None) that it is not installed."""

    def set_version(name: str, version: str | None) -> None:
        real = metadata.version

        def fake(wanted: str) -> str:
            if wanted != name:
                return real(wanted)
            if version is None:
                raise metadata.PackageNotFoundError(wanted)
            return version

        monkeypatch.setattr(metadata, "version", fake)

    return set_version


def test_an_old_core_package_is_a_failure(pretend: Callable[[str, str | None], None]) -> None:
    pretend("tokenizers", "0.1.0")
    core = _named(check_machine(), "core")
    assert core.status == "failure"
    assert "tokenizers 0.1.0" in core.detail
    assert core.advice == "pip install --upgrade oskit"


def test_a_missing_extra_is_skipped_with_the_command_that_installs_it(
    pretend: Callable[[str, str | None], None],
) -> None:
    pretend("torch", None)
    export = _named(check_machine(), "export")
    assert export.status == "skipped"
    assert export.detail == "torch is not installed"
    assert export.advice is not None and "pip install 'oskit[export]'" in export.advice
    pretend("onnx", None)
    detail = _named(check_machine(), "export").detail
    assert detail in ("torch, onnx are not installed", "onnx, torch are not installed")


def test_without_a_suitable_java_only_the_local_node_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    from oskit.errors import NodeError
    from oskit.localnode import java

    def none_found() -> None:
        raise NodeError("No Java 21 was found", hint="Install a JDK")

    monkeypatch.setattr(java, "find_java", none_found)
    finding = _named(check_machine(), "java")
    assert finding.status == "warning"
    assert finding.advice == "Install a JDK"
