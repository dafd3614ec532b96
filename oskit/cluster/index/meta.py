"""The one owner of an index's ``_meta``: what others keep there, and our other entries, stay as they are."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

META_KEY = "oskit"

ADOPTED = "adopted"
"""Entry of an index that others made, and that oskit has only a note in."""

_WRITING = threading.Lock()
"""A release says now and then that it is alive, beside the load that writes into the same index."""


def own_meta(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """``_meta.oskit`` of a mapping; empty in one that is not ours."""
    found = (mapping.get("_meta") or {}).get(META_KEY)
    return dict(found) if isinstance(found, Mapping) else {}


def changed_meta(mapping: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Body of the request that sets entries of ``_meta.oskit``, or removes those that are None."""
    own = {key: value for key, value in {**own_meta(mapping), **changes}.items() if value is not None}
    return {"_meta": {**(mapping.get("_meta") or {}), META_KEY: own}}


def change_own_meta(client: OpenSearch, index: str, changes: Mapping[str, Any]) -> None:
    """Set entries of ``_meta.oskit``, or remove those that are None; the cluster replaces it whole."""
    with _WRITING:
        mapping = next(iter(client.indices.get_mapping(index=index).values()))["mappings"]
        client.indices.put_mapping(index=index, body=changed_meta(mapping, changes))


def replace_own_meta(client: OpenSearch, index: str, entries: Mapping[str, Any] | None) -> None:
    """Have ``_meta.oskit`` be these entries and no others, or take it out; what others keep stays."""
    with _WRITING:
        mapping = next(iter(client.indices.get_mapping(index=index).values()))["mappings"]
        others = {key: value for key, value in (mapping.get("_meta") or {}).items() if key != META_KEY}
        own = {} if entries is None else {META_KEY: dict(entries)}
        client.indices.put_mapping(index=index, body={"_meta": {**others, **own}})


def change_record(client: OpenSearch, index: str, name: str, changes: Mapping[str, Any]) -> None:
    """Set parts of an entry of ``_meta.oskit`` that is an object, or remove those that are None."""
    with _WRITING:
        mapping = next(iter(client.indices.get_mapping(index=index).values()))["mappings"]
        record = {**record_of(mapping, name), **changes}
        left = {key: value for key, value in record.items() if value is not None}
        client.indices.put_mapping(index=index, body=changed_meta(mapping, {name: left}))


def record_of(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An entry of ``_meta.oskit`` that is an object; empty if there is none."""
    found = own_meta(mapping).get(name)
    return dict(found) if isinstance(found, Mapping) else {}
