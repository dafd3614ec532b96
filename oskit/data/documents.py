"""What a record of a file becomes: a document, or a refusal that says why not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oskit.data.chunks import Chunk
from oskit.data.values import clean_value, text_of
from oskit.data.vectors import Vector

OSKIT_KEY = "_oskit"
"""Key of a record that a dead-letter file adds: why the record was refused, and how to read it again."""

MARK_FIELD = "_oskit_mark"
"""Field of an index's documents by which they are known again (:mod:`oskit.cluster.ingest.known`). What is
read has none: in an export of such an index it is left out."""

_OF_A_HIT = frozenset(
    {"_index", "_type", "_id", "_score", "_source", "_version", "_seq_no", "_primary_term", "_routing",
     "sort", "found"}
)  # fmt: skip
"""What stands around a document in OpenSearch's answers and in exports of them."""

MAX_ID_BYTES = 512
"""Longest ``_id`` that OpenSearch takes, in bytes of UTF-8; one longer id fails a whole bulk request."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Args:
        id: The ``_id`` in the index.
        text: What is searched.
        title: Is put in front of the text, see :attr:`passage`.
        fields: The record's other fields, indexed as they are.
        text_field: Name under which the text is indexed.
        title_field: Name under which the title is indexed.
        where: Where it was read, ``file:line``; for messages.
        vector: Its token weights, where they came with it.
        joined: The text is that of several fields, which are among ``fields``; ``text_field`` names them,
            with commas between.
        chunks: The parts that it was cut into, which have a vector each; None if it was not cut.
    """

    id: str
    text: str
    title: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    text_field: str = field(default="text", compare=False)
    title_field: str = field(default="title", compare=False)
    where: str = field(default="", compare=False, repr=False)
    vector: Vector | None = None
    joined: bool = field(default=False, compare=False)
    chunks: Sequence[Chunk] | None = field(default=None, compare=False, repr=False)
    _digest: bytes | None = field(default=None, init=False, compare=False, repr=False)

    @property
    def passage(self) -> str:
        """What is encoded: title and text joined by a space, as in BEIR."""
        return f"{self.title} {self.text}".strip() if self.title else self.text

    @property
    def encoded_texts(self) -> Sequence[str]:
        """What gets a vector each: its chunks, or else its passage."""
        return (self.passage,) if self.chunks is None else [chunk.text for chunk in self.chunks]

    def source(self) -> dict[str, Any]:
        """The document's own fields, as they are indexed."""
        own: dict[str, Any] = {self.title_field: self.title} if self.title else {}
        text = {} if self.joined else {self.text_field: self.text}
        return {**own, **text, **self.fields}

    def fields_there(self) -> dict[str, Any]:
        """Its fields by the names that it has or may have, without its texts."""
        text = {} if self.joined else {self.text_field: ""}
        return {**text, self.title_field: "", **self.fields}

    def digest(self) -> bytes:
        """A digest of the content (not of the id), 16 bytes; the same content has the same digest."""
        if self._digest is None:  # a load asks twice: whether it came before, and whether the index has it
            digest = _digest(self.source())
            if self.vector is not None:
                digest = hashlib.blake2b(digest + self.vector.json, digest_size=16).digest()
            object.__setattr__(self, "_digest", digest)
        assert self._digest is not None
        return self._digest


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that cannot become a document.

    Args:
        where: ``file:line``.
        reason: One line.
        raw: The record as it was read; bytes that are not UTF-8 as surrogate escapes.
        id: Its id, if it has one.
    """

    where: str
    reason: str
    raw: str = ""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it was read, before anybody says what its fields mean.

    Args:
        where: ``file:line``.
        values: Its fields.
        raw: As it stood in the file, if that was a line of JSON.
    """

    where: str
    values: Mapping[str, Any]
    raw: str = ""


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Which fields of a record hold its id (None: ``_id`` or ``id``), text, title and vector (None: none).

    Of several fields with text, which have commas between them, the texts are joined in their order. If the
    first of them is the title's, then that is the title; else there is none.
    """

    id: str | None = None
    text: str = "text"
    title: str | None = "title"
    vector: str | None = None
    joined: bool = False

    @classmethod
    def of(cls, id: str | None, text: Sequence[str], title: str | None, vector: str | None) -> FieldNames:
        """The names, where there may be several for the text."""
        if len(text) == 1:
            return cls(id, text[0], title, vector)
        if text[0] == title:
            return cls(id, ",".join(text[1:]), title, vector, joined=len(text) > 2)
        return cls(id, ",".join(text), None, vector, joined=True)

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields of the text."""
        return tuple(self.text.split(",")) if self.joined else (self.text,)


def document_from_record(record: Mapping[str, Any], names: FieldNames, where: str) -> Document:
    """Make a document of a record.

    Of a hit, as a search or an export has it, ``_source`` is the record and ``_id`` its id.

    The id is the record's own, or a hash of the content, so that loading the same file twice gives
    the same ids. Lone surrogates become U+FFFD and NaN becomes null, since JSON has neither.

    Raises:
        ValueError: The record has no text, no vector where one is named, or an id that OpenSearch does not
            take; one line.
    """
    record = _unwrapped(record)
    if isinstance(note := record.get(OSKIT_KEY), Mapping):
        names = FieldNames(
            "_id",
            str(note.get("text_field", names.text)),
            note.get("title_field", names.title),
            names.vector,
            note.get("joined") is True,
        )
    if not any(name in record for name in names.texts):
        known = ", ".join(repr(name) for name in list(record)[:8]) or "none"
        raise ValueError(f"no field {names.text!r} (it has {known}); --text-field names another")
    texts = [text_of(record.get(name), name) for name in names.texts]
    text = " ".join(filter(None, texts)) if names.joined else texts[0]
    title = text_of(record.get(names.title), names.title) if names.title else ""
    dropped = {OSKIT_KEY, MARK_FIELD, "_id", names.title, names.vector}
    dropped |= set() if names.joined else {names.text}
    vector = _vector(record, names.vector) if names.vector is not None else None
    fields = {clean_value(key): clean_value(value) for key, value in record.items() if key not in dropped}
    identity = _identity(record, names)
    if identity is None:
        identity = _digest({names.title or "": title, names.text: text, **fields}).hex()
    return Document(
        identity, text, title, fields, names.text, names.title or "title", where, vector, names.joined
    )


def _vector(record: Mapping[str, Any], name: str) -> Vector:
    if name not in record:
        raise ValueError(f"no field {name!r} with the weights; --embedding-field names another")
    value = record[name]
    return value if isinstance(value, Vector) else Vector.of(name, value)


def _unwrapped(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document inside of a hit; what is not one as it is."""
    source = record.get("_source")
    if not isinstance(source, Mapping) or not record.keys() <= _OF_A_HIT:
        return record
    return {**source, **{name: record[name] for name in ("_id", "_routing") if record.get(name) is not None}}


def _identity(record: Mapping[str, Any], names: FieldNames) -> str | None:
    for name in ("_id", "id") if names.id is None else (names.id,):
        if record.get(name) is None:
            continue
        identity = text_of(record[name], name)
        size = len(identity.encode())
        if not 0 < size <= MAX_ID_BYTES:
            raise ValueError(f"the id in {name!r} has {size} bytes; OpenSearch takes 1 to {MAX_ID_BYTES}")
        return identity
    if names.id is not None:
        raise ValueError(f"no id in the field {names.id!r}")
    return None


def _digest(content: Mapping[str, Any]) -> bytes:
    # ASCII, since documents that were not read from files may hold lone surrogates, which have no UTF-8.
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=16).digest()
