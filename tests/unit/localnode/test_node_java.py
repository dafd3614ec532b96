"""Which Java runs the server, with programs that stand in for one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oskit.errors import NodeError
from oskit.localnode import java as java_module
from oskit.localnode.java import find_java
from oskit.localnode.service_account import Account, node_account


@pytest.fixture(autouse=True)
def _nothing_but_the_tests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("OSKIT_JAVA_HOME", "OPENSEARCH_JAVA_HOME", "JAVA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/nowhere")
    folders = tuple(folder for folder in java_module._FOLDERS if folder.startswith("~"))
    monkeypatch.setattr(java_module, "_FOLDERS", folders)


def fake_java(home: Path, version: str, *modules: str, status: int = 0) -> Path:
    """A program that answers `--list-modules` like a JDK of that version."""
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    lines = "\n".join(f"echo {module}@{version}" for module in ("java.base", "jdk.localedata", *modules))
    program.write_text(f"#!/bin/sh\n{lines}\nexit {status}\n")
    program.chmod(0o755)
    return home


def test_the_variables_come_first_and_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "c", "23")))
    assert find_java().home == tmp_path / "c"
    monkeypatch.setenv("OPENSEARCH_JAVA_HOME", str(fake_java(tmp_path / "b", "22")))
    assert find_java().home == tmp_path / "b"
    monkeypatch.setenv("OSKIT_JAVA_HOME", str(fake_java(tmp_path / "a", "21.0.5", "jdk.incubator.vector")))
    found = find_java()
    assert (found.home, found.version) == (tmp_path / "a", "21.0.5")
    assert "jdk.incubator.vector" in found.modules


def test_one_that_is_too_old_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "old", "17.0.12")))
    new = fake_java(tmp_path / "new", "21")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "java").symlink_to(new / "bin" / "java")
    monkeypatch.setenv("PATH", f"{tmp_path / 'links'}:/bin")
    assert find_java().home == new


def test_the_newest_of_the_usual_folders(tmp_path: Path) -> None:
    for version in ("21.0.5", "25.0.1", "9.0.4"):
        fake_java(tmp_path / "home" / ".jdks" / f"temurin-{version}", version)
    assert find_java().version == "25.0.1"


@pytest.mark.parametrize(
    ("version", "status", "reason"),
    [("17.0.12", 0, "Java 17.0.12"), ("21", 1, "broken"), ("", 0, "broken")],
)
def test_the_error_says_what_is_wrong_with_each(
    tmp_path: Path, version: str, status: int, reason: str
) -> None:
    home = fake_java(tmp_path / "jdk", version, status=status)
    with pytest.raises(NodeError, match=reason) as caught:
        find_java(home)
    assert str(home) in str(caught.value) and "OSKIT_JAVA_HOME" in str(caught.value)


def test_a_trimmed_runtime_is_refused(tmp_path: Path) -> None:
    program = fake_java(tmp_path / "jre", "21") / "bin" / "java"
    program.write_text("#!/bin/sh\necho java.base@21\n")
    with pytest.raises(NodeError, match="without locale data"):
        find_java(tmp_path / "jre")


def test_none_at_all() -> None:
    with pytest.raises(NodeError, match=r"none was found.*Install a JDK 21"):
        find_java()


def test_what_is_no_program_or_no_folder(tmp_path: Path) -> None:
    program = fake_java(tmp_path / "jdk", "21") / "bin" / "java"
    program.chmod(0o644)
    with pytest.raises(NodeError, match="cannot be run"):
        find_java(tmp_path / "jdk")
    with pytest.raises(NodeError, match="no bin/java"):
        find_java(tmp_path / "missing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts it as somebody else")
def test_one_that_the_servers_user_cannot_reach_is_refused(tmp_path: Path) -> None:
    home = fake_java(tmp_path / "jdk", "21")
    tmp_path.chmod(0o700)
    account = node_account("nobody")
    assert isinstance(account, Account)
    with pytest.raises(NodeError, match="cannot be run by the user 'nobody'"):
        find_java(home, account)
