"""Where a mapping has sparse vectors, however deep, and where a document has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SPARSE_TYPES = ("rank_features", "sparse_vector")

SEMANTIC_INFO = "_semantic_info"
"""What the name of a ``semantic`` field's own object ends with."""


@dataclass(frozen=True)
class SparseField:
    """A field of sparse vectors.

    Attributes:
        path: Its name, with dots.
        type: ``rank_features`` or ``sparse_vector``.
        nested: The ``nested`` objects that hold it; None if each document has one vector.
        text: The ``semantic`` field that it belongs to, which holds the text.
        model_id: What encodes documents, if the mapping says so.
        query_model_id: What encodes queries, if it is another.
        prune: Which weights a ``semantic`` field keeps, as ``TYPE:RATIO``; a tenth of the largest by default.
    """

    path: str
    type: str
    nested: str | None = None
    text: str | None = None
    model_id: str | None = None
    query_model_id: str | None = None
    prune: str | None = None


def sparse_fields(properties: Mapping[str, Any]) -> list[SparseField]:
    """All fields of sparse vectors in a mapping's ``properties``, in its order."""
    return list(_fields(properties, "", None, None))


def _fields(
    properties: Mapping[str, Any], prefix: str, nested: str | None, semantic: tuple[str, Any] | None
) -> Iterator[SparseField]:
    for name, definition in properties.items():
        path = f"{prefix}{name}"
        kind = definition.get("type")
        if kind in SPARSE_TYPES:
            yield SparseField(path, kind, nested, **(_of_semantic(*semantic) if semantic else {}))
        of_text = properties.get(name.removesuffix(SEMANTIC_INFO), {})
        is_info = name.endswith(SEMANTIC_INFO) and of_text.get("type") == "semantic"
        owner_of_these = (path.removesuffix(SEMANTIC_INFO), of_text) if is_info else semantic
        inside = definition.get("properties") or {}
        yield from _fields(inside, f"{path}.", path if kind == "nested" else nested, owner_of_these)


def vector_paths(properties: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """All fields of vectors in a mapping's ``properties``, dense ones too."""
    for name, definition in properties.items():
        if definition.get("type") in (*SPARSE_TYPES, "knn_vector"):
            yield f"{prefix}{name}"
        yield from vector_paths(definition.get("properties") or {}, f"{prefix}{name}.")


def _of_semantic(text: str, definition: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        "prune_type": "max_ratio",
        "prune_ratio": 0.1,
        **(definition.get("sparse_encoding_config") or {}),
    }
    rule = f"{config['prune_type']}:{config['prune_ratio']}"
    return {
        "text": text,
        "model_id": definition.get("model_id"),
        "query_model_id": definition.get("search_model_id"),
        "prune": None if config["prune_type"] == "none" else rule,
    }


def definition_of(properties: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The definition of a field in a mapping's ``properties``; empty if there is none."""
    found: dict[str, Any] = {"properties": properties}
    for name in path.split("."):
        found = (found.get("properties") or {}).get(name) or {}
    return found


def vectors_of(source: Mapping[str, Any], path: str) -> list[dict[str, float]]:
    """The vectors of a document at a path: several where objects on the way are many."""
    found = _values(source, path)
    return [{str(key): float(weight) for key, weight in each.items() if weight} for each in found]


def value_at(source: Mapping[str, Any], path: str) -> Any:
    """What a document has at a path, be its dots in one name or in the names of objects within objects."""
    if path in source:
        return source[path]
    name, _, rest = path.partition(".")
    inside = source.get(name)
    return value_at(inside, rest) if rest and isinstance(inside, dict) else None


def _values(source: object, path: str) -> Iterator[Mapping[str, Any]]:
    """What stands at a path, be its dots in one name or in the names of objects within objects."""
    if isinstance(source, list):
        for each in source:
            yield from _values(each, path)
    elif isinstance(source, dict):
        if isinstance(source.get(path), dict):
            yield source[path]
        for name, value in source.items():
            if path.startswith(f"{name}."):
                yield from _values(value, path[len(name) + 1 :])


def has_field(source: object, path: str) -> bool:
    """Whether there is anything at a path of a document, in one object or in one of many."""
    if isinstance(source, list):
        return any(has_field(each, path) for each in source)
    if not isinstance(source, dict):
        return False
    return path in source or any(
        has_field(value, path[len(name) + 1 :])
        for name, value in source.items()
        if path.startswith(f"{name}.")
    )


def without(source: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A document without what stands at a path; objects that held nothing else stay, empty."""
    kept: dict[str, Any] = {}
    for name, value in source.items():
        if name == path:
            continue
        rest = path[len(name) + 1 :] if path.startswith(f"{name}.") else None
        if rest and isinstance(value, dict):
            value = without(value, rest)
        elif rest and isinstance(value, list):
            value = [without(each, rest) if isinstance(each, dict) else each for each in value]
        kept[name] = value
    return kept
