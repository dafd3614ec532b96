"""Which of the records that are read become documents of the index, and windows of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import filterfalse
from typing import TYPE_CHECKING, Any

from oskit.cluster.index.mapping import MAX_SPARSE_VECTOR_VOCABULARY, IndexInfo
from oskit.cluster.ingest.accounting import Account
from oskit.data.documents import MARK_FIELD, MAX_ID_BYTES, Document, Refusal
from oskit.data.duplicates import DuplicateFilter
from oskit.data.values import clean_text, memory_of
from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.archive.text_encoder import KeyFormat, TextEncoder

WINDOW_DOCUMENTS = 512
"""Documents that pass from stage to stage together, and are sorted by length to be encoded; the first window
has few, each later one twice as many, so that a load shows what it does at once."""

FIRST_WINDOW = 16

PEEKED = 100
"""Records that are looked at to tell token texts from token ids."""

WINDOW_CHARACTERS = 4_000_000
"""Text of a window, after which it is full."""

WINDOW_BYTES = 4_000_000
"""Memory of a window's documents with all their fields, after which it is full."""

DOCUMENT_BYTES = 800
"""Memory of a document beside its values, about, with what becomes of it on its way."""

_METADATA = frozenset(
    {"_id", "_index", "_routing", "_source", "_version", "_version_type", "_if_seq_no", "_if_primary_term",
     "_seq_no", "_primary_term", "_field_names", "_ignored", "_nested_path", "_data_stream_timestamp",
     MARK_FIELD}
)  # fmt: skip
"""Names that OpenSearch refuses in a document, or that an ingest pipeline takes out of it (seen on 3.6); and
our own, which no record has."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Window:
    """Documents that pass through the stages of a load together.

    Attributes:
        documents: In the order of reading.
        size: About the memory that they take, in bytes.
    """

    documents: list[Document]
    size: int


class Admission:
    """Looks at each record: whether it can be indexed, and whether it came before.

    Args:
        info: The index.
        encoder: Whose keys the vectors may have that come with documents; None takes any.
        timestamp: The field that each document of a data stream needs.
    """

    def __init__(
        self, info: IndexInfo, encoder: TextEncoder | None = None, timestamp: str | None = None
    ) -> None:
        self._info, self._timestamp = info, timestamp
        self._known: frozenset[str] | None = None
        if info.encode == "none" and encoder is not None:
            vocabulary = encoder.vocabulary
            keys = vocabulary.keys if info.key == "token" else map(str, range(vocabulary.size))
            self._known = frozenset(keys) - {""}
        self._told_of_dots = False

    def check_first(
        self, records: Iterable[Document | Refusal]
    ) -> tuple[Iterator[Document | Refusal], Document | None]:
        """Look at the first record, before anything is made for documents that do not fit.

        Raises:
            UsageError: It has a field of its own that has the name of one of the index.
        """
        stream = iter(records)
        first = next(stream, None)
        if first is None:
            return stream, None
        stream = itertools.chain([first], stream)
        if isinstance(first, Refusal):
            return stream, None
        if own := self._collision(first):
            raise UsageError(f"{first.where or 'the first document'}: {own}")
        return stream, first

    def windows(
        self,
        records: Iterable[Document | Refusal],
        account: Account,
        seen: DuplicateFilter,
        *,
        patient: bool = False,
    ) -> Iterator[Window]:
        """The documents to index; refusals and duplicates are settled here.

        Args:
            seen: Learns the ids of the documents, and tells which of several with one id is taken.
            patient: Go on, even if all that came so far was refused.

        Raises:
            IndexingError: It was.
        """
        window, most = Window([], 0), FIRST_WINDOW
        characters = 0
        for document in self._admitted(records, account, seen, patient):
            window.documents.append(document)
            characters += len(document.passage)
            window.size += DOCUMENT_BYTES + memory_of([document.fields, document.title, document.text])
            window.size += 2 * len(document.vector.json) if document.vector else 0
            if (
                len(window.documents) >= most
                or characters >= WINDOW_CHARACTERS
                or window.size >= WINDOW_BYTES
            ):
                yield window
                window, characters, most = Window([], 0), 0, min(2 * most, WINDOW_DOCUMENTS)
        if window.documents:
            yield window

    def _admitted(
        self, records: Iterable[Document | Refusal], account: Account, seen: DuplicateFilter, patient: bool
    ) -> Iterator[Document]:
        for document, verdict in seen.judge(self._fitting(records, account, patient)):
            if verdict == "new":
                yield document
                continue
            if verdict == "same" or seen.keep != "refuse":
                account.duplicate(document.id if verdict == "different" else None)
            else:
                account.refuse(document, f"the id {document.id!r} came before, with other content")
            if not patient:
                account.stop_if_hopeless()

    def _fitting(
        self, records: Iterable[Document | Refusal], account: Account, patient: bool
    ) -> Iterator[Document]:
        for item in records:
            account.read += 1
            if isinstance(item, Refusal):
                account.refuse(item, item.reason)
            elif problem := self.check(item):
                account.refuse(item, problem)
            else:
                yield item
                continue
            if not patient:
                account.stop_if_hopeless()

    def check(self, document: Document) -> str | None:
        """Why a document cannot be indexed; None if it can, as far as can be told here."""
        if not 0 < len(clean_text(document.id).encode()) <= MAX_ID_BYTES:
            return f"its id has not 1 to {MAX_ID_BYTES} bytes"
        if self._timestamp is not None and not document.source().get(self._timestamp):
            return f"it has no {self._timestamp!r}, which a document of a data stream needs"
        return self._collision(document) or self._lost(document) or self._misfit(document)

    def _misfit(self, document: Document) -> str | None:
        """What is wrong with the vector that comes with a document, or with there being one or none."""
        vector, info = document.vector, self._info
        if (vector is not None) != (info.encode == "none"):
            return "it has no vector" if vector is None else "it has a vector, which only --encode none sends"
        if vector is None:
            return None
        if info.key == "id" and (wrong := next(filterfalse(_is_id, vector.keys), None)) is not None:
            return f"the key {wrong!r} in {vector.field!r} is no token id, by which {info.kind} is keyed here"
        if info.kind == "sparse_vector" and vector.keys:
            largest = max(map(int, vector.keys))
            if largest >= MAX_SPARSE_VECTOR_VOCABULARY:
                return f"sparse_vector holds token ids below {MAX_SPARSE_VECTOR_VOCABULARY:,}, not {largest}"
        if self._known is not None and not self._known.issuperset(vector.keys):
            wrong = next(key for key in vector.keys if key not in self._known)
            return f"the key {wrong!r} in {vector.field!r} is none of the archive's vocabulary"
        return None

    def _collision(self, document: Document) -> str | None:
        """Which of a document's own fields has a name that the index needs; None if none has."""
        names = document.fields_there()
        info, by_option = self._info, "--embedding-field renames that"
        for ours, remedy in (
            (info.nested or info.embedding_field, "rename it" if info.nested else by_option),
            (info.passage_field, "--passage-field renames that"),
        ):
            for name in names if ours else ():
                if f"{name}.".startswith(f"{ours}.") or f"{ours}.".startswith(f"{name}."):
                    return f"its own field {name!r} has the name of one of the index; {remedy}"
        return None

    def _lost(self, document: Document) -> str | None:
        """Which field is refused by OpenSearch, or lost without a word where the cluster encodes."""
        own = document.fields_there()
        if name := next((name for name in own if name in _METADATA), None):
            return (
                f"its field {name!r} has a name that OpenSearch or oskit keeps for itself; rename or omit it"
            )
        # Encoded here, all of them are kept; the pipeline's processor takes names apart and keeps one of two.
        for fields, dotted in _dotted_names(own) if self._info.encode == "cluster" else ():
            parts = dotted.split(".")
            before = next(
                (name for n in range(1, len(parts)) if (name := ".".join(parts[:n])) in fields), None
            )
            if before is not None:
                return f"its fields {before!r} and {dotted!r} are one object: write them as one"
            if not self._told_of_dots:
                self._told_of_dots = True
                _log.warning(
                    "the pipeline's processor takes names with dots apart: %r is stored as objects, as in "
                    '{"%s": {"%s": …}}', dotted, parts[0], ".".join(parts[1:])
                )  # fmt: skip
        return None


def _is_id(key: str) -> bool:
    return key == "0" or (key.isascii() and key.isdecimal() and key[0] != "0")


def key_of_vectors(
    records: Iterable[Document | Refusal],
) -> tuple[KeyFormat, Iterator[Document | Refusal]]:
    """By what the vectors of documents are keyed, as the first of them tell; and the documents."""
    stream = iter(records)
    seen: list[Document | Refusal] = []
    key: KeyFormat = "token"
    for item in itertools.islice(stream, PEEKED):
        seen.append(item)
        if isinstance(item, Document) and item.vector is not None and item.vector.keys:
            key = "id"  # unless another has words: "2026" is a token too
            if not all(map(_is_id, item.vector.keys)):
                key = "token"
                break
    return key, itertools.chain(seen, stream)


def _dotted_names(value: Any) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The names with dots in a value, however deep, with the object that each is in."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if "." in str(name):
                yield value, str(name)
            if isinstance(inner, Mapping | list | tuple):
                yield from _dotted_names(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            if isinstance(inner, Mapping | list | tuple):
                yield from _dotted_names(inner)
