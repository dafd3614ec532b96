"""An index as it is, read in one request: what a load has to fit, and what is put back if it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.given import difference, digest_of, expanded, flat_settings, same
from oskit.cluster.index.mapping import APPROXIMATE_THRESHOLD, IndexInfo, IndexSettings, info_of
from oskit.cluster.index.meta import ADOPTED, META_KEY, own_meta
from oskit.cluster.index.names import one_index, resolve
from oskit.cluster.index.sparse_fields import SEMANTIC_INFO, definition_of
from oskit.data.documents import MARK_FIELD
from oskit.errors import ClusterSettingsError, IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.templates import Template

_GIVEN = ("uuid", "version", "creation_date", "provided_name", "replication", "verified_before_close",
          "resize", "routing_partition_size")  # fmt: skip
_OURS = ("number_of_shards", "number_of_replicas", "auto_expand_replicas", "sparse", "blocks")

_GUESSED: tuple[Mapping[str, Any], ...] = (
    {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}},
    *({"type": name} for name in ("long", "float", "boolean")),
)
"""What OpenSearch makes of a document's field that no mapping names."""


@dataclass(frozen=True)
class ExistingIndex:
    """An index as it is.

    Attributes:
        name: Its own name.
        aliases: With their filters and routings.
        mapping: Its mapping.
        settings: Flat, as in ``index.number_of_shards``.
    """

    name: str
    aliases: Mapping[str, Any]
    mapping: Mapping[str, Any]
    settings: Mapping[str, str]

    @property
    def uuid(self) -> str:
        """What tells it from a later one of the same name."""
        return self.settings["index.uuid"]

    @property
    def is_own(self) -> bool:
        """Whether oskit made it, this version or another."""
        own = own_meta(self.mapping)
        return isinstance(own.get("kind"), str) and ADOPTED not in own

    def is_of_a_write(self, template: Template | None) -> bool:
        """Whether it has nothing but what the cluster makes of a write to a name that is no index.

        Args:
            template: What index templates give an index of its name.
        """
        given = template.mapping if template is not None else {}
        fields, ours = self.mapping.get("properties") or {}, expanded(given.get("properties") or {})
        added = [field for name, field in fields.items() if name not in ours]
        guessed = all(_is_guessed(field) or field == {"type": "date"} for field in added)
        named = set(self.aliases) - set(template.aliases if template is not None else ())
        return guessed and not named and self.mapping.get("_meta") == given.get("_meta")

    @property
    def info(self) -> IndexInfo:
        """How it was made; raises IndexingError if that cannot be known."""
        return info_of(self.name, self.mapping)

    @property
    def is_semantic(self) -> bool:
        """Whether its texts are in a ``semantic`` field, which encodes by itself."""
        return bool(self._passages.get("type") == "semantic")

    @property
    def _passages(self) -> dict[str, Any]:
        fields = self.mapping.get("properties") or {}
        return definition_of(fields, self.info.passage_field or self.info.text_field or "")

    @property
    def meta_of_others(self) -> dict[str, Any]:
        """What others keep in its ``_meta``."""
        return {key: value for key, value in (self.mapping.get("_meta") or {}).items() if key != META_KEY}

    def check_open(self, purpose: str, *, deletes: bool = False, writes: bool = True) -> None:
        """Refuse a closed or blocked index.

        Args:
            purpose: As in "cannot ...": what is wanted of it.
            deletes: Even a block that lets it be deleted is meant to keep it, then.
            writes: Whether documents are to be written; else a block of that alone is none.

        Raises:
            ClusterSettingsError: It is closed, or has a block that does not go away by itself.
        """
        if self.settings.get("index.verified_before_close") == "true":
            raise ClusterSettingsError(
                f"Cannot {purpose} {self.name!r}: the index is closed",
                hint=f"Open it: POST {self.name}/_open",
            )
        ways = ("read_only", "read", "metadata", *(("read_only_allow_delete",) if deletes else ()))
        blocks = [f"index.blocks.{way}" for way in (*(("write",) if writes else ()), *ways)]
        if found := [name for name in blocks if self.settings.get(name) == "true"]:
            raise ClusterSettingsError(
                f"Cannot {purpose} {self.name!r}: {' and '.join(found)} block{'s' * (len(found) == 1)} it",
                hint=f'Lift that first: PUT {self.name}/_settings {{"{found[0]}": null}}',
            )

    def misfit(self, wanted: IndexInfo, settings: IndexSettings) -> tuple[str, str] | None:
        """What keeps documents of ``wanted`` out of it, and the option that lets them in; None if nothing.

        Raises:
            IndexingError: How it was made cannot be known.
        """
        existing = self.info
        if existing.encode is None:
            return "was not made by oskit", ""
        if self.is_semantic != settings.semantic:
            kinds = ("semantic", wanted.kind) if self.is_semantic else (existing.kind, "semantic")
            return f"has the kind {kinds[0]}, not {kinds[1]}", f"Give --index-kind {kinds[0]}"
        return (
            _other_vectors(existing, wanted)
            or _other_texts(existing, wanted)
            or self._other_model(wanted)
            or _other_queries(existing, wanted)
            or self._other(settings)
        )

    def _other_model(self, wanted: IndexInfo) -> tuple[str, str] | None:
        """Which model a ``semantic`` field encodes by, if it is not the one that was asked for."""
        encodes = self._passages.get("model_id") if self.is_semantic else None
        if encodes in (None, wanted.encoder.model_id):
            return None
        field = {**self._passages, "model_id": wanted.encoder.model_id}
        body = json.dumps({"properties": {wanted.passage_field: field}})
        return (
            f"its field {wanted.passage_field!r} encodes by the model {encodes}, not "
            f"{wanted.encoder.model_id}",
            f"Let it encode by the other (PUT {self.name}/_mapping {body})",
        )

    def _other(self, settings: IndexSettings) -> tuple[str, str] | None:
        """Which setting that was asked for it does not have."""
        shards, replicas = (self.settings.get(f"index.number_of_{what}") for what in ("shards", "replicas"))
        if settings.shards is not None and str(settings.shards) != shards:
            return f"has the shards {shards}, not {settings.shards}", f"Give --shards {shards} or none"
        expands = self.settings.get("index.auto_expand_replicas", "false")
        if settings.replicas is not None and (expands != "false" or str(settings.replicas) != replicas):
            has = f"the replicas {replicas}" if expands == "false" else f"auto_expand_replicas {expands}"
            change = (
                f'{{"index": {{"auto_expand_replicas": false, "number_of_replicas": {settings.replicas}}}}}'
            )
            return (
                f"has {has}, not the replicas {settings.replicas}",
                f"Leave --replicas out, or change the index: PUT {self.name}/_settings {change}",
            )
        fields = self.mapping.get("properties") or {}
        method = definition_of(fields, settings.embedding_path).get("method") or {}
        known = {"approximate_threshold": APPROXIMATE_THRESHOLD, **(method.get("parameters") or {})}
        for name, value in settings.sparse_vector.to_dict().items():
            if known.get(name) != value:
                found = known.get(name, "OpenSearch's default")
                return f"has the {name} {found}, not {value}", f"Give {_option(name)} {found} or none"
        return self._other_given(settings)

    def _other_given(self, settings: IndexSettings) -> tuple[str, str] | None:
        """What of the settings and mappings that were given it does not have."""
        absent = digest_of(settings) != self.info.given  # what it was made with may be the cluster's default
        if found := difference(flat_settings(settings.settings), self._own_settings, absent=absent):
            name, there, wanted = found
            change = json.dumps({f"index.{name}": wanted})
            return (
                f"has the setting {name} {_told(there)}, not {_told(wanted)}",
                f"Leave it out of --settings, or change the index (PUT {self.name}/_settings {change})",
            )
        fields = expanded(self.mapping.get("properties") or {})
        has = {**self.mapping, "properties": fields}
        given = {**settings.mapping, "properties": expanded(settings.mappings)}
        if found := difference(given, has, absent=absent):
            name, there, wanted = found
            return f"maps {name} to {_told(there)}, not {_told(wanted)}", "Leave it out of --mappings"
        if settings.analyzer:
            for name in [settings.passage_field, *_names(settings.text_fields)]:
                analyzer = definition_of(fields, name).get("analyzer", "the default")
                if analyzer != settings.analyzer:
                    return f"has the analyzer {analyzer} in {name!r}, not {settings.analyzer}", ""
        return None

    @property
    def _own_settings(self) -> dict[str, str]:
        """Settings that somebody gave it, without ``index.``."""
        return {
            name.removeprefix("index."): value
            for name, value in self.settings.items()
            if value is not None and name.removeprefix("index.").split(".")[0] not in _GIVEN
        }

    def not_kept(self, after: IndexSettings) -> list[str]:
        """What an index that takes its place has not, and oskit did not make: for telling."""
        given = flat_settings(after.settings)
        settings = {
            name: value
            for name, value in self._own_settings.items()
            if name.split(".")[0] not in _OURS
            and not name.startswith("routing.allocation.include._tier")
            and not same(given.get(name), value)
        }
        own = own_meta(self.mapping)
        ours = {own.get("nested") or own.get("field"), own.get("passage_field"), MARK_FIELD}
        fields = self.mapping.get("properties") or {}
        ours |= {
            f"{own.get('passage_field')}{SEMANTIC_INFO}",
            *after.mappings,
            *_names(own.get("text_fields")),
        }
        mapped = [name for name, field in fields.items() if name not in ours and not _is_guessed(field)]
        known = ("_meta", "_source", "date_detection", "properties", *after.mapping)
        mapped += [name for name in self.mapping if name not in known]
        told = (
            [f"the settings {', '.join(f'{key}={value}' for key, value in settings.items())}"]
            if settings
            else []
        )
        return told + ([f"the mapping of {', '.join(mapped)}"] if mapped else [])


