"""Fetching artifacts: jgo against a small repository over real HTTP."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oskit.errors import NodeError
from oskit.localnode.artifacts import ARTIFACTS, Artifact, resolve
from tests.http_server import HttpServer, Reply, Request

pytest.importorskip("jgo")

CONTENT = b"server " * 50_000
ARTIFACT = Artifact("org.example", "thing", "1.0", hashlib.sha256(CONTENT).hexdigest(), classifier="linux")
PLACE = "org/example/thing/1.0/thing-1.0-linux.zip"


class Repository(HttpServer):
    """A Maven repository; ``answers`` says what the next requests for the artifact get, then it is right."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.answers: list[str] = []
        self.requests = 0
        self._lock = threading.Lock()

    def _answer(self, request: Request) -> Reply:
        if request.path != f"/{PLACE}":
            return Reply(404)
        with self._lock:
            self.requests += 1
            answer = self.answers.pop(0) if self.answers else "right"
        if answer == "404":
            return Reply(404)
        if answer == "cut":
            return Reply(body=CONTENT, cut_after=1000)
        return Reply(body=CONTENT if answer == "right" else CONTENT[:-1] + b"!")


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Repository]:
    import jgo.maven._core

    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    with Repository() as made:
        monkeypatch.setattr(jgo.maven._core, "DEFAULT_REMOTE_REPOS", {"local": made.url})
        yield made


def left_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".oskit.lock"}


def test_fetched_once_then_found_without_a_network(repository: Repository, tmp_path: Path) -> None:
    seen: list[tuple[str, float, float | None]] = []
    path = resolve(ARTIFACT, lambda *event: seen.append(event))
    assert path == tmp_path / "m2" / PLACE and path.read_bytes() == CONTENT
    assert seen[-1] == ("Fetching thing-1.0-linux.zip", len(CONTENT) / 1e6, len(CONTENT) / 1e6)
    repository.stop()
    assert resolve(ARTIFACT) == path
    assert repository.requests == 1
    assert left_in(tmp_path / "m2") == {PLACE}


@pytest.mark.parametrize("damaged", [CONTENT[:1000], b"", CONTENT + b"more"])
def test_a_damaged_file_is_fetched_again(repository: Repository, tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "m2" / PLACE
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged)
    assert resolve(ARTIFACT).read_bytes() == CONTENT
    assert repository.requests == 1


@pytest.mark.parametrize("trouble", ["cut", "wrong"])
def test_a_bad_transfer_is_repeated(repository: Repository, tmp_path: Path, trouble: str) -> None:
    repository.answers = [trouble]
    assert resolve(ARTIFACT).read_bytes() == CONTENT
    assert repository.requests == 2
    assert left_in(tmp_path / "m2") == {PLACE}


def test_always_wrong_is_an_error_that_leaves_nothing(repository: Repository, tmp_path: Path) -> None:
    repository.answers = ["wrong"] * 5
    with pytest.raises(NodeError, match=re.escape(ARTIFACT.sha256)) as caught:
        resolve(ARTIFACT)
    assert "org.example:thing:1.0:zip:linux" in str(caught.value)
    assert repository.requests == 2
    assert left_in(tmp_path / "m2") == set()


def test_not_there_is_an_error_that_says_where_to_put_it(repository: Repository, tmp_path: Path) -> None:
    repository.answers = ["404"] * 5
    with pytest.raises(NodeError, match="Cannot fetch") as caught:
        resolve(ARTIFACT)
    assert str(tmp_path / "m2" / PLACE) in str(caught.value)


def test_several_at_once_fetch_it_once(repository: Repository) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(resolve, [ARTIFACT] * 4))
    assert len(set(paths)) == 1 and paths[0].read_bytes() == CONTENT
    assert repository.requests == 1


def test_a_folder_that_cannot_be_made_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("M2_REPO", str(tmp_path / "file" / "m2"))
    with pytest.raises(NodeError, match="M2_REPO"):
        resolve(ARTIFACT)


def test_every_artifact_is_pinned() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{64}", artifact.sha256) for artifact in ARTIFACTS)
    assert len({artifact.sha256 for artifact in ARTIFACTS}) == len(ARTIFACTS) == 7
