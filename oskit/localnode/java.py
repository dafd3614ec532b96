"""Find a Java runtime that can run OpenSearch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from oskit.errors import NodeError
from oskit.localnode.service_account import Account

MINIMUM_VERSION = 21

_ENVIRONMENT = ("OSKIT_JAVA_HOME", "OPENSEARCH_JAVA_HOME", "JAVA_HOME")
#: Where packages, installers and version managers put JDKs.
_FOLDERS = (
    "/usr/lib/jvm/*",
    "/usr/java/*",
    "/usr/local/java/*",
    "/opt/*",
    "/opt/java/*",
    "~/.jdks/*",
    "~/.sdkman/candidates/java/*",
    "~/.asdf/installs/java/*",
    "~/.local/share/mise/installs/java/*",
    "~/.cache/coursier/jvm/*",
)
_HOW_TO_GET_ONE = (
    f"Install a JDK {MINIMUM_VERSION} or newer (for example the package openjdk-21-jdk-headless or "
    "temurin-21-jdk) or name one in OSKIT_JAVA_HOME."
)


class Java(NamedTuple):
    """A runtime that was tried out: its folder, its version and its modules."""

    home: Path
    version: str
    modules: frozenset[str]

    @property
    def executable(self) -> Path:
        """The program itself."""
        return self.home / "bin" / "java"


def find_java(home: str | Path | None = None, account: Account | None = None) -> Java:
    """The first suitable runtime; each candidate is run, as the user that will run the server.

    Args:
        home: Look here and nowhere else.
        account: The user that must be able to run it; None is the current one.

    Returns:
        Java 21 or newer with the locale data that OpenSearch's analyzers need. The places are, in this
        order: ``OSKIT_JAVA_HOME``, ``OPENSEARCH_JAVA_HOME``, ``JAVA_HOME``, ``PATH``, the usual folders.

    Raises:
        NodeError: There is none; the message says what is wrong with those that were found.
    """
    refused: list[str] = []
    seen: set[Path] = set()
    for candidate in (Path(home),) if home else _candidates():
        resolved = candidate.expanduser().resolve()
        if resolved in seen:
            continue
        seen.add(resolved)
        found = examine(resolved, account)
        if isinstance(found, Java):
            return found
        refused.append(f"{candidate}: {found}")
    if not refused:
        raise NodeError("OpenSearch needs Java and none was found on this machine", hint=_HOW_TO_GET_ONE)
    raise NodeError(
        f"OpenSearch needs Java {MINIMUM_VERSION} or newer; found {'; '.join(refused[:5])}",
        hint=_HOW_TO_GET_ONE,
    )


def examine(home: Path, account: Account | None = None) -> Java | str:
    """Run the Java in ``home``; returns it, or what makes it unsuitable."""
    java = home / "bin" / "java"
    if not java.is_file():
        return "no bin/java in it"
    options = account.subprocess_options() if account else {}
    try:
        # Prints `java.base@25.0.3` and the like: the version and the modules in one start.
        answer = subprocess.run(
            [java, "--list-modules"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
            cwd="/",
            **options,
        )
    except subprocess.TimeoutExpired:
        return "does not answer"
    except OSError as error:
        who = f" by the user {account.name!r}" if account else ""
        return f"cannot be run{who} ({error.strerror})"
    modules = dict(re.findall(r"^([\w.]+)(?:@(\S+))?", answer.stdout, flags=re.MULTILINE))
    version = modules.get("java.base", "")
    if answer.returncode != 0 or not version:
        # Java 8 and older know no modules.
        return f"older than Java {MINIMUM_VERSION}, or broken"
    if int(re.split(r"\D", version)[0] or 0) < MINIMUM_VERSION:
        return f"Java {version}"
    if "jdk.localedata" not in modules:
        return f"Java {version} without locale data (a trimmed runtime), so no index can be created with it"
    return Java(home, version, frozenset(modules))


def _candidates() -> Iterator[Path]:
    for variable in _ENVIRONMENT:
        if value := os.environ.get(variable):
            yield Path(value)
    if on_path := shutil.which("java"):
        yield Path(on_path).resolve().parent.parent
    for pattern in _FOLDERS:
        root = Path(pattern).expanduser()
        try:
            folders = [folder for folder in root.parent.iterdir() if (folder / "bin" / "java").is_file()]
        except OSError:
            continue
        # The newest first, as far as names tell: temurin-25 before temurin-21.
        yield from sorted(
            folders, key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.name)], reverse=True
        )
