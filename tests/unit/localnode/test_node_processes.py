"""Processes: telling one from another that has its number, and stopping them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from oskit.localnode.processes import ProcessId, stop_group


def identity(pid: int) -> ProcessId:
    found = ProcessId.of(pid)
    assert found is not None
    return found


def test_a_process_is_known_by_its_start_as_well() -> None:
    this = identity(os.getpid())
    assert this.alive()
    assert not this._replace(started=this.started + 1).alive()
    assert not this._replace(boot="another boot").alive()
    assert 0 <= this.age() < 24 * 3600


def test_one_that_has_ended_is_not_alive_even_if_nobody_asked_for_its_status() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        process = ProcessId.of(child.pid)
        deadline = time.monotonic() + 20
        while ProcessId.of(child.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ProcessId.of(child.pid) is None
        assert process is None or not process.alive()
    finally:
        child.wait()


@pytest.mark.parametrize("stubborn", [False, True])
def test_stopping_takes_the_whole_group(stubborn: bool) -> None:
    trap = "trap '' TERM; " if stubborn else ""
    command = f"{trap}sleep 60 & echo $!; wait; wait"
    child = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    inner = identity(int(child.stdout.readline()))
    process = identity(child.pid)
    stop_group(process, grace=0.3 if stubborn else 20)
    assert not process.alive()
    deadline = time.monotonic() + 20
    while inner.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not inner.alive()
    child.stdout.close()
    child.wait()
