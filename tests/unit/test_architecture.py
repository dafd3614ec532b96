"""Imports point to the left of the picture in docs/architecture.md, and in no circle."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = {
    "oskit": "cli integrations playground demo doctor serve training evaluation localnode cluster exporters "
    "encoder archive data errors",
    "oskit.training": "auto loop report objective mining teachers data recipe",
    "oskit.evaluation": "reports live offline",
    "oskit.cluster": "search ingest index models client",
}


def modules() -> dict[str, Path]:
    found = (path for package in ("oskit", "exporters") for path in (ROOT / package).rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in found
    }


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, known: dict[str, Path], *, at_import: bool = False) -> set[str]:
    """Modules of ours that a module imports: anywhere in it, or only when it is imported itself."""
    found = set()
    tree = parsed(path)
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                name if (name := f"{node.module}.{a.name}") in known else node.module for a in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


def room(module: str, package: str) -> str | None:
    if package == "oskit" and module.startswith("exporters"):
        return "exporters"
    return module.removeprefix(f"{package}.").split(".")[0] if module.startswith(f"{package}.") else None


@pytest.mark.parametrize("package", ROWS)
def test_imports_point_to_the_left(package: str) -> None:
    rank = {name: place for place, name in enumerate(reversed(ROWS[package].split()))}
    known = modules()
    wrong = [
        f"{module} imports {target}"
        for module, path in known.items()
        for target in imports(path, known)
        if (here := room(module, package)) in rank
        and (there := room(target, package)) in rank
        and rank[here] < rank[there]
    ]
    assert not wrong


def test_internals_of_the_trainers_libraries_are_imported_in_one_place() -> None:
    """When they move, it is one module that changes."""
    found = {
        f"{path.name}: {node.module}"
        for path in (ROOT / "oskit" / "training").rglob("*.py")
        if path.name != "internals.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module is not None
        if node.module.startswith(("sentence_transformers.", "transformers.", "accelerate."))
    }
    assert not found


def test_no_module_imports_itself_by_way_of_others() -> None:
    """At import time; what a function imports when it runs, and what is for type checkers, is no circle."""
    known = modules()
    graph = {module: imports(path, known, at_import=True) for module, path in known.items()}
    TopologicalSorter(graph).prepare()


def test_the_picture_is_the_documentation_s() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert " → ".join(ROWS["oskit"].split()) in text
