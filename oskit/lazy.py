"""Public names that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def importer(package: str, homes: Mapping[str, str], purpose: str | None = None) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose names live in the modules ``homes``.

    It raises MissingDependencyError where an optional package that a module needs is not installed;
    ``purpose`` says what for, by default the name.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            from oskit.extras import missing_dependency

            raise missing_dependency(purpose or f"{package}.{name}", error) or error from error
        setattr(sys.modules[package], name, value)
        return value

    return find
