"""The configuration of one node: its settings, its JVM options and its folders."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oskit.errors import UsageError
from oskit.localnode.java import Java

#: Let models be uploaded and deployed on a single small node; the defaults refuse uploads, nodes without
#: the ml role, a full memory, less than 5 GB of free disk and the eleventh model.
ML_SETTINGS: Mapping[str, Any] = {
    "plugins.ml_commons.allow_registering_model_via_local_file": True,
    "plugins.ml_commons.only_run_on_ml_node": False,
    "plugins.ml_commons.native_memory_threshold": 100,
    "plugins.ml_commons.jvm_heap_memory_threshold": 100,
    "plugins.ml_commons.disk_free_space_threshold": "200mb",
    "plugins.ml_commons.max_model_on_node": 1000,
}
#: Let it work on a nearly full disk: by default no shard is allocated when 85 % are used.
SETTINGS: Mapping[str, Any] = {
    **ML_SETTINGS,
    "discovery.type": "single-node",
    "cluster.routing.allocation.disk.watermark.low": "400mb",
    "cluster.routing.allocation.disk.watermark.high": "300mb",
    "cluster.routing.allocation.disk.watermark.flood_stage": "200mb",
}


class Folders:
    """Where one node keeps what is its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        #: Settings, JVM options and the keystore.
        self.config = root / "config"
        #: Indexes and models.
        self.data = root / "data"
        #: What the server writes, and where it says on which port it listens.
        self.logs = root / "logs"
        #: Temporary files; native libraries are unpacked here, so it must allow execution.
        self.tmp = root / "tmp"
        #: Standard output and error of the server.
        self.console = self.logs / "console.log"
        #: Written by the server when it listens: one ``address:port`` a line.
        self.ports = self.logs / "http.ports"


def default_heap() -> str:
    """A quarter of the memory of this machine, or of the container that this is: 512m at least, 2g at most.

    With a smaller heap the parent breaker answers 429 as soon as a model's chunks arrive.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no limit, or another system
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return f"{min(2048, max(512, memory // 4 >> 20))}m"


def check_heap(heap: str) -> str:
    """A heap size as Java writes it.

    Raises:
        UsageError: It is not a number of megabytes or gigabytes.
    """
    if not re.fullmatch(r"[1-9]\d*[mMgG]", heap):
        raise UsageError(f"{heap!r} is not a heap size", hint="Write it as 1g or 1500m.")
    return heap


def write_configuration(
    folders: Folders, home: Path, java: Java, *, name: str, port: str, heap: str, settings: Mapping[str, Any]
) -> None:
    """Make the folders of a node and write its configuration anew; its data stay.

    Args:
        folders: The node's folders.
        home: The distribution.
        java: What will run it.
        name: Name of the node and of its cluster.
        port: A port, a range (``9200-9299``: the first that is free) or ``0`` (any).
        heap: For example ``1g``.
        settings: Added to `SETTINGS`, or instead of them.
    """
    for folder in (folders.config, folders.tmp):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (folders.config / "jvm.options.d", folders.data, folders.logs, folders.tmp):
        folder.mkdir(parents=True, exist_ok=True)
    folders.ports.unlink(missing_ok=True)
    shutil.copy2(home / "config" / "log4j2.properties", folders.config)
    options = _jvm_options((home / "config" / "jvm.options").read_text(), folders, java)
    (folders.config / "jvm.options").write_text(options)
    (folders.config / "jvm.options.d" / "oskit.options").write_text(
        # Pages are taken when they are used: a heap that is larger than needed then costs nothing.
        f"-Xms{heap}\n-Xmx{heap}\n-XX:-AlwaysPreTouch\n"
    )
    own = {
        "cluster.name": name,
        "node.name": name,
        "path.data": str(folders.data),
        "path.logs": str(folders.logs),
        "network.host": "127.0.0.1",
        "http.port": port,
        "transport.port": "0",
        "node.portsfile": True,
    }
    merged = {**SETTINGS, **own, **settings}
    (folders.config / "opensearch.yml").write_text(to_yaml(merged))


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as ``opensearch.yml`` holds them; JSON is YAML, and quotes what must be quoted."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())


def _jvm_options(text: str, folders: Folders, java: Java) -> str:
    """The distribution's options with this node's folders and without what this Java lacks."""
    lines = []
    for line in text.splitlines():
        if "--add-modules=" in line and line.rsplit("=", 1)[1].strip() not in java.modules:
            continue
        line = re.sub(r"(HeapDumpPath=)data\b", rf"\g<1>{folders.data}", line)
        line = re.sub(r"((?:ErrorFile=|file=|loggc:))logs/", rf"\g<1>{folders.logs}/", line)
        lines.append(line)
    return "\n".join(lines) + "\n"
