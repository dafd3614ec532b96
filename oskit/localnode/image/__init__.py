"""Build an image of OpenSearch without any public image, from what this machine has and can fetch."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple

from oskit.errors import NodeError, UsageError
from oskit.localnode.artifacts import ARTIFACTS, OPENSEARCH_VERSION, Progress
from oskit.localnode.configuration import ML_SETTINGS, to_yaml
from oskit.localnode.distribution import RECIPE, check_platform, distribution
from oskit.localnode.engine import docker_engine
from oskit.localnode.java import Java, find_java
from oskit.localnode.service_account import node_account

DEFAULT_TAG = f"oskit-opensearch:{OPENSEARCH_VERSION}"

_LABEL = "oskit.recipe"
_FILES = ("Dockerfile", "entrypoint.sh")
_PACKAGES = "ca-certificates,libstdc++6,libgomp1,procps,zlib1g"
#: Parts of a JDK that a server does not need; half of its size.
_JDK_LEFT_OUT = ("lib/src.zip", "jmods", "demo", "man", "include", "lib/ct.sym")


class Image(NamedTuple):
    """An image in the Docker engine.

    Attributes:
        tag: Its name.
        id: Its short id.
        bytes: Its size on the disk.
        built: Whether it was built now; False if it was there and up to date.
    """

    tag: str
    id: str
    bytes: int
    built: bool


def build_image(tag: str | None = None, *, force: bool = False, progress: Progress | None = None) -> Image:
    """Build the image, unless one of that name was made by the same recipe of the same parts.

    It is a Debian system (debootstrap, from the mirror that this machine's apt uses), this machine's Java,
    the published artifacts with the PyTorch natives, ML settings for a single node, a user that is not root,
    and an entrypoint that behaves like the official image's.

    Raises:
        NodeError: No Docker engine, no debootstrap, not root, no Java, or a step failed.
    """
    check_platform("Pull the official image instead: docker pull opensearchproject/opensearch")
    name = tag or DEFAULT_TAG
    java = find_java()
    recipe = _recipe(java)
    engine = docker_engine(timeout=3600)
    if not force and (found := _up_to_date(engine, name, recipe)):
        return found
    _check_machine()
    home = distribution(java, node_account(), progress)
    with tempfile.TemporaryDirectory(prefix="oskit-image-") as folder:
        if progress:
            progress("Making a Debian system", 0, None)
        root = _debootstrap(Path(folder) / "root")
        if progress:
            progress("Building the image", 0, None)
        # Not in the folder of temporary files, which may be memory: it takes 1.5 GB.
        with tempfile.TemporaryFile(dir=home.parent) as context:
            try:
                with tarfile.open(fileobj=context, mode="w") as archive:
                    _write_context(archive, root, java, home)
            except OSError as error:
                raise NodeError(f"Cannot collect the parts of the image: {error}") from None
            context.seek(0)
            _build(engine, name, recipe, context, progress)
    image = engine.images.get(name)
    return Image(name, image.short_id, image.attrs["Size"], True)


def _recipe(java: Java) -> str:
    """A digest of everything that the image is made of."""
    digest = hashlib.sha256()
    for part in (RECIPE, *(a.sha256 for a in ARTIFACTS), java.version, _PACKAGES, repr(ML_SETTINGS)):
        digest.update(part.encode() + b"\n")
    for file in _FILES:
        digest.update((Path(__file__).parent / file).read_bytes())
    return digest.hexdigest()


def _up_to_date(engine: Any, name: str, recipe: str) -> Image | None:
    import docker.errors

    try:
        image = engine.images.get(name)
    except docker.errors.ImageNotFound:
        return None
    except docker.errors.APIError as error:
        raise UsageError(f"{name!r} is not a name for an image: {error.explanation}") from None
    if image.labels.get(_LABEL) != recipe:
        return None
    return Image(name, image.short_id, image.attrs["Size"], False)


def _check_machine() -> None:
    if shutil.which("debootstrap", path=_path()) is None:
        raise NodeError(
            "The image is made of a Debian system, and debootstrap is not installed",
            hint="On Debian and Ubuntu: apt-get install debootstrap. Elsewhere use the official image.",
        )
    if os.geteuid() != 0:
        raise NodeError("debootstrap needs root", hint="Run it as root: sudo oskit node image build")


def _path() -> str:
    # Ordinary users' PATH has no sbin, where debootstrap is.
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _debootstrap(root: Path) -> Path:
    """A minimal Debian system of this machine's release, else of the current stable one."""
    release = platform.freedesktop_os_release()
    suite = release.get("VERSION_CODENAME", "") if release.get("ID") in ("debian", "ubuntu") else ""
    suite = suite or "stable"
    mirror = _mirror(suite)
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, str(root)]
    answer = subprocess.run(
        command + ([mirror] if mirror else []),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": _path()},
    )
    if answer.returncode != 0:
        lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
        problems = [line for line in lines if line.startswith(("E:", "W:"))] or lines
        raise NodeError(f"debootstrap {suite} failed: {' | '.join(problems[-2:])[:400]}")
    # Packages as they were downloaded: dead weight.
    shutil.rmtree(root / "var" / "cache" / "apt" / "archives", ignore_errors=True)
    shutil.rmtree(root / "var" / "lib" / "apt" / "lists", ignore_errors=True)
    return root


