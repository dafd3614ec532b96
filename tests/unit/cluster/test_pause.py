"""Local models are switched off for a moment, and whatever stood there before stands there afterwards."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from opensearchpy import OpenSearch

from oskit.cluster.client.server_words import meaning
from oskit.cluster.models.pause import MARK, SETTING, local_models_paused, pause_calls, until_not_paused

DEAD = f"{MARK}dead"


class Settings:
    """Of a cluster, with as much of a client as reads and writes them."""

    def __init__(self, persistent: dict[str, Any], transient: dict[str, Any]) -> None:
        self.persistent, self.transient = persistent, transient
        self.written: list[dict[str, Any]] = []
        self.reads = 0
        self.cluster = SimpleNamespace(get_settings=self._read, put_settings=self._write)

    def _read(self, params: dict[str, str]) -> dict[str, Any]:
        self.reads += 1
        defaults = {SETTING: "true"} if "include_defaults" in params else {}
        return {"persistent": self.persistent, "transient": dict(self.transient), "defaults": defaults}

    def _write(self, body: dict[str, Any]) -> None:
        self.written.append(body)
        for name, value in body["transient"].items():
            written = str(value).lower() if isinstance(value, bool) else value
            if value is None:
                self.transient.pop(name, None)
            else:
                self.transient[name] = written

    @property
    def client(self) -> OpenSearch:
        return cast(OpenSearch, self)


@pytest.mark.parametrize("before", [{}, {SETTING: "true"}])
@pytest.mark.parametrize("left", [{}, {DEAD: "host 1"}])
def test_a_mark_of_a_killed_run_does_not_keep_the_models_off(
    before: dict[str, str], left: dict[str, str]
) -> None:
    there = Settings({}, {**before, **left})
    planned = [call.body for calls in pause_calls(there.client) for call in calls]
    said: list[str] = []
    with local_models_paused(there.client, wait_s=0, notify=said.append):
        assert there.transient[SETTING] == "false"
        assert len([name for name in there.transient if name.startswith(MARK)]) == 1
    assert there.transient == before
    assert "run again" in said[-1]
    mark = next(name for name in there.written[0]["transient"] if name.startswith(MARK) and name != DEAD)
    written = json.loads(json.dumps(there.written).replace(mark, f"{MARK}…"))
    written[0]["transient"][f"{MARK}…"] = "HOST PID"
    assert written == planned


def test_the_advice_for_models_that_are_off_works_after_a_killed_pause_too() -> None:
    known = meaning("Local Model is currently disabled. To enable it, ...", 400, "item")
    assert known is not None
    there = Settings({}, {SETTING: "false", DEAD: "host 1"})
    body = json.loads(known.do.partition("_cluster/settings ")[2])
    there.client.cluster.put_settings(body=body)
    assert SETTING not in there.transient and body["persistent"] == {SETTING: True}


def test_who_ends_first_of_two_says_that_the_models_are_off() -> None:
    there = Settings({}, {})
    said: list[str] = []
    with local_models_paused(there.client, wait_s=0, notify=said.append):
        there.transient[f"{MARK}other"] = "host 2"
    assert there.transient == {SETTING: "false", f"{MARK}other": "host 2"}
    assert "stay paused" in said[-1] and "host 2" in said[-1]


def test_what_is_off_persistently_stays_so_and_nobody_says_otherwise() -> None:
    there = Settings({SETTING: "false"}, {})
    said: list[str] = []
    with local_models_paused(there.client, wait_s=0, notify=said.append):
        pass
    assert there.written == [] and pause_calls(there.client) == ([], [])
    assert len(said) == 1 and "stay so" in said[0]


def test_another_pause_is_waited_for_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Settings({}, {SETTING: "false", DEAD: "host 1"})

    def sleep(_seconds: float) -> None:
        if there.reads == 3:
            there.transient.clear()

    monkeypatch.setattr("oskit.cluster.models.registry.time.sleep", sleep)
    said: list[str] = []
    until_not_paused(there.client, wait_s=60, notify=said.append)
    assert there.reads == 4 and len(said) == 1 and "host 1" in said[0]
    there.transient[SETTING] = "false"  # by a person, who leaves no mark
    until_not_paused(there.client, wait_s=60, notify=said.append)
    assert there.reads == 5 and len(said) == 1
