"""What `LocalNode` does before and after a server runs: records, ports, folders, settings."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from oskit.errors import NodeError, UsageError
from oskit.localnode import LocalNode, find_node
from oskit.localnode.configuration import Folders, write_configuration
from oskit.localnode.diagnosis import start_error
from oskit.localnode.java import Java
from oskit.localnode.node import node_folder, read_record, write_record
from oskit.localnode.paths import cache_root, state_root
from oskit.localnode.processes import ProcessId
from oskit.localnode.service_account import can_enter, node_account


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if started by an ordinary user, so that nothing outside of the test's folder is used."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("OSKIT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("OSKIT_CACHE_DIR", str(tmp_path / "cache"))


def this_process() -> ProcessId:
    found = ProcessId.of(os.getpid())
    assert found is not None
    return found


def test_a_node_that_never_ran_is_stopped() -> None:
    node = LocalNode("fresh")
    assert node.status().state == "stopped"
    assert node.stop() is False
    assert node.logs() == ""
    with pytest.raises(NodeError, match="does not run"):
        _ = node.url


def test_a_log_is_followed_through_cuts_and_changes_of_the_file_and_never_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = LocalNode("talks")
    write_record(node_folder("talks"), {"kind": "process", **this_process()._asdict()})
    log = Folders(node_folder("talks")).console
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {number}\n" for number in range(1000)))

    def add(text: str) -> None:
        with log.open("a") as file:
            file.write(text)

    def rotate() -> None:
        add("the old one's last\n")
        log.rename(log.with_suffix(".1"))
        log.write_text("a new file, which is longer than what was read of the one before it" * 1000)

    def stop() -> None:
        add("bye\n")
        (node_folder("talks") / "node.json").unlink()

    happens = iter(
        [lambda: add("half a"), lambda: add(" line\n"), lambda: log.write_text("cut\n"), rotate, stop]
    )
    monkeypatch.setattr(time, "sleep", lambda _seconds: next(happens)())
    told = [text for text in node.follow(2) if text]
    assert told[:5] == [b"line 998\nline 999\n", b"half a", b" line\n", b"cut\n", b"the old one's last\n"]
    assert told[5:] == [log.read_bytes().removesuffix(b"bye\n"), b"bye\n"]


@pytest.mark.parametrize(("memory_mb", "heap"), [(1000, "512m"), (4000, "1000m"), (64000, "2048m")])
def test_the_heap_is_sized_by_the_machine(monkeypatch: pytest.MonkeyPatch, memory_mb: int, heap: str) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": memory_mb << 8, "SC_PAGE_SIZE": 4096}.__getitem__)
    monkeypatch.setattr(Path, "read_text", lambda *_: "max\n")  # the limit of a container
    assert LocalNode().heap == heap
    monkeypatch.setattr(Path, "read_text", lambda *_: f"{2400 << 20}\n")
    assert LocalNode().heap == ("512m" if memory_mb == 1000 else "600m")
    assert LocalNode(heap="3g").heap == "3g"


def test_a_record_of_a_process_whose_number_was_given_to_another_is_stale() -> None:
    other = this_process()
    stale = {**other._asdict(), "started": other.started - 1, "url": "http://127.0.0.1:1"}
    write_record(node_folder("stale"), {"kind": "process", **stale})
    node = LocalNode("stale")
    assert node.status().state == "stopped"
    assert node.stop() is False  # and this process, which has the number, is still here
    assert read_record(node_folder("stale")) is None


def test_a_record_of_a_running_process_is_believed() -> None:
    record = {"kind": "process", **this_process()._asdict(), "url": "http://127.0.0.1:1"}
    write_record(node_folder("running"), record)
    status = find_node("running").status()
    assert (status.state, status.pid) == ("starting", os.getpid())  # it runs and does not answer
    assert json.loads(json.dumps(status._asdict(), default=str))["folder"].endswith("nodes/running")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "process"}', '{"kind": "process", "pid": "x"}'])
def test_half_a_record_is_no_record(text: str) -> None:
    folder = node_folder("half")
    folder.mkdir(parents=True)
    (folder / "node.json").write_text(text)
    assert LocalNode("half").status().state == "stopped"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NodeError, match=f"Port {port} on 127.0.0.1 cannot be used"):
            LocalNode("taken", port=port).start()
    with pytest.raises(UsageError, match="70000 is not a port"):
        LocalNode("taken", port=70000).start()


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x" * 64])
def test_a_name_that_is_no_folders_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not a name for a node"):
        LocalNode(name)


@pytest.mark.parametrize("heap", ["1", "0g", "1t", "g", "-1g", "1g -XX:x"])
def test_a_heap_that_is_no_size_is_refused(heap: str) -> None:
    with pytest.raises(UsageError, match="not a heap size"):
        LocalNode(heap=heap)


def test_a_folder_with_blanks_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OSKIT_STATE_DIR", str(tmp_path / "my state"))
    with pytest.raises(NodeError, match="OSKIT_STATE_DIR"):
        LocalNode("x").start()


def test_root_needs_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    account = node_account("nobody")
    assert account is not None and account.uid != 0
    with pytest.raises(NodeError, match="refuses to run as 'root'"):
        node_account("root")
    with pytest.raises(NodeError, match="OSKIT_NODE_USER"):
        node_account("no-such-user")
    monkeypatch.setenv("OSKIT_NODE_USER", "no-such-user")
    with pytest.raises(NodeError, match="no-such-user"):
        node_account()


def test_a_folder_that_the_user_cannot_enter_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from oskit.localnode import paths

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(paths, "SYSTEM_CACHE", tmp_path / "system-cache")
    monkeypatch.setattr(paths, "SYSTEM_STATE", tmp_path / "system-state")
    account = node_account("nobody")
    assert account is not None
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert not can_enter(closed / "deeper", account)
    monkeypatch.setenv("OSKIT_CACHE_DIR", str(closed))
    monkeypatch.setenv("OSKIT_STATE_DIR", str(closed))
    assert cache_root(account).is_relative_to(tmp_path / "system-cache")
    one = state_root(account)
    assert one.is_relative_to(tmp_path / "system-state")
    monkeypatch.setenv("OSKIT_STATE_DIR", str(closed / "other"))
    assert state_root(account) != one


def test_the_configuration_is_the_nodes_own(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "config").mkdir(parents=True)
    (home / "config" / "log4j2.properties").write_text("status = error\n")
    (home / "config" / "jvm.options").write_text(
        "-XX:HeapDumpPath=data\n-XX:ErrorFile=logs/hs_err.log\n9-:-Xlog:gc*:file=logs/gc.log:utctime\n"
        "20-:--add-modules=jdk.incubator.vector\n-Xms1g\n"
    )
    folders = Folders(tmp_path / "node")
    folders.data.mkdir(parents=True)
    (folders.data / "index").touch()
    settings = {"search.max_buckets": 7, "plugins.ml_commons.max_model_on_node": 3}
    java = Java(tmp_path, "21", frozenset({"java.base"}))
    write_configuration(folders, home, java, name="n", port="0", heap="512m", settings=settings)
    lines = (folders.config / "opensearch.yml").read_text().splitlines()
    for line in (
        'discovery.type: "single-node"',
        "plugins.ml_commons.only_run_on_ml_node: false",
        "plugins.ml_commons.native_memory_threshold: 100",
        "plugins.ml_commons.max_model_on_node: 3",
        "search.max_buckets: 7",
        f'path.data: "{folders.data}"',
    ):
        assert line in lines
    options = (folders.config / "jvm.options").read_text()
    assert "jdk.incubator.vector" not in options  # this Java has no such module
    assert f"HeapDumpPath={folders.data}\n" in options and f"file={folders.logs}/gc.log" in options
    assert "-Xmx512m" in (folders.config / "jvm.options.d" / "oskit.options").read_text()
    assert (folders.data / "index").exists()
    with_vectors = Java(tmp_path, "21", frozenset({"java.base", "jdk.incubator.vector"}))
    write_configuration(folders, home, with_vectors, name="n", port="0", heap="1g", settings={})
    assert "jdk.incubator.vector" in (folders.config / "jvm.options").read_text()


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("java.net.BindException: Address already in use", "its port is taken"),
        ("OpenJDK 64-Bit Server VM warning: ... Cannot allocate memory (errno=12)", "not enough memory"),
        ("java.io.IOException: No space left on device", "the disk is full"),
        ("java.lang.IllegalArgumentException: unknown setting [a.b] please check", "a setting is wrong"),
        ("org.opensearch.OpenSearchException: failed to obtain node locks, tried", "the same data folder"),
        ("java.nio.file.AccessDeniedException: /x/opensearch.keystore", "may not use one of its folders"),
        ("uncaught exception in thread [main] SomethingNew: surprise", "SomethingNew: surprise"),
    ],
)
def test_the_error_names_the_cause_and_the_line(line: str, cause: str) -> None:
    error = start_error("it ended", f"[INFO ] starting\n{line}\n[INFO ] stopped\n", "/the/log")
    assert cause in str(error) and line[:40] in str(error) and "/the/log" in str(error)
    assert "\n" not in str(error)
