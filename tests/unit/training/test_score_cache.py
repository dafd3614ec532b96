"""The cache of scores: what is known is not computed, what is stored is whole, and files may be shared."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from oskit.errors import DataError
from oskit.training.teachers import score_cache
from oskit.training.teachers.score_cache import ScoreStore, default_cache_folder

KEYS = [bytes([number]) * 16 for number in range(10)]


def echo(keys: list[bytes]) -> score_cache.Compute:
    return lambda missing: [keys[position][:1] for position in missing]


def refuse(missing: list[int]) -> list[bytes]:
    raise AssertionError(f"computed {missing}")


def test_each_key_is_computed_once(tmp_path: Path) -> None:
    asked: list[int] = []
    keys = [KEYS[0], KEYS[1], KEYS[0], KEYS[2]]

    def compute(missing: list[int]) -> list[bytes]:
        asked.extend(missing)
        return echo(keys)(missing)

    store = ScoreStore(tmp_path, "a")
    assert store.values(keys, compute) == [b"\0", b"\1", b"\0", b"\2"]
    assert asked == [0, 1, 3]
    assert store.values(KEYS[1:3], refuse) == [b"\1", b"\2"]
    assert (store.hits, store.misses) == (0, 3), "what it computed itself was not there before"
    again = ScoreStore(tmp_path, "a")
    again.values(keys, refuse)
    again.values(keys, refuse)
    assert (again.hits, again.misses) == (3, 0)


def test_values_are_there_for_the_next_and_for_nobody_else(tmp_path: Path) -> None:
    first = ScoreStore(tmp_path, "a")
    first.values(KEYS, echo(KEYS))
    assert ScoreStore(tmp_path, "a").values(KEYS, refuse) == [key[:1] for key in KEYS]
    assert ScoreStore(tmp_path, "b").values(KEYS[:1], lambda _: [b"other"]) == [b"other"]
    assert first.values(KEYS[:1], refuse) == [b"\0"]


def test_interruption_keeps_finished_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_cache, "SLICE", 4)

    def interrupted(missing: list[int]) -> list[bytes]:
        if 8 in missing:
            raise KeyboardInterrupt
        return echo(KEYS)(missing)

    store = ScoreStore(tmp_path, "a")
    with pytest.raises(KeyboardInterrupt):
        store.values(KEYS, interrupted)
    again = ScoreStore(tmp_path, "a")
    again.values(KEYS, echo(KEYS))
    assert (again.hits, again.misses) == (8, 2)


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from oskit.training.teachers.score_cache import ScoreStore, SLICE\n"
        "store = ScoreStore(pathlib.Path(sys.argv[1]), 'a')\n"
        "for start in range(0, 2000, 20):\n"
        "    keys = [i.to_bytes(4, 'big') for i in range(start, start + 20)]\n"
        "    assert store.values(keys, lambda m: [keys[p] for p in m]) == keys\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    keys = [number.to_bytes(4, "big") for number in range(2000)]
    assert ScoreStore(tmp_path, "a").values(keys, refuse) == keys


@pytest.mark.parametrize("whole", [0, 4096])
def test_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: int) -> None:
    store = ScoreStore(tmp_path, "a")
    store.values(KEYS, echo(KEYS))
    store.close()
    store.path.write_bytes(store.path.read_bytes()[:whole] + b"this is no database" * 1000)
    with caplog.at_level(logging.WARNING):
        again = ScoreStore(tmp_path, "a")
    assert "damaged" in caplog.text
    assert again.values(KEYS[:1], echo(KEYS)) == [b"\0"]
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".sqlite", ".broken"]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be read or written"):
        ScoreStore(tmp_path / "file", "a")


def test_default_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSKIT_CACHE_DIR", str(tmp_path))
    assert default_cache_folder() == tmp_path / "teachers"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OSKIT_CACHE_DIR", "~/cache")
    assert default_cache_folder() == tmp_path / "cache" / "teachers"
