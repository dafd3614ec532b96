"""The assembled distribution is used whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from oskit.errors import NodeError
from oskit.localnode import distribution as module
from oskit.localnode import image
from oskit.localnode.image import fetch_natives
from oskit.localnode.java import Java

JAVA = Java(Path("/nowhere"), "21", frozenset())


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("OSKIT_CACHE_DIR", str(tmp_path))
    return tmp_path


def assembled(folder: Path, *_: object) -> Path:
    home = folder / "opensearch"
    home.mkdir()
    (home / "complete").touch()
    return home


def test_an_interrupted_assembly_is_never_used(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def interrupted(folder: Path, *_: object) -> Path:
        (folder / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "assemble", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.distribution(JAVA, None)
    killed = cache / ".assembling-killed"  # what a process leaves that could not clean up
    killed.mkdir()
    monkeypatch.setattr(module, "assemble", assembled)
    home = module.distribution(JAVA, None)
    assert (home / "complete").exists()
    assert {path.name for path in cache.iterdir()} == {home.name, ".lock"}


def test_a_complete_one_is_used_without_network_java_or_right_to_write(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(module, "assemble", assembled)
    home = module.distribution(JAVA, None)

    def unexpected(*_: object) -> Path:
        raise AssertionError("assembled again")

    monkeypatch.setattr(module, "assemble", unexpected)
    (cache / ".lock").unlink()
    assert module.distribution(JAVA, None) == home
    assert not (cache / ".lock").exists()


def test_a_full_disk_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "assemble", full)
    with pytest.raises(NodeError, match=r"No space left on device.*OSKIT_CACHE_DIR"):
        module.distribution(JAVA, None)


def test_another_machine_is_told_what_it_can_do_before_anything_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    with pytest.raises(NodeError, match=r"aarch64.*--docker"):
        module.distribution(JAVA, None)
    monkeypatch.setattr(image, "find_java", None)
    with pytest.raises(NodeError, match=r"aarch64.*official image"):
        image.build_image()
    monkeypatch.setattr(fetch_natives, "write_natives", None)
    with pytest.raises(NodeError, match=r"aarch64.*--platform linux/amd64"):
        fetch_natives.main(cache)
