"""Documents, encoded here or on the cluster, as the lines of a bulk request."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from oskit.archive.tokenization import TextWatch
from oskit.archive.truncation import truncation_from_now
from oskit.archive.vector_writer import VectorWriter
from oskit.cluster.index.mapping import IndexInfo
from oskit.cluster.ingest.admission import WINDOW_BYTES, Window
from oskit.cluster.ingest.bulk import BulkItem
from oskit.cluster.ingest.stages import Line, Stage
from oskit.data.documents import MARK_FIELD, Document
from oskit.data.values import clean_text, clean_value

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.text_encoder import TextEncoder
    from oskit.archive.token_weights import Prune

_FEWEST = 64
"""Documents that are encoded in one call at least: they are sorted by letters here and by tokens in the
encoder, which pads the less, the more there are."""

_CALL_S = 0.5
"""How long a call of the encoder may take about, by which progress moves and after which a load can end."""


class ItemMaker:
    """Makes bulk items of documents: :meth:`encode`, and :meth:`write` what came of it.

    Args:
        info: The index; whether documents are encoded here or by the cluster's ingest pipeline.
        encoder: Encodes the passages. Where the cluster does, it may be given to count what is too long.
        prune: Which weights to keep, for ``encoder``.
        mark: Tells what to write into a document's mark; None for nothing.
        queries: Encode as queries.
        creates: Documents are for a data stream, which takes none twice.

    Attributes:
        truncation: Tells what of the documents so far was too long; None where nothing is known.
        watch: Looks at the documents' language; None without an encoder.
        encodes: Whether documents are encoded here.
    """

    def __init__(
        self,
        info: IndexInfo,
        encoder: TextEncoder | None,
        prune: Prune | None,
        mark: Callable[[Document], str | None] = lambda _: None,
        *,
        queries: bool = False,
        creates: bool = False,
    ) -> None:
        self._info = info
        self._action = b'{"create":{"_id":' if creates else b'{"index":{"_id":'
        self._mark = mark
        self._encoder = encoder
        self.encodes = encoder is not None and info.encode not in ("cluster", "none")
        self._vectors = (
            VectorWriter(encoder.vocabulary, info.key, prune) if encoder and self.encodes else None
        )
        names = info.embedding_name, info.nested or ""
        self._field, self._nested = (b"," + orjson.dumps(name) + b":" for name in names)
        self._queries = queries
        self._together = _FEWEST
        self._busy_s = 0.0
        self.truncation = truncation_from_now(encoder)
        self.watch = TextWatch(encoder.vocabulary) if encoder is not None else None

    def encode(
        self,
        documents: Sequence[Document],
        encoded: Callable[[int], object] = lambda _: None,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> csr_matrix | None:
        """The vectors of some documents, a row for each, or for each of its chunks, ``[texts, vocabulary]``.

        Args:
            documents: Those that are near each other in length are encoded together, which spares padding.
            encoded: Told how many further documents were encoded.
            goes_on: Asked now and then.

        Returns:
            None where there is nothing to encode, or ``goes_on`` says so.

        Raises:
            EncoderError: The encoder fails.
        """
        from scipy.sparse import csr_matrix, vstack

        assert self._encoder is not None
        run = self._encoder.query_matrix if self._queries else self._encoder.document_matrix
        passages = [text for document in documents for text in document.encoded_texts]
        left = Counter(place for place, document in enumerate(documents) for _ in document.encoded_texts)
        owners = list(left.elements())
        encoded(len(documents) - len(left))  # without any text
        self._look(documents)
        order = sorted(range(len(passages)), key=lambda place: len(passages[place]), reverse=True)
        parts, start = [], 0
        while start < len(order):
            if not goes_on():
                return None
            chosen = order[start : start + self._together]
            began = time.perf_counter()
            parts.append(run([passages[place] for place in chosen]))
            took = time.perf_counter() - began
            self._busy_s += took
            self._together = max(_FEWEST, int(len(chosen) * min(2.0, _CALL_S / max(took, 1e-9))))
            start += len(chosen)
            left.subtract(owners[place] for place in chosen)
            done = [place for place in {owners[place] for place in chosen} if not left[place]]
            encoded(len(done))
        if not parts:
            return csr_matrix((0, self._encoder.vocabulary.size), dtype=np.float32)
        places = sorted(range(len(order)), key=order.__getitem__)
        return vstack(parts, format="csr")[places]

    def count(self, documents: Sequence[Document]) -> None:
        """Tokenize documents that are not encoded here, as far as the encoder can, to count what is cut."""
        tokenize = getattr(self._encoder, "tokenize_documents", None)
        if tokenize is not None and self._info.encode != "none":
            tokenize([text for document in documents for text in document.encoded_texts])
            self._look(documents)

    def _look(self, documents: Sequence[Document]) -> None:
        if self.watch is not None:
            self.watch.look(document.passage for document in documents)

    def encoding_s(self) -> float | None:
        """Seconds that the encoder has worked so far; None where documents are not encoded here."""
        return self._busy_s if self.encodes else None

    def write(self, documents: Sequence[Document], vectors: csr_matrix | None) -> list[BulkItem]:
        """The bulk items of documents, in their order."""
        rows = iter(self._vectors.write(vectors)) if self._vectors and vectors is not None else None
        return [BulkItem(document, self._payload(document, rows)) for document in documents]

    def make(
        self, documents: Sequence[Document], encoded: Callable[[int], object] = lambda _: None
    ) -> list[BulkItem]:
        """Both, one after the other."""
        return self.write(documents, self.encode(documents, encoded) if self.encodes else None)

    def _payload(self, document: Document, rows: Iterator[bytes | None] | None) -> bytes:
        """Of a document; its vectors are the next of ``rows``, where they are made here."""
        source = document.source()
        if self._info.passage_field is not None:
            source[self._info.passage_field] = document.passage
        if (mark := self._mark(document)) is not None:
            source[MARK_FIELD] = mark
        action = self._action + orjson.dumps(clean_text(document.id)) + b"}}\n"
        # Spliced in: weights are by far the largest part, and formatting them together is quick.
        if document.chunks is None:
            vectors = self._vector(next(rows) if rows is not None else _own_vector(document))
        else:
            chunks = [
                dump({"text": chunk.text, "start": chunk.start})[:-1]
                + self._vector(next(rows) if rows is not None else None)
                for chunk in document.chunks
            ]
            vectors = b"".join((self._nested, b"[", b",".join(chunk + b"}" for chunk in chunks), b"]"))
        return b"".join((action, dump(source)[:-1], vectors, b"}\n"))

    def _vector(self, vector: bytes | None) -> bytes:
        """As a further field of a JSON object that is open."""
        return b"" if vector is None else self._field + vector


def encoding_stages(
    line: Line,
    maker: ItemMaker,
    write: Callable[[Window, csr_matrix | None], object],
    progress: Callable[[int], object],
) -> tuple[Stage[Window], Stage[tuple[Window, csr_matrix | None]]]:
    """Encode windows in one thread of a line and write them in another; finish the stages in this order.

    Args:
        maker: Encodes, or counts tokens where documents are not encoded here.
        write: Takes a window and its vectors, None where they are not made here.
        progress: Told how many further documents were encoded.
    """

    def encode(window: Window) -> None:
        if not maker.encodes:
            maker.count(window.documents)
            writing.put((window, None), window.size)
        elif (vectors := maker.encode(window.documents, progress, line.goes_on)) is not None:
            writing.put((window, vectors), window.size)

    writing: Stage[tuple[Window, csr_matrix | None]] = Stage(
        line, "write", [lambda encoded: write(*encoded)], WINDOW_BYTES
    )
    return Stage(line, "encode", [encode], WINDOW_BYTES), writing


def _own_vector(document: Document) -> bytes | None:
    """The vector that came with a document; None for one without weights, which ``sparse_vector`` refuses."""
    return document.vector.json if document.vector is not None and document.vector.keys else None


def dump(source: dict[str, Any]) -> bytes:
    """JSON that UTF-8 can carry, also of documents that were not read by :mod:`oskit.data`."""
    try:
        return orjson.dumps(source, option=orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS)
    except orjson.JSONEncodeError:
        pass
    # It knows no integers over 64 bits, no deep nesting, and no keys that are not texts.
    try:
        return json.dumps(source, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):  # UnicodeEncodeError is a ValueError
        return json.dumps(clean_value(source), ensure_ascii=False).encode()
