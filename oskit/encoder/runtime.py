"""An archive as an encoder, on ONNX Runtime and ``tokenizers`` alone: it computes what the cluster does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oskit.encoder.archive import Archive, open_archive
from oskit.encoder.backends import Backend, open_backend
from oskit.encoder.types import Architecture
from oskit.encoder.vocabulary import Vocabulary
from oskit.encoder.weights import TokenWeightsMixin
from oskit.errors import ArchiveError, EncoderError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix
    from tokenizers import Tokenizer

SERVER_MAX_LENGTH = 512
"""ML Commons truncates to the tokenizer's own ``max_length``, but never takes more tokens than this."""

MISSING_IDF = 1.0
"""What ML Commons gives a query token that ``idf.json`` does not have."""

_LOGITS_BYTES = 400_000_000
"""Bound of one batch's logits ``[batch, length, vocabulary]``, the largest tensor of an encoder."""

_WINDOW = 64
"""Batches whose texts are sorted by length together: padding is rare, memory stays bounded."""


class ArchiveEncoder(TokenWeightsMixin):
    """An archive that turns text into token weights; see :class:`oskit.encoder.types.TextEncoder`.

    Open it with :meth:`open`.

    Attributes:
        archive: The archive it was opened from.
        query: The tokenizer archive behind the queries of an inference-free encoder, else None.
        runtime: What runs the model, with its version; None for a tokenizer archive alone.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        documents: _ModelSide | None,
        queries: _TokenizerSide | None,
        architecture: Architecture,
        query: Archive | None,
    ) -> None:
        self.archive = archive
        self.query = query
        self.runtime = documents.backend.name if documents is not None else None
        self._documents = documents
        self._queries = queries
        self._architecture = architecture

    @classmethod
    def open(
        cls,
        path: str | Path | Archive,
        *,
        query: str | Path | Archive | None = None,
        threads: int | None = None,
    ) -> ArchiveEncoder:
        """Open an archive for encoding.

        Args:
            path: An archive, its folder, or the folder of an export. A tokenizer archive opens as well; it
                encodes queries only.
            query: The tokenizer archive for the queries of an inference-free encoder; without it the one that
                the manifest names.
            threads: Threads that one batch may use; None lets ONNX Runtime decide.

        Raises:
            ArchiveError: An archive is missing, unsafe, damaged or incomplete.
            MissingDependencyError: It is a TorchScript archive and torch is not installed.
        """
        archive = path if isinstance(path, Archive) else open_archive(path)
        if archive.kind == "tokenizer":
            side = _TokenizerSide(archive)
            return cls(archive, documents=None, queries=side, architecture="inference-free", query=archive)
        documents = _ModelSide(archive, threads)
        query_archive = _query_archive(archive, query)
        queries = None if query_archive is None else _TokenizerSide(query_archive, documents.vocabulary.size)
        recorded = archive.manifest.architecture if archive.manifest else None
        return cls(
            archive,
            documents=documents,
            queries=queries,
            architecture="inference-free" if queries or recorded == "inference-free" else "symmetric",
            query=query_archive,
        )

    @property
    def architecture(self) -> Architecture:
        """``"symmetric"`` or ``"inference-free"``."""
        return self._architecture

    @property
    def vocabulary(self) -> Vocabulary:
        """Token ids and the cluster's keys."""
        side = self._documents or self._queries
        assert side is not None
        return side.vocabulary

    @property
    def max_length(self) -> int:
        """Tokens a text is truncated to, special tokens included."""
        side = self._documents or self._queries
        assert side is not None
        return side.tokenizer.max_length

    def document_matrix(self, texts: Sequence[str], *, batch_size: int = 32) -> csr_matrix:
        """Document vectors, shape ``[len(texts), vocabulary.size]``, float32, special tokens zero.

        Args:
            texts: Texts of any length; long ones are truncated as on the server, an empty one has no weights.
            batch_size: Texts in one run of the model at most; fewer where texts are long, to bound memory.

        Raises:
            EncoderError: The archive is a tokenizer's, or the model fails.
        """
        if self._documents is None:
            raise EncoderError(
                f"{self.archive.path} is a tokenizer archive, it encodes queries only",
                hint="Open the encoder's archive (onnx or torchscript) for documents.",
            )
        return self._documents.encode(texts, batch_size)

    def query_matrix(self, texts: Sequence[str], *, batch_size: int = 32) -> csr_matrix:
        """Query vectors, shape ``[len(texts), vocabulary.size]``, float32, special tokens zero.

        Raises:
            ArchiveError: An inference-free encoder's tokenizer archive is not there.
            EncoderError: The model fails.
        """
        if self._queries is not None:
            return self._queries.encode(texts)
        if self._architecture == "inference-free":
            named = self.archive.manifest.query_archive if self.archive.manifest else None
            raise ArchiveError(
                f"{self.archive.path} needs its tokenizer archive for queries, which is not at {named}",
                hint="Give the tokenizer archive of the same export as the query archive.",
            )
        return self.document_matrix(texts, batch_size=batch_size)


def _query_archive(archive: Archive, query: str | Path | Archive | None) -> Archive | None:
    if query is None:
        found = archive.query_archive()
        return None if found is None else _tokenizer_archive(open_archive(found))
    return _tokenizer_archive(query if isinstance(query, Archive) else open_archive(query))


def _tokenizer_archive(archive: Archive) -> Archive:
    if archive.kind != "tokenizer":
        raise ArchiveError(
            f"{archive.path} is an encoder; inference-free queries need a tokenizer archive",
            hint="Give the archive in the export's folder `tokenizer`.",
        )
    return archive


