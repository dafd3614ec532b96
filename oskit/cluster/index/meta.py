"""The one owner of an index's ``_meta``: what others keep there, and our other entries, stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

META_KEY = "oskit"


def own_meta(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """``_meta.oskit`` of a mapping; empty in one that is not ours."""
    found = (mapping.get("_meta") or {}).get(META_KEY)
    return dict(found) if isinstance(found, Mapping) else {}


def read_own_meta(client: OpenSearch, index: str) -> dict[str, Any]:
    """``_meta.oskit`` of an index."""
    return own_meta(next(iter(client.indices.get_mapping(index=index).values()))["mappings"])


def changed_meta(mapping: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Body of the request that sets entries of ``_meta.oskit``, or removes those that are None."""
    own = {key: value for key, value in {**own_meta(mapping), **changes}.items() if value is not None}
    return {"_meta": {**(mapping.get("_meta") or {}), META_KEY: own}}


def change_own_meta(client: OpenSearch, index: str, changes: Mapping[str, Any]) -> None:
    """Set entries of ``_meta.oskit``, or remove those that are None; the cluster replaces it whole."""
    mapping = next(iter(client.indices.get_mapping(index=index).values()))["mappings"]
    client.indices.put_mapping(index=index, body=changed_meta(mapping, changes))