def look(client: OpenSearch, name: str) -> ExistingIndex | None:
    """An index as it is; None if there is none.

    Args:
        name: Of the index itself (:func:`oskit.cluster.index.names.resolve`).

    Raises:
        IndexingError: The cluster refuses.
    """
    with cluster_errors(f"read the index {name!r}", IndexingError):
        params = {"flat_settings": "true", "ignore_unavailable": "true"}
        found = client.indices.get(index=name, params=params).get(name)
    return found and ExistingIndex(name, found["aliases"], found["mappings"], found["settings"])


def size_and_writes(client: OpenSearch, index: str) -> tuple[int, int]:
    """Bytes of the primary shards, and the sum of their highest sequence numbers, which each write raises.

    Raises:
        IndexingError: The cluster refuses.
    """
    with cluster_errors(f"read the index {index!r}", IndexingError):
        stats = client.indices.stats(index=index, metric="store", params={"level": "shards"})
    copies = [copy for shard in stats["indices"][index]["shards"].values() for copy in shard]
    writes = sum(int(copy["seq_no"]["max_seq_no"]) for copy in copies if copy["routing"]["primary"])
    return int(stats["_all"]["primaries"]["store"]["size_in_bytes"]), writes


def existing_index(client: OpenSearch, name: str, *, writing: bool = False) -> ExistingIndex:
    """The index that a name stands for, as it is.

    Args:
        name: Of an index, or of an alias.
        writing: Of several behind an alias, its write index.

    Raises:
        IndexingError: There is none, or the name stands for several, or for a data stream that is to be
            written.
    """
    target = resolve(client, name, writing=writing)
    if target is not None and target.parts and writing:
        raise IndexingError(
            f"{name!r} is a data stream, whose next index would not have it",
            hint="What makes its indexes is its index template: give that a default_pipeline",
        )
    found = look(client, one_index(target).index) if target is not None else None
    if found is None:
        raise IndexingError(f"there is no index {name!r}", hint="List them with: GET _cat/indices")
    return found


