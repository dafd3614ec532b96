"""Loads into a data stream, which takes a document once, with its time, and never another in its place.

Seen on OpenSearch 3.6: a stream takes ``create`` alone; the same id twice is a conflict only as long as both
are sent to the same of its indexes, and two documents from then on. So ids are looked for in all of them
before. What its index template does not map, the next of its indexes lacks: so the template has to have the
fields that a load needs, and is not touched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.existing import ExistingIndex
from oskit.cluster.index.given import expanded, flat_settings
from oskit.cluster.index.mapping import EncodeMode, IndexInfo, IndexSettings, own_fields
from oskit.cluster.index.meta import META_KEY, own_meta
from oskit.cluster.index.sparse_fields import definition_of
from oskit.cluster.ingest.known import Known, mark_of, marks_there, state_of
from oskit.data.documents import Document
from oskit.data.values import clean_text
from oskit.errors import IndexingError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.names import Target


class Appended(Known):
    """Knows the documents of a data stream; those that have another content there go nowhere."""

    def _sifted(self, documents: Sequence[Document]) -> Sequence[Document]:
        assert self._recipe is not None
        self._refresh()
        ids = [clean_text(document.id) for document in documents]
        there = marks_there(self._client, self._index, ids)
        wanted = []
        for identity, document in zip(ids, documents, strict=True):
            state = state_of(self._recipe, identity, document)
            found = there.get(identity, ())
            if not found:
                self._marks[document.id] = mark_of(state, 1)
                wanted.append(document)
            elif not any(mark == mark_of(state, version) for version, mark in found):
                self.stays.append(document)
        return wanted


def check_usage(target: Target, encode: EncodeMode, *, recreate: bool) -> None:
    """Refuse what cannot be had of a data stream.

    Raises:
        UsageError: Names it.
    """
    if recreate:
        raise UsageError(
            f"{target} cannot be recreated", hint=f"Delete it: DELETE _data_stream/{target.asked}"
        )
    if encode == "cluster":
        raise UsageError(
            f"{target} makes its indexes by its index template, and an ingest pipeline of one would be lost",
            hint="Use --encode client, or give the template a default_pipeline, for all writers",
        )


def as_loaded(
    client: OpenSearch, target: Target, existing: ExistingIndex, info: IndexInfo, settings: IndexSettings
) -> ExistingIndex:
    """The last index of a data stream, with what is recorded of those before it where it has no record yet.

    Raises:
        UsageError, IndexingError: Its template, or the index itself, lacks what a load needs.
    """
    _check_template(client, target, existing, settings)
    if own_meta(existing.mapping):
        return existing
    with cluster_errors(f"read {target}", IndexingError):
        answer: dict[str, Any] = client.indices.get_mapping(index=target.asked)
        is_empty = not client.count(index=target.asked)["count"]
    known = [own for part in target.parts if (own := own_meta(answer.get(part, {}).get("mappings") or {}))]
    if not known and not is_empty:
        return existing  # of others
    record = known[-1] if known else info.to_meta()
    mapping = {**existing.mapping, "_meta": {**(existing.mapping.get("_meta") or {}), META_KEY: record}}
    return replace(existing, mapping=mapping)


def _check_template(
    client: OpenSearch, target: Target, existing: ExistingIndex, settings: IndexSettings
) -> None:
    with cluster_errors(f"see the index template of {target}", IndexingError):
        (stream,) = client.indices.get_data_stream(name=target.asked)["data_streams"]
        given = client.indices.simulate_template(name=stream["template"]).get("template") or {}
    needed = expanded(own_fields(settings))
    sparse = settings.kind == "sparse_vector"
    sides = (
        (
            f"the index template of {target}",
            given.get("mappings") or {},
            flat_settings(given.get("settings") or {}),
        ),
        (f"the index {existing.name}", existing.mapping, flat_settings(existing.settings)),
    )
    for who, mapping, has in sides:
        fields = expanded(mapping.get("properties") or {})
        lacking = {name: field for name, field in needed.items() if not _has(fields, name, field)}
        if lacking or (sparse and str(has.get("sparse")).lower() != "true"):
            body: dict[str, Any] = {"settings": {"index.sparse": True}} if sparse else {}
            body["mappings"] = {"properties": needed}
            raise IndexingError(
                f"{who} has not what a load needs: {', '.join(lacking) or 'index.sparse'}",
                hint=f"Have it in the template ({json.dumps(body)}), and begin an index by it: "
                f"POST {target.asked}/_rollover",
            )


def _has(fields: Mapping[str, Any], name: str, wanted: Mapping[str, Any]) -> bool:
    there = definition_of(fields, name)
    inner = wanted.get("properties") or {}
    return there.get("type", "object") == wanted.get("type", "object") and all(
        _has(there.get("properties") or {}, each, field) for each, field in inner.items()
    )
