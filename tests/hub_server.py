"""A small Hugging Face Hub over real HTTP: what huggingface_hub asks for, and the ways in which it can fail.

Point ``HF_ENDPOINT`` at :attr:`HubServer.url`. Files are served from folders, with etags, ``Range`` and the
Hub's error headers.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.http_server import HttpServer, Reply, Request

_API = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?$")
_TREE = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)$")
_FILE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)$")


@dataclass
class Repository:
    """One repository.

    Attributes:
        folder: Its files.
        token: The token that may read it; None for everyone.
        gated: Whether its files (not its page) need consent that nobody has.
        revisions: Commit of each branch and tag.
    """

    folder: Path
    token: str | None = None
    gated: bool = False
    revisions: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        """The commit of a revision; a commit is its own."""
        return revision if revision in self.revisions.values() else self.revisions.get(revision)

    def files(self) -> dict[str, Path]:
        """Every file by its path in the repository."""
        return {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*") if p.is_file()}


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose path contains ``path``."""

    path: str
    times: int
    status: int | None = None
    cut_after: int | None = None


class HubServer(HttpServer):
    """``with HubServer() as hub``: serves until the block ends.

    Attributes:
        requests: ``METHOD path`` of every request, with the ``Range`` header where there is one.
    """

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._lock = threading.Lock()

    def add(self, name: str, folder: Path, *, token: str | None = None, gated: bool = False) -> str:
        """Serve a folder as a repository and return the commit of its branch ``main``."""
        commit = hashlib.sha1(f"{name} at {folder}".encode()).hexdigest()
        self.repositories[name] = Repository(folder, token, gated, {"main": commit})
        return commit

    def fail(self, path: str, status: int, *, times: int = 1) -> None:
        """Answer the next requests for a path that contains ``path`` with a status."""
        self.faults.append(Fault(path, times, status=status))

    def cut(self, path: str, after: int, *, times: int = 1) -> None:
        """Close the connection after so many bytes of the next downloads of ``path``."""
        self.faults.append(Fault(path, times, cut_after=after))

    def downloads(self, name: str) -> list[str]:
        """Requests for the content of a file."""
        return [
            line for line in self.requests if line.startswith("GET") and "/resolve/" in line and name in line
        ]

    def _fault_of(self, path: str, *, downloading: bool) -> Fault | None:
        """The fault that this request meets, used up by one."""
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.path in path and (fault.cut_after is None or downloading):
                    fault.times -= 1
                    return fault
        return None

    def _answer(self, request: Request) -> Reply:
        path = unquote(urlsplit(request.path).path)
        wanted = request.headers.get("Range")
        self.requests.append(f"{request.method} {path}" + (f" {wanted}" if wanted else ""))
        file = _FILE.match(path)
        fault = self._fault_of(path, downloading=bool(file) and request.method == "GET")
        if fault is not None and fault.status is not None:
            return _error(fault.status, None, "made to fail")
        match = file or _TREE.match(path) or _API.match(path)
        repository = self.repositories.get(match["repo"]) if match else None
        if match is None or repository is None:
            return _error(404, "RepoNotFound", "Repository not found")
        sent = request.headers.get("Authorization")
        if repository.token is not None and sent != f"Bearer {repository.token}":
            return _error(401, "RepoNotFound", "Invalid username or password.")
        commit = repository.commit(match["revision"] or "main")
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        if file:
            return _file(repository, commit, match["path"], wanted, fault.cut_after if fault else None)
        if match.re is _TREE:
            entries = sorted(repository.files().items())
            return Reply(body=[_entry(path, source) for path, source in entries])
        siblings = [{"rfilename": path} for path in sorted(repository.files())]
        return Reply(body={"id": match["repo"], "sha": commit, "siblings": siblings})


def _file(repository: Repository, commit: str, path: str, wanted: str | None, cut_after: int | None) -> Reply:
    source = repository.files().get(path)
    if repository.gated:
        return _error(403, "GatedRepo", "Access to this model is restricted")
    if source is None:
        return _error(404, "EntryNotFound", "Entry not found")
    content = source.read_bytes()
    total, start = len(content), 0
    if part := re.match(r"bytes=(\d+)-", wanted or ""):
        start = int(part[1])
        content = content[start:]
    headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(source)}"', "Accept-Ranges": "bytes"}
    if start:
        headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
    return Reply(206 if start else 200, content, headers, cut_after)


def _error(status: int, code: str | None, message: str) -> Reply:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return Reply(status, {"error": message}, headers)


def _oid(source: Path) -> str:
    content = source.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, source: Path) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": source.stat().st_size, "oid": _oid(source)}