def _other_vectors(existing: IndexInfo, wanted: IndexInfo) -> tuple[str, str] | None:
    if existing.chunking != wanted.chunking:
        told = f"cut into chunks of {existing.chunking}" if existing.chunking else "not cut into chunks"
        give = f"Give --chunk {existing.chunking}" if existing.chunking else "Leave --chunk out"
        return f"its documents were {told}", give
    for what, option in (
        ("kind", "--index-kind"),
        ("embedding_field", "--embedding-field"),
        ("passage_field", "--passage-field"),
    ):
        before, now = getattr(existing, what), getattr(wanted, what)
        if before != now:
            given = existing.embedding_name if what == "embedding_field" else before
            return f"has the {what.replace('_', ' ')} {before}, not {now}", f"Give {option} {given}"
    first, then = existing.encoder, wanted.encoder
    if first.sha256 and then.sha256 and first.sha256 != then.sha256:
        return (
            f"its vectors are of another encoder: {first.name or 'unnamed'} ({first.sha256[:12]}), not "
            f"{then.name or 'unnamed'} ({then.sha256[:12]})",
            f"Give {'--model' if wanted.encode == 'cluster' else '--archive'} of that one",
        )
    alike = first.sha256 and first.sha256 == then.sha256 and "cluster" not in (existing.encode, wanted.encode)
    if existing.encode != wanted.encode and not alike:
        where = {
            "client": "were encoded here, by --archive",
            "cluster": "were encoded on the cluster, by --model",
            "none": "came with their vectors",
        }
        return f"its documents {where[str(existing.encode)]}", f"Give --encode {existing.encode}"
    if existing.key != wanted.key:
        return f"has the key {existing.key}, not {wanted.key}", ""
    if existing.prune != wanted.prune:
        rule = f"--prune {existing.prune}" if existing.prune else "no --prune"
        return (
            f"its vectors were {f'pruned by {existing.prune}' if existing.prune else 'not pruned'}",
            f"Encode to Parquet with {rule}" if wanted.encode == "none" else f"Give {rule}",
        )
    return None


