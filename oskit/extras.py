"""Optional packages and the extras that bring them, as oskit's own metadata declares them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from oskit.errors import MissingDependencyError

_DISTRIBUTIONS = {"Stemmer": "pystemmer", "ruamel": "ruamel.yaml"}
"""Modules that are not called like their distribution."""


def requirements(extra: str | None) -> list[Requirement]:
    """What an extra (or the core, if None) declares itself, other extras of oskit aside."""
    declared = (Requirement(line) for line in metadata.requires("oskit") or [])
    return [found for found in declared if found.name != "oskit" and _belongs_to(found, extra)]


def require(purpose: str, extra: str, packages: Iterable[str] | None = None) -> None:
    """Make sure that packages are installed, before work begins that would need them at its end.

    Args:
        purpose: What needs them, such as ``oskit train``.
        extra: The extra that brings them.
        packages: Their distributions; None for all of the extra.

    Raises:
        MissingDependencyError: One is not.
    """
    wanted = set(_names(extra) if packages is None else packages)
    if missing := sorted(name for name in wanted if not is_installed(name)):
        raise MissingDependencyError.for_extra(purpose, missing, extra)


def missing_dependency(purpose: str, error: ImportError) -> MissingDependencyError | None:
    """An import that failed as the error that says what to install; None if no optional package is missing.

    Args:
        purpose: What needs the package, such as ``oskit train``.
        error: What the import raised; that of ``importlib.metadata.version`` will do as well.
    """
    module = (error.name or "").partition(".")[0]
    name = canonicalize_name(_DISTRIBUTIONS.get(module, module))
    try:
        extras = metadata.metadata("oskit").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:  # a source tree that nobody installed
        return None
    brought = {extra: {canonicalize_name(found.name) for found in requirements(extra)} for extra in extras}
    having = [extra for extra in extras if name in brought[extra]]
    if not having or importlib.util.find_spec(module) is not None:
        return None
    smallest = min(having, key=lambda extra: len(brought[extra]))
    return MissingDependencyError.for_extra(purpose, name, smallest)


def _names(extra: str) -> Iterator[str]:
    """Distributions of an extra and of the extras that it includes."""
    yield from (found.name for found in requirements(extra))
    for line in metadata.requires("oskit") or []:
        found = Requirement(line)
        if found.name == "oskit" and _belongs_to(found, extra):
            for inner in found.extras - {extra}:
                yield from _names(inner)


def _belongs_to(requirement: Requirement, extra: str | None) -> bool:
    if extra is None or requirement.marker is None:
        return extra is None and requirement.marker is None
    return requirement.marker.evaluate({"extra": extra}) and not requirement.marker.evaluate({"extra": ""})


def is_installed(name: str) -> bool:
    """Whether a distribution of that name is there."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