class _ArchiveTokenizer:
    """The archive's tokenizer, set up as the server does: its own truncation, at most 512, no padding."""

    def __init__(self, archive: Archive) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer: Tokenizer = Tokenizer.from_buffer(archive.read("tokenizer.json"))
        except ArchiveError:
            raise
        except Exception as error:  # tokenizers raises nothing more specific
            raise ArchiveError(
                f"{archive.path}: tokenizer.json cannot be read: {error}",
                hint="Export the encoder again with `oskit export`.",
            ) from error
        truncation = dict(self.tokenizer.truncation or {})
        self.max_length = min(int(truncation.pop("max_length", SERVER_MAX_LENGTH)), SERVER_MAX_LENGTH)
        self.tokenizer.enable_truncation(self.max_length, **truncation)
        self.tokenizer.no_padding()
        self._around = len(self.tokenizer.encode("").ids)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens around them; nothing at all for a text without tokens."""
        encodings = self.tokenizer.encode_batch_fast([_well_formed(text) for text in texts])
        ids = (encoding.ids for encoding in encodings)
        return [row if len(row) > self._around else [] for row in ids]


def _well_formed(text: str) -> str:
    """Lone surrogates have no UTF-8, so no request can carry them either: they become U+FFFD."""
    if not isinstance(text, str):
        raise UsageError(f"a text is needed to encode, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class _ModelSide:
    """Texts through the model."""

    def __init__(self, archive: Archive, threads: int | None) -> None:
        self.tokenizer = _ArchiveTokenizer(archive)
        self.backend: Backend = open_backend(archive, threads)
        # The output's width is the vocabulary's size; the file does not say it in both formats, a run does.
        probe = np.array([self.tokenizer.tokenizer.encode("a").ids or [0]], dtype=np.int64)
        width = self.backend.run(probe, np.ones_like(probe)).shape[1]
        self.vocabulary = Vocabulary(self.tokenizer.tokenizer, size=width)
        self._mask = self.vocabulary.weight_mask()
        self._max_tokens = max(_LOGITS_BYTES // (4 * width), SERVER_MAX_LENGTH)

    def encode(self, texts: Sequence[str], batch_size: int) -> csr_matrix:
        from scipy.sparse import csr_matrix, vstack

        _check(texts, batch_size)
        window = batch_size * _WINDOW
        parts = [
            self._encode_window(texts[start : start + window], batch_size)
            for start in range(0, len(texts), window)
        ]
        if not parts:
            return csr_matrix((0, self.vocabulary.size), dtype=np.float32)
        return parts[0] if len(parts) == 1 else vstack(parts, format="csr")

    def _encode_window(self, texts: Sequence[str], batch_size: int) -> csr_matrix:
        ids = self.tokenizer.encode(texts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        rows: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = [_NOTHING] * len(ids)
        for batch in self._batches([i for i in order if ids[i]], ids, batch_size):
            weights = self._run([ids[i] for i in batch])
            for i, row in zip(batch, weights, strict=True):
                columns = np.flatnonzero(row > 0)
                rows[i] = columns.astype(np.int32), row[columns]
        return _csr(rows, self.vocabulary.size)

    def _batches(
        self, order: Sequence[int], ids: Sequence[Sequence[int]], batch_size: int
    ) -> Iterator[Sequence[int]]:
        """Neighbours in length, at most ``batch_size`` texts and ``_max_tokens`` padded tokens at a time."""
        start = 0
        while start < len(order):
            size = max(1, min(batch_size, self._max_tokens // len(ids[order[start]])))
            yield order[start : start + size]
            start += size

    def _run(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        length = max(map(len, ids))
        input_ids = np.zeros((len(ids), length), dtype=np.int64)
        mask = np.zeros_like(input_ids)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return self.backend.run(input_ids, mask) * self._mask


class _TokenizerSide:
    """Queries without a model: each token once, weighing its IDF; no term frequency."""

    def __init__(self, archive: Archive, size: int | None = None) -> None:
        self.tokenizer = _ArchiveTokenizer(archive)
        self.vocabulary = Vocabulary(self.tokenizer.tokenizer, size=size)
        idf: dict[str, float] = json.loads(archive.read("idf.json"))
        # The server looks a token's weight up by its key, so ids with the same key have the same weight.
        weights = [idf.get(key, MISSING_IDF) for key in self.vocabulary.keys]
        self.idf = np.array(weights, dtype=np.float32) * self.vocabulary.weight_mask()

    def encode(self, texts: Sequence[str]) -> csr_matrix:
        _check(texts, 1)
        rows = []
        for ids in self.tokenizer.encode(texts):
            columns = np.unique(np.array(ids, dtype=np.int32))
            columns = columns[self.idf[columns] > 0]
            rows.append((columns, self.idf[columns]))
        return _csr(rows, self.vocabulary.size)


_NOTHING = (np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


def _csr(rows: Sequence[tuple[NDArray[np.int32], NDArray[np.float32]]], width: int) -> csr_matrix:
    from scipy.sparse import csr_matrix

    if not rows:
        return csr_matrix((0, width), dtype=np.float32)
    indptr = np.concatenate([[0], np.cumsum([len(columns) for columns, _ in rows])])
    columns = np.concatenate([columns for columns, _ in rows])
    data = np.concatenate([weights for _, weights in rows])
    return csr_matrix((data, columns, indptr), shape=(len(rows), width))


def _check(texts: Sequence[str], batch_size: int) -> None:
    if isinstance(texts, str):
        raise UsageError(
            "a list of texts is needed to encode, not one text", hint="Put it in a list: [text]."
        )
    if batch_size < 1:
        raise UsageError(f"a batch of {batch_size} texts is not possible", hint="Use 1 or more.")
