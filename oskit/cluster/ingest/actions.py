"""Documents, encoded here or on the cluster, as the lines of a bulk request."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from oskit.archive.truncation import truncation_from_now
from oskit.cluster.index.mapping import IndexInfo
from oskit.cluster.ingest.bulk import BulkItem
from oskit.data.documents import MAX_ID_BYTES, Document
from oskit.data.values import clean_text, clean_value

if TYPE_CHECKING:
    from oskit.archive.text_encoder import TextEncoder
    from oskit.archive.token_weights import Prune

_SMALLEST_WEIGHT = 1.1754944e-38
"""The smallest positive normal 32-bit float; ``rank_features`` refuses anything below."""

_METADATA = frozenset(
    {"_id", "_index", "_routing", "_source", "_version", "_version_type", "_if_seq_no", "_if_primary_term",
     "_seq_no", "_primary_term", "_field_names", "_ignored", "_nested_path", "_data_stream_timestamp"}
)  # fmt: skip
"""Names that OpenSearch refuses in a document, or that an ingest pipeline takes out of it (seen on 3.6)."""

_log = logging.getLogger(__name__)

_TOGETHER = 65_536
"""Characters of the documents that are encoded in one call, by which progress moves; the encoder makes
batches of them by its own budget."""


class ItemMaker:
    """Makes bulk items of documents.

    Args:
        info: The index; whether documents are encoded here or by the cluster's ingest pipeline.
        encoder: Encodes the passages. Where the cluster does, it may be given to count what is too long.
        prune: Which weights to keep, for ``encoder``.

    Attributes:
        truncation: Tells what of the documents so far was too long; None where nothing is known.
    """

    def __init__(self, info: IndexInfo, encoder: TextEncoder | None, prune: Prune | None) -> None:
        self._info = info
        self._encoder = encoder
        self._prune = prune
        self._told_of_dots = False
        self.truncation = truncation_from_now(encoder)

    def check(self, document: Document) -> str | None:
        """Why a document cannot be indexed; None if it can, as far as can be told here."""
        if not 0 < len(clean_text(document.id).encode()) <= MAX_ID_BYTES:
            return f"its id has not 1 to {MAX_ID_BYTES} bytes"
        return self.collision(document) or self._lost(document)

    def collision(self, document: Document) -> str | None:
        """Which of a document's own fields has a name that the index needs; None if none has."""
        names = {document.text_field, document.title_field, *document.fields}
        for ours, option in (
            (self._info.embedding_field, "--embedding-field"),
            (self._info.passage_field, "--passage-field"),
        ):
            for name in names if ours else ():
                if f"{name}.".startswith(f"{ours}.") or f"{ours}.".startswith(f"{name}."):
                    return f"its own field {name!r} has the name of one of the index; {option} renames that"
        return None

    def _lost(self, document: Document) -> str | None:
        """Which field is refused by OpenSearch, or lost without a word where the cluster encodes."""
        own = {document.text_field: "", document.title_field: "", **document.fields}
        if name := next((name for name in own if name in _METADATA), None):
            return (
                f"its field {name!r} has a name that OpenSearch keeps for itself; rename it or leave it out"
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

    def make(
        self, documents: Sequence[Document], encoded: Callable[[int], object] = lambda _: None
    ) -> list[BulkItem]:
        """The bulk items of some documents, in their order.

        Args:
            documents: Those that are near each other in length are encoded together, which spares padding.
            encoded: Told how many further documents were encoded here.

        Raises:
            EncoderError: The encoder fails.
        """
        if self._encoder is None or self._info.encode == "cluster":
            self.count(documents)
            return [BulkItem(document, self._payload(document, None)) for document in documents]
        items: dict[int, BulkItem] = {}
        passages = [document.passage for document in documents]
        order = sorted(range(len(passages)), key=lambda place: len(passages[place]), reverse=True)
        start = 0
        while start < len(order):
            batch = order[start : start + max(1, _TOGETHER // max(1, len(passages[order[start]])))]
            start += len(batch)
            vectors = self._encoder.document_weights([passages[place] for place in batch], key=self._info.key)
            for place, weights in zip(batch, vectors, strict=True):
                document = documents[place]
                items[place] = BulkItem(document, self._payload(document, self._vector(weights)))
            encoded(len(batch))
        return [items[place] for place in range(len(documents))]

    def count(self, documents: Sequence[Document]) -> None:
        """Tokenize documents that are not encoded here, as far as the encoder can, to count what is cut."""
        tokenize = getattr(self._encoder, "tokenize_documents", None)
        if tokenize is not None:
            tokenize([document.passage for document in documents])

    def _payload(self, document: Document, vector: str | None) -> bytes:
        action = json.dumps({"index": {"_id": clean_text(document.id)}}, ensure_ascii=False)
        source = document.source()
        if self._info.passage_field is not None:
            source[self._info.passage_field] = document.passage
        lines = f"{action}\n{_dump(source)}"
        if vector is not None:
            # Spliced in as text: weights are by far the largest part, and formatting them once is quick.
            lines = f"{lines[:-1]},{json.dumps(self._info.embedding_field)}:{vector}}}"
        return f"{lines}\n".encode()

    def _vector(self, weights: Mapping[str, float]) -> str | None:
        """The JSON of a vector; None for one without weights, which ``sparse_vector`` does not take."""
        if self._prune is not None:
            from oskit.archive.token_weights import prune

            weights = prune(weights, self._prune)
        # 9 digits carry a 32-bit float without loss.
        entries = [
            f"{_key(key)}:{weight:.9g}"
            for key, weight in weights.items()
            if _SMALLEST_WEIGHT <= weight < math.inf
        ]
        return "{" + ",".join(entries) + "}" if entries else None


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


@cache
def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def _dump(source: dict[str, Any]) -> str:
    """JSON that UTF-8 can carry, also of documents that were not read by :mod:`oskit.data`."""
    try:
        text = json.dumps(source, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError):  # UnicodeEncodeError is a ValueError
        return json.dumps(clean_value(source), ensure_ascii=False)
    return text
