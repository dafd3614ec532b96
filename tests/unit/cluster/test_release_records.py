"""Names and states of releases, and whether the process behind one is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from oskit.cluster.index.existing import ExistingIndex
from oskit.cluster.index.names import check_index_name
from oskit.cluster.index.owner import is_gone, owner
from oskit.cluster.index.pruning import older
from oskit.cluster.index.releases import Alias, Release, now, release_name


@pytest.mark.parametrize("alias", ["articles", "Artikel-LIVE", ".hidden", "ä" * 120, "a" * 250])
@pytest.mark.parametrize("encoder", ["my-encoder", "org/Some Model:v2*", "", None, "名" * 100])
def test_a_release_has_a_name_that_an_index_may_have(alias: str, encoder: str | None) -> None:
    name = release_name(alias, encoder)
    check_index_name(name)
    assert not name.endswith("-")
    check_index_name(f"{name}-sparse-encoding"[:255])


def test_an_alias_moves_in_one_call_with_its_filter_and_routing() -> None:
    options = {"filter": {"term": {"a": 1}}, "search_routing": "r", "is_write_index": False}
    (gone, added) = Alias("live", "old", options).move_call("new").body["actions"]
    assert gone == {"remove": {"index": "old", "alias": "live", "must_exist": True}}
    kept = {"filter": {"term": {"a": 1}}, "search_routing": "r"}
    assert added == {"add": {"index": "new", "alias": "live", **kept, "is_write_index": True}}
    assert len(Alias("live").move_call("new").body["actions"]) == 1


ELSEWHERE = {"host": "elsewhere", "machine": "?", "pid": 1}
STATES: list[tuple[dict[str, Any], str]] = [
    ({}, "retired"),
    ({"state": "building", "beat": now(), **owner()}, "building"),
    ({"state": "building", "beat": now(), **ELSEWHERE}, "building"),
    ({"state": "building", "beat": "2020-01-01T00:00:00Z", **ELSEWHERE}, "abandoned"),
    ({"state": "building", "beat": "yesterday", **ELSEWHERE}, "abandoned"),
    ({"state": "building", "beat": now().removesuffix("Z"), **ELSEWHERE}, "abandoned"),
    ({"state": "building", "beat": now(), "ended": now(), **owner()}, "abandoned"),
    ({"state": "refused", "beat": now(), **owner()}, "refused"),
    ({"state": "ready", "beat": "2020-01-01T00:00:00Z", **ELSEWHERE}, "ready"),
    ({"state": "ready", "living_since": now()}, "retired"),
    ({"state": "ready", "retired": now()}, "retired"),
]


@pytest.mark.parametrize(("record", "state"), STATES)
def test_the_state_of_a_release(record: dict[str, Any], state: str) -> None:
    index = ExistingIndex("i", {}, {}, {})
    assert Release("live", index, False, record).state == state
    assert Release("live", index, True, record).state == "live", "the alias knows better"


def test_what_lived_last_stays_though_the_moves_were_in_one_second() -> None:
    left = ["2026-11-29T09:23:24.107Z", "2026-11-29T09:23:23Z", "2026-11-29T09:23:24.900Z", None]
    indexes = [
        Release(
            "live",
            ExistingIndex(str(at), {}, {}, {}),
            False,
            {"living_since": "x", "retired": at},
        )
        for at in left
    ]
    assert [one.name for one in older(indexes, spared=1)] == [left[0], left[1], "None"]


def test_a_process_is_gone_only_where_that_can_be_seen() -> None:
    assert not is_gone(owner())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert is_gone(owner() | {"pid": child.pid}) == (os.name == "posix")
    assert not is_gone(owner() | {"pid": child.pid, "machine": "another, of the same name"})
    assert not is_gone({"host": "elsewhere", "pid": child.pid})
    assert not is_gone({})
