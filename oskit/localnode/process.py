"""A local OpenSearch as a process of this machine."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from oskit.errors import NodeError
from oskit.localnode import supervisor
from oskit.localnode.configuration import Folders, write_configuration
from oskit.localnode.diagnosis import start_error
from oskit.localnode.distribution import distribution
from oskit.localnode.java import find_java
from oskit.localnode.natives import LIBRARY_PATH_VARIABLE
from oskit.localnode.node import Node, NodeStatus, read_record, write_record
from oskit.localnode.paths import locked
from oskit.localnode.ports import USUAL_PORTS, check_port
from oskit.localnode.processes import ProcessId, process_of, stop_group
from oskit.localnode.service_account import Account, give_to, node_account
from oskit.localnode.tail import follow, tail

#: Seconds that a server gets to close its indexes before it is killed.
GRACE = 30.0


@dataclass(eq=False, kw_only=True)
class LocalNode(Node):
    """A real OpenSearch with k-NN, ML Commons and neural search, run by this machine's Java.

    Example:
        >>> with LocalNode() as node:
        ...     client = connect(ConnectionSettings(url=node.url))

    Args:
        name, port, heap, settings, timeout, progress: See :class:`oskit.localnode.node.Node`.
        java_home: The Java to use instead of the first suitable one.
        user: When root starts it: the user that runs it (``OSKIT_NODE_USER``, ``opensearch``, ``nobody``).
    """

    java_home: str | Path | None = None
    user: str | None = None
    kind = "process"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._folders = Folders(self._folder) if self.name else None
        self._child: subprocess.Popen[bytes] | None = None
        self._owner: IO[str] | None = None  # held open while a temporary folder is in use
        self._creator = os.getpid()

    def stop(self) -> bool:
        process = self._process()
        if process is not None:
            stop_group(process, GRACE)
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self._child.stdin:
                    self._child.stdin.close()
                self._child.wait(GRACE)
            self._child = None
        self._forget()
        self._discard()
        self._started_here = False
        atexit.unregister(self._at_exit)
        return process is not None

    def status(self) -> NodeStatus:
        return super().status()._replace(folder=self._folders.root if self._folders else None)

    def _seen(self) -> dict[str, Any] | None:
        record, process = self._record(), self._process()
        if record is None or process is None or self._folders is None:
            return None
        return {
            "url": record.get("url"),
            "pid": process.pid,
            "uptime_seconds": round(process.age(), 1),
            "data_bytes": _disk_usage(self._folders.data),
        }

    def logs(self, lines: int | None = None) -> str:
        return tail(self._folders.console, lines) if self._folders else ""

    def follow(self, lines: int) -> Iterator[bytes]:
        return follow(self._folders.console, lines, self._runs) if self._folders else iter(())

    def _at_exit(self) -> None:
        # A forked child inherits this, and must not stop its parent's node.
        if os.getpid() == self._creator:
            self._leave()

    @property
    def _account(self) -> Account | None:
        return node_account(self.user)

    def _url(self) -> str | None:
        return (self._record() or {}).get("url")

    def _runs(self) -> bool:
        return self._record() is not None

    def _start(self, *, detach: bool) -> None:
        _check_folder(self._state)
        if self.port:
            check_port(self.port)
        java = find_java(self.java_home, self._account)
        home = distribution(java, self._account, self.progress)
        if self.name is None:
            self._discard()
            self._folders = self._temporary_folders()
        assert self._folders is not None
        folders = self._folders
        port = str(self.port or (f"{USUAL_PORTS.start}-{USUAL_PORTS.stop - 1}" if self.name else 0))
        try:
            write_configuration(
                folders,
                home,
                java,
                name=self.name or "oskit-temporary",
                port=port,
                heap=self.heap,
                settings=self.settings or {},
            )
            folders.console.unlink(missing_ok=True)  # another file: whoever follows it notices
            folders.console.touch()
            for folder in (folders.config, folders.data, folders.logs, folders.tmp):
                give_to(folder, self._account)
        except OSError as error:
            raise NodeError(
                f"Cannot write the node's folder {folders.root}: {error.strerror or error}",
                hint="Name another in OSKIT_STATE_DIR.",
            ) from None
        command = [str(home / "bin" / "opensearch")]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(folders.tmp),
            "OPENSEARCH_JAVA_HOME": str(java.home),
            "OPENSEARCH_PATH_CONF": str(folders.config),
            "OPENSEARCH_TMPDIR": str(folders.tmp),
            LIBRARY_PATH_VARIABLE: str(home / "natives"),
        }
        self._started_here = True
        atexit.register(self._at_exit)
        try:
            self._write_record(self._spawn(command, environment, detach=detach))
            self._wait()
        except BaseException:
            self.stop()
            raise
        if detach:
            self._started_here = False
            atexit.unregister(self._at_exit)

    def _spawn(self, command: list[str], environment: dict[str, str], *, detach: bool) -> ProcessId:
        assert self._folders is not None
        account = self._account.subprocess_options() if self._account else {}
        request = {
            "command": command,
            "environment": environment,
            "account": account,
            "log": str(self._folders.console),
            "grace": GRACE,
            "delete": None if self.name else str(self._folders.root),
        }
        supervised: dict[str, Any] = {
            "args": [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(request)],
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            # It holds the lock on the temporary folder for as long as it needs the folder.
            "pass_fds": (self._owner.fileno(),) if self._owner else (),
        }
        alone = {"args": command, "env": environment, "stdin": subprocess.DEVNULL, **account}
        try:
            with self._folders.console.open("ab") as log:
                common: dict[str, Any] = {"cwd": "/", "stdout": log, "stderr": log, "start_new_session": True}
                self._child = subprocess.Popen(**{**common, **(alone if detach else supervised)})
        except OSError as error:
            who = f" as the user {self._account.name!r}" if self._account else ""
            raise NodeError(f"Cannot start OpenSearch{who}: {error.strerror or error}") from None
        pid = self._child.pid
        if self._child.stdout is not None:
            with self._child.stdout as answer:
                line = answer.readline()
            if not line:
                raise self._failed("its supervisor failed")
            pid = int(line)
        process = ProcessId.of(pid)
        if process is None:
            raise self._failed("it ended at once")
        return process

    def _wait(self) -> str:
        url = super()._wait()
        process = self._process()
        if process is not None:
            self._write_record(process, url)
        return url

    def _write_record(self, process: ProcessId, url: str | None = None) -> None:
        assert self._folders is not None
        write_record(self._folders.root, {"kind": self.kind, **process._asdict(), "url": url})

    def _listening(self) -> str | None:
        if not self._runs():
            raise self._failed("it ended")
        assert self._folders is not None
        try:
            lines = self._folders.ports.read_text().split()
        except OSError:
            return None
        return f"http://{lines[0]}" if lines else None

    def _record(self) -> dict[str, Any] | None:
        """What the last start wrote down, if what it started still runs."""
        record = read_record(self._folders.root) if self._folders else None
        return record if record and record["kind"] == "process" and process_of(record) else None

    def _process(self) -> ProcessId | None:
        record = self._record()
        return process_of(record) if record else None

    def _failed(self, problem: str) -> NodeError:
        log = self.logs()
        if self.name is not None and self._folders is not None:
            return start_error(problem, log, str(self._folders.console))
        # A temporary node's folder is deleted.
        handle, path = tempfile.mkstemp(prefix="oskit-node-", suffix=".log")
        with os.fdopen(handle, "w") as file:
            file.write(log)
        return start_error(problem, log, path)

    def _temporary_folders(self) -> Folders:
        """A new folder that its lock tells from those that dead processes left; deletes the latter."""
        parent = self._state / ".temporary"
        with locked(parent / ".lock"):
            for left in parent.glob("node-*"):
                with contextlib.suppress(OSError), (left / "owner").open("a") as owner:
                    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            root = Path(tempfile.mkdtemp(prefix="node-", dir=parent))
            root.chmod(0o755)
            self._owner = (root / "owner").open("a")
            fcntl.flock(self._owner, fcntl.LOCK_EX)
        return Folders(root)

    def _discard(self) -> None:
        """Delete the folder of a temporary node."""
        if self.name is not None:
            return
        if self._folders is not None:
            shutil.rmtree(self._folders.root, ignore_errors=True)
            self._folders = None
        if self._owner is not None:
            self._owner.close()
            self._owner = None


def _check_folder(root: Path) -> None:
    if len(str(root).split()) > 1:
        raise NodeError(
            f"OpenSearch's start script cannot work in a folder whose path holds blanks: {root}",
            hint="Name another in OSKIT_STATE_DIR.",
        )


def _disk_usage(folder: Path) -> int:
    """Bytes that the files take on the disk."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # segments come and go
                total += Path(path, name).lstat().st_blocks * 512
    return total
