"""The server, its plugins and the PyTorch natives, assembled once and shared by all nodes.

The folder is only read afterwards: each node has its own configuration, data and logs.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from oskit.errors import NodeError
from oskit.localnode.artifacts import (
    ARTIFACTS,
    OPENSEARCH_VERSION,
    PLUGINS,
    SERVER,
    Progress,
    resolve,
)
from oskit.localnode.java import Java
from oskit.localnode.natives import write_natives
from oskit.localnode.paths import cache_root, locked
from oskit.localnode.service_account import Account

#: Raise it when the folder is put together differently, so that no old one is used.
RECIPE = "2"
_PARTIAL = ".assembling-"


def distribution_folder(account: Account | None) -> Path:
    """Where the complete OpenSearch is, or will be."""
    content = hashlib.sha256(" ".join([RECIPE, *(a.sha256 for a in ARTIFACTS)]).encode()).hexdigest()
    return cache_root(account) / f"opensearch-{OPENSEARCH_VERSION}-{content[:12]}"


def check_platform(hint: str) -> None:
    """Refuse another machine before anything is fetched. ONNX Runtime in the plugin ML Commons has no library
    for others either (3.6: linux-x64 and win-x64), so that no pin more would make ONNX models run there.

    Raises:
        NodeError: This is not Linux on x86-64.
    """
    if (found := f"{platform.system()} {platform.machine()}") not in ("Linux x86_64", "Linux AMD64"):
        raise NodeError(
            f"The native libraries of a local OpenSearch are for Linux x86_64; this is {found}", hint=hint
        )


def distribution(java: Java, account: Account | None, progress: Progress | None = None) -> Path:
    """The folder of a complete OpenSearch; fetches and assembles it if it is not cached.

    It is assembled under another name and renamed when it is whole, so an interrupted assembly is never
    used. Needs no network once it is there.

    Raises:
        NodeError: Fetching or assembling failed, or there is no OpenSearch for this machine.
    """
    home = distribution_folder(account)
    root = home.parent
    if home.is_dir():
        return home
    check_platform("Start one in a container (oskit node start --docker), or use a cluster by OSKIT_URL")
    with locked(root / ".lock"):
        if home.is_dir():
            return home
        for left in root.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=root, ignore_cleanup_errors=True) as partial:
            try:
                assembled = assemble(Path(partial), java, progress)
            except OSError as error:
                raise NodeError(
                    f"Cannot assemble OpenSearch in {root}: {error.strerror or error}",
                    hint="It needs 1 GB; another folder can be named in OSKIT_CACHE_DIR.",
                ) from None
            # Without it a crash of the machine could leave the name with half of the files' contents.
            os.sync()
            assembled.rename(home)
    return home


def assemble(folder: Path, java: Java, progress: Progress | None = None) -> Path:
    """Put a complete OpenSearch together in ``folder`` and return its root."""
    files = {artifact: resolve(artifact, progress) for artifact in ARTIFACTS}
    if progress:
        progress("Assembling OpenSearch", 0, None)
    _extract(files[SERVER], folder)
    home = folder / f"opensearch-{OPENSEARCH_VERSION}"
    _install_plugins(home, [files[plugin] for plugin in PLUGINS], java)
    write_natives(home / "natives")
    for path in (home, *home.rglob("*")):
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    return home


def _extract(archive: Path, folder: Path) -> None:
    """Like ``ZipFile.extractall``, which loses the executable bits."""
    with zipfile.ZipFile(archive) as files:
        for info in files.infolist():
            path = Path(files.extract(info, folder))
            if (info.external_attr >> 16) & 0o111 and not info.is_dir():
                path.chmod(0o755)


def _install_plugins(home: Path, plugins: list[Path], java: Java) -> None:
    """By OpenSearch's own installer, which checks versions and what each plugin needs."""
    answer = subprocess.run(
        [home / "bin" / "opensearch-plugin", "install", "--batch", *(path.as_uri() for path in plugins)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "OPENSEARCH_JAVA_HOME": str(java.home),
            "OPENSEARCH_PATH_CONF": str(home / "config"),
        },
    )
    if answer.returncode != 0:
        lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
        cause = next((line for line in lines if "ERROR" in line or "Exception" in line), (lines or ["?"])[-1])
        raise NodeError(f"Installing OpenSearch's plugins failed: {cause[:300]}")
