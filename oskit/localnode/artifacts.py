"""The published artifacts that make a local OpenSearch, by coordinates and checksum.

jgo fetches them into the local Maven repository (``M2_REPO``, else ``~/.m2/repository``) but checks nothing,
so each is pinned to a sha256, and a file that differs is fetched again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from oskit.errors import MissingDependencyError, NodeError
from oskit.localnode.paths import locked

OPENSEARCH_VERSION = "3.6.0"

#: What happens, units done, units in all (None: unknown).
Progress = Callable[[str, float, float | None], None]


class Artifact(NamedTuple):
    """One file of a Maven repository."""

    group: str
    name: str
    version: str
    sha256: str
    packaging: str = "zip"
    classifier: str = ""

    def __str__(self) -> str:
        parts = (self.group, self.name, self.version, self.packaging, self.classifier)
        return ":".join(part for part in parts if part)

    @property
    def filename(self) -> str:
        """The name of the file in a repository."""
        suffix = f"-{self.classifier}" if self.classifier else ""
        return f"{self.name}-{self.version}{suffix}.{self.packaging}"


SERVER = Artifact(
    "org.opensearch.distribution.integ-test-zip",
    "opensearch",
    OPENSEARCH_VERSION,
    "a91faa1dc1cadc78cb278b4f63847e19e1627a4e9de698e14e7efc14ee37b286",
)

#: In the order in which they are installed: each needs those before it.
PLUGINS = tuple(
    Artifact("org.opensearch.plugin", name, f"{OPENSEARCH_VERSION}.0", sha256)
    for name, sha256 in (
        ("opensearch-job-scheduler", "f81d0aa9fc850b18f803292bd7ae68bd33561f6c1d12db0f68529d40eddcee24"),
        ("opensearch-knn", "ac392ca28a39b3bf290648a422ef30cb149dda2963a9d7feb26060e932341c9a"),
        ("opensearch-ml-plugin", "c051d436fe1936da1477bb999db829eb2bc92b12989e376c300d0a874fb90f9d"),
        ("neural-search", "6ef1b206e79391e2e36268e32dc34d27fd8b8a59a8eb0a7393c97d53b038e433"),
    )
)

#: ML Commons would download these two at the first deployment of a model.
PYTORCH_NATIVE = Artifact(
    "ai.djl.pytorch",
    "pytorch-native-cpu",
    "2.5.1",
    "9c4f35fb64cb3fba34340b432c648e1bea044adeee554b473d5882499b16f0a4",
    "jar",
    "linux-x86_64",
)
PYTORCH_JNI = Artifact(
    "ai.djl.pytorch",
    "pytorch-jni",
    "2.5.1-0.32.0",
    "342bde24382eef06e93a2461fd8f293e5c2c6c72caca7d66019d0a9447d96265",
    "jar",
)

ARTIFACTS = (SERVER, *PLUGINS, PYTORCH_NATIVE, PYTORCH_JNI)
ARTIFACTS_MB = 655
"""Of all of them, measured; they stay in Maven's cache, beside 1.0 GB of what is made of them."""


def resolve(artifact: Artifact, progress: Progress | None = None) -> Path:
    """The path of ``artifact`` in the local Maven repository, fetched if it is not there.

    A file with another checksum (an interrupted or broken download) is deleted and fetched again, once.
    Several processes may call this at the same time; a file appears under its name only when it is whole.

    Raises:
        NodeError: It cannot be fetched, or what arrives has another checksum.
        MissingDependencyError: jgo is not installed.
    """
    cached = _cached_path(artifact)
    try:
        with locked(_repository() / ".oskit.lock"):
            if cached.is_file():
                if sha256_of(cached) == artifact.sha256:
                    return cached
                cached.unlink()
            return _fetch(artifact, cached, progress)
    except OSError as error:
        raise NodeError(
            f"Cannot keep {artifact} in {_repository()}: {error.strerror or error}",
            hint="Name a folder that can be written, on a disk with 1 GB free, in M2_REPO.",
        ) from None


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _fetch(artifact: Artifact, cached: Path, progress: Progress | None) -> Path:
    cached.parent.mkdir(parents=True, exist_ok=True)
    found = "nothing"
    for _ in range(2):
        # A folder beside the final place: the same file system, so that the last step is one rename.
        with tempfile.TemporaryDirectory(prefix=".oskit-", dir=cached.parent) as staging:
            arrived = _download(artifact, Path(staging), progress)
            found = sha256_of(arrived)
            if found == artifact.sha256:
                arrived.replace(cached)
                return cached
    raise NodeError(
        f"{artifact} arrived twice with the wrong checksum: sha256 {found}, not {artifact.sha256}",
        hint="Something between this machine and the repository changes or cuts files off; try again later.",
    )


def _download(artifact: Artifact, repository: Path, progress: Progress | None) -> Path:
    """Let jgo fetch ``artifact`` into ``repository``; three attempts against a network that falters."""
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError:
        raise MissingDependencyError.for_extra("Fetching OpenSearch", "jgo", "node") from None
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

    context = MavenContext(
        repo_cache=repository,
        timeout=60,
        resolver=PythonResolver(progress_callback=_jgo_progress(progress)),
    )
    component = context.project(artifact.group, artifact.name).at_version(artifact.version)
    wanted: Any = component.artifact(packaging=artifact.packaging, classifier=artifact.classifier)

    def attempt() -> Path:
        wanted.cached_path.unlink(missing_ok=True)
        return Path(wanted.resolve())

    try:
        retrying = Retrying(
            stop=stop_after_attempt(3),
            wait=wait_exponential(multiplier=1, max=8),
            retry=retry_if_exception_type(OSError),  # what requests raises
            reraise=True,
        )
        return retrying(attempt)
    except (OSError, RuntimeError) as error:
        raise NodeError(
            f"Cannot fetch {artifact}: {str(error)[:300]}",
            hint=f"Check the network, or put {artifact.filename} (sha256 {artifact.sha256}) at "
            f"{_cached_path(artifact)} yourself.",
        ) from None


def _jgo_progress(progress: Progress | None) -> Any:
    if progress is None:
        return None

    @contextmanager
    def transfer(filename: str, size: int) -> Iterator[Callable[[int], None]]:
        done = 0

        def update(count: int) -> None:
            nonlocal done
            done += count
            progress(f"Fetching {filename}", done / 1e6, size / 1e6)

        yield update

    return transfer


def _repository() -> Path:
    """The local Maven repository, by the rule of Maven and jgo."""
    return Path(os.environ.get("M2_REPO") or Path.home() / ".m2" / "repository")


def _cached_path(artifact: Artifact) -> Path:
    folders = (*artifact.group.split("."), artifact.name, artifact.version)
    return _repository().joinpath(*folders, artifact.filename)