def _other_texts(existing: IndexInfo, wanted: IndexInfo) -> tuple[str, str] | None:
    """Which fields BM25 searches: by others than before it would not see the documents that are there."""
    before, now = existing.text_fields, wanted.text_fields
    if _names(before) == _names(now) or (wanted.encode == "none" and now is None):
        return None
    told = f"the texts of its documents in {before}" if before else "one text of each document"
    give = f"Give --text-field {before}" if before else "Give --text-field one field, or none"
    return f"has {told}, not in {now or 'one field'}", give


def _other_queries(existing: IndexInfo, wanted: IndexInfo) -> tuple[str, str] | None:
    first, then = existing.encoder, wanted.encoder
    if first.query_sha256 and then.query_sha256 and first.query_sha256 != then.query_sha256:
        return (
            f"its queries are encoded by another tokenizer or encoder: {first.query_sha256[:12]}, not "
            f"{then.query_sha256[:12]}",
            "Give that one with --query-archive and --query-model, or neither",
        )
    return None


def _option(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}" if parameter == "approximate_threshold" else parameter


def _told(value: object) -> str:
    return "unset" if value is None else str(value)


def _names(text_fields: str | None) -> list[str]:
    return [name.split("^")[0] for name in text_fields.split(",")] if text_fields else []


def _is_guessed(field: Mapping[str, Any]) -> bool:
    if field.keys() == {"properties"}:
        return all(_is_guessed(inner) for inner in field["properties"].values())
    return field in _GUESSED