def _mirror(suite: str) -> str | None:
    """The archive that this machine's apt is configured to use, or None for debootstrap's default."""
    try:
        answer = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    for line in answer.stdout.splitlines():
        site, _, release = line.rpartition(" ")
        if release == suite:
            return site
    return None


def _write_context(archive: tarfile.TarFile, root: Path, java: Java, home: Path) -> None:
    """The build context: recipe, system, Java and server."""
    for file in _FILES:
        archive.add(Path(__file__).parent / file, file, filter=_executable)
    with tempfile.TemporaryFile() as inner:
        with tarfile.open(fileobj=inner, mode="w") as system:
            system.add(root, ".")
        info = tarfile.TarInfo("rootfs.tar")
        info.size = inner.tell()
        inner.seek(0)
        archive.addfile(info, inner)
    _add_java(archive, java)
    for path in sorted(home.iterdir()):
        if path.name != "logs":
            archive.add(path, f"opensearch/{path.name}", filter=_without_settings)
    settings = (home / "config" / "opensearch.yml").read_text()
    settings += to_yaml({"network.host": "0.0.0.0", **ML_SETTINGS})  # noqa: S104 - as the official image
    info = tarfile.TarInfo("opensearch/config/opensearch.yml")
    info.size, info.mode = len(settings.encode()), 0o644
    archive.addfile(info, io.BytesIO(settings.encode()))
    for folder in ("logs", "data"):
        info = tarfile.TarInfo(f"opensearch/{folder}")
        info.type, info.mode = tarfile.DIRTYPE, 0o775
        archive.addfile(info)


def _add_java(archive: tarfile.TarFile, java: Java) -> None:
    """The runtime without sources and modules for linking; links out of it become files."""
    for folder, folders, files in os.walk(java.home, followlinks=True):
        relative = Path(folder).relative_to(java.home)
        folders[:] = [f for f in folders if str(relative / f) not in _JDK_LEFT_OUT]
        for name in files:
            path = Path(folder, name).resolve()
            if path.is_file() and str(relative / name) not in _JDK_LEFT_OUT:
                archive.add(path, str("jdk" / relative / name))


def _executable(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mode |= 0o555
    return info


def _without_settings(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if info.name == "opensearch/config/opensearch.yml" else info


def _build(engine: Any, name: str, recipe: str, context: IO[bytes], progress: Progress | None) -> None:
    import docker.errors

    try:
        answers = engine.api.build(
            fileobj=context,
            custom_context=True,
            tag=name,
            labels={_LABEL: recipe},
            rm=True,
            forcerm=True,
            decode=True,
        )
        for answer in answers:
            if "error" in answer:
                raise NodeError(f"Building {name} failed: {answer['error'].strip()[:400]}")
            if progress and (step := answer.get("stream", "").strip()).startswith("Step "):
                progress(step, 0, None)
    except (docker.errors.DockerException, OSError) as error:
        raise NodeError(f"Building {name} failed: {str(error)[:400]}") from None
