"""The machine and the installed packages."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

from oskit.doctor.finding import Finding
from oskit.errors import OskitError
from oskit.extras import requirements
from oskit.memory import available_memory

EXTRAS = {
    "export": "loading encoders with torch and exporting them",
    "train": "training encoders",
    "evaluate": "BM25 beside encoders",
    "node": "a local OpenSearch",
    "report": "plots and the HTML report",
    "parquet": "reading Parquet files",
    "aws": "requests signed for AWS",
    "demo": "oskit demo",
}
MEMORY_FOR_A_NODE = 3 << 30  # 1 GB of heap, and as much again for Lucene, the model and libtorch
DISK_FOR_A_NODE = 4 << 30  # what the unpacked distribution with ML Commons takes, and room for an index


def check_machine() -> list[Finding]:
    """Look at Python, memory, disk, Java, Docker and every package that oskit declares."""
    return [_python(), _memory(), _disk(), _java(), _docker(), _core_packages(), *_extras()]


def _python() -> Finding:
    detail = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        advice = "A local OpenSearch needs Linux; everything else works"
        return Finding("machine", "python", "warning", f"{detail}, {os.cpu_count()} cores", advice)
    return Finding("machine", "python", "ok", f"{detail}, {os.cpu_count()} cores")


def _memory() -> Finding:
    available = available_memory()
    if available is None:
        return Finding("machine", "memory", "skipped", "the system does not say how much is available")
    detail = f"{_gigabytes(available)} available"
    if available < MEMORY_FOR_A_NODE:
        advice = f"A local OpenSearch wants {_gigabytes(MEMORY_FOR_A_NODE)}; use a cluster elsewhere"
        return Finding("machine", "memory", "warning", detail, advice)
    return Finding("machine", "memory", "ok", detail)


def _disk() -> Finding:
    from oskit.localnode.paths import cache_choice
    from oskit.localnode.service_account import node_account

    try:
        folder = cache_choice(node_account())
    except OskitError as error:
        return Finding("machine", "disk", "warning", error.message, error.hint)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{_gigabytes(free)} free for {folder}"
    if free < DISK_FOR_A_NODE:
        advice = (
            f"A local OpenSearch wants {_gigabytes(DISK_FOR_A_NODE)}; set OSKIT_CACHE_DIR to a larger disk"
        )
        return Finding("machine", "disk", "warning", detail, advice)
    return Finding("machine", "disk", "ok", detail)


def _java() -> Finding:
    from oskit.localnode.java import find_java

    try:
        java = find_java()
    except OskitError as error:
        return Finding("machine", "java", "warning", f"{error.message} (for a local OpenSearch)", error.hint)
    return Finding("machine", "java", "ok", f"Java {java.version} in {java.home}")


def _docker() -> Finding:
    advice = "Only `oskit node start --docker` needs it; `oskit node start` works without"
    try:
        import docker
    except ImportError:
        return Finding("machine", "docker", "skipped", "the docker package is not installed", advice)
    try:
        client = docker.from_env(timeout=5)
        version = client.version()["Version"]
        client.close()
    except docker.errors.DockerException:
        return Finding("machine", "docker", "skipped", "no Docker engine answers", advice)
    return Finding("machine", "docker", "ok", f"Docker engine {version}")


def _core_packages() -> Finding:
    problems = list(_problems(extra=None))
    if problems:
        return Finding("packages", "core", "failure", "; ".join(problems), "pip install --upgrade oskit")
    return Finding("packages", "core", "ok", f"oskit {metadata.version('oskit')} and all that it needs")


def _extras() -> Iterator[Finding]:
    for extra, purpose in EXTRAS.items():
        problems = list(_problems(extra))
        if not problems:
            yield Finding("packages", extra, "ok", purpose)
            continue
        advice = f"For {purpose}: pip install 'oskit[{extra}]'"
        yield Finding("packages", extra, "skipped", "; ".join(problems), advice)


def _problems(extra: str | None) -> Iterator[str]:
    """What is missing or too old among the requirements of ``extra`` (of the core if None)."""
    missing: list[str] = []
    for requirement in requirements(extra):
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            yield f"{requirement.name} {installed} is not {requirement.specifier}"
    if missing:
        yield f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.1f} GB"
