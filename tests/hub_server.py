"""A small Hugging Face Hub over real HTTP: what huggingface_hub asks for, and the ways in which it can fail.

Point ``HF_ENDPOINT`` at :attr:`HubServer.url`. Files are served from folders, with etags, ``Range`` and the
Hub's error headers.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

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


class HubServer:
    """``with HubServer() as hub``: serves until the block ends.

    Attributes:
        requests: ``METHOD path`` of every request, with the ``Range`` header where there is one.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; from then on nobody listens at :attr:`url`."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

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

    def fault_of(self, path: str, *, downloading: bool) -> Fault | None:
        """The fault that this request meets, used up by one."""
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.path in path and (fault.cut_after is None or downloading):
                    fault.times -= 1
                    return fault
        return None

    def downloads(self, name: str) -> list[str]:
        """Requests for the content of a file."""
        return [
            line for line in self.requests if line.startswith("GET") and "/resolve/" in line and name in line
        ]


def _handler_of(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            wanted = self.headers.get("Range")
            hub.requests.append(f"{self.command} {path}" + (f" {wanted}" if wanted else ""))
            file = _FILE.match(path)
            fault = hub.fault_of(path, downloading=bool(file) and body)
            if fault is not None and fault.status is not None:
                self._error(fault.status, None, "made to fail", body=body)
                return
            match = file or _TREE.match(path) or _API.match(path)
            repository = hub.repositories.get(match["repo"]) if match else None
            if match is None or repository is None:
                self._error(404, "RepoNotFound", "Repository not found", body=body)
                return
            sent = self.headers.get("Authorization")
            if repository.token is not None and sent != f"Bearer {repository.token}":
                self._error(401, "RepoNotFound", "Invalid username or password.", body=body)
                return
            commit = repository.commit(match["revision"] or "main")
            if commit is None:
                self._error(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}", body=body)
            elif file:
                self._file(repository, commit, match["path"], fault, body=body)
            elif match.re is _TREE:
                self._json([_entry(path, source) for path, source in sorted(repository.files().items())])
            else:
                siblings = [{"rfilename": path} for path in sorted(repository.files())]
                self._json({"id": match["repo"], "sha": commit, "siblings": siblings})

        def _file(
            self, repository: Repository, commit: str, path: str, fault: Fault | None, *, body: bool
        ) -> None:
            source = repository.files().get(path)
            if repository.gated:
                self._error(403, "GatedRepo", "Access to this model is restricted", body=body)
                return
            if source is None:
                self._error(404, "EntryNotFound", "Entry not found", body=body)
                return
            content = source.read_bytes()
            total, start = len(content), 0
            if wanted := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(wanted[1])
                content = content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{_oid(source)}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not body:
                return
            if fault is not None and fault.cut_after is not None:
                self.wfile.write(content[: fault.cut_after])
                self.close_connection = True
                return
            self.wfile.write(content)

        def _json(self, data: Any) -> None:
            content = json.dumps(data).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _error(self, status: int, code: str | None, message: str, *, body: bool) -> None:
            content = json.dumps({"error": message}).encode()
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

    return Handler


def _oid(source: Path) -> str:
    content = source.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, source: Path) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": source.stat().st_size, "oid": _oid(source)}
