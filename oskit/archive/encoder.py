"""An archive as an encoder, on ONNX Runtime and ``tokenizers`` alone: it computes what the cluster does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oskit.archive.archive import Archive, open_archive
from oskit.archive.backends import Backend, Runtime, open_backend
from oskit.archive.batching import (
    Batch,
    checked_texts,
    encode_in_batches,
    token_budget,
    weigh_each_once,
)
from oskit.archive.text_encoder import SERVER_MAX_LENGTH, Architecture
from oskit.archive.token_weights import TokenWeightsMixin
from oskit.archive.truncation import Truncation
from oskit.archive.vocabulary import Vocabulary
from oskit.errors import ArchiveError, EncoderError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from tokenizers import Encoding, Tokenizer

    from oskit.archive.backends.auto import Selection

MISSING_IDF = 1.0
"""What ML Commons gives a query token that ``idf.json`` does not have."""

CHARACTERS_A_TOKEN = 32
"""Of a long text's beginning: more than any language takes, so that the last of them never count."""

TOKENS_AT_ONCE = 1 << 16
"""Tokens of queries that are weighed together without a model."""


@dataclass(frozen=True)
class Steps:
    """Encoding in two steps, for whoever makes batches of texts that come one after the other.

    Attributes:
        tokenize: Token ids of each text, none at all for one without a vector.
        weigh: The vectors ``[len(batch), vocabulary.size]`` of a batch of token ids, longest first; several
            threads may call it.
        budget: Tokens of a batch, padding included; 1 where texts may not share one.
    """

    tokenize: Callable[[Sequence[str]], list[list[int]]]
    weigh: Callable[[Batch], csr_matrix]
    budget: int


class ArchiveEncoder(TokenWeightsMixin):
    """An archive that turns text into token weights; see :class:`oskit.archive.text_encoder.TextEncoder`.

    Open it with :meth:`open`.

    Attributes:
        archive: The archive it was opened from.
        query: The tokenizer archive behind the queries of an inference-free encoder, else None.
        architecture: ``"symmetric"`` or ``"inference-free"``.
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
        self._documents = documents
        self._queries = queries
        sides = [side for side in (documents, queries) if side is not None]
        self._tokenizers = [side.tokenizer for side in sides]
        self._vocabulary = sides[0].vocabulary
        self.architecture: Architecture = architecture

    @classmethod
    def open(
        cls,
        path: str | Path | Archive,
        *,
        query: str | Path | Archive | None = None,
        runtime: Runtime | None = None,
        threads: int | None = None,
        notify: Callable[[str], object] | None = None,
    ) -> ArchiveEncoder:
        """Open an archive for encoding.

        Args:
            path: An archive, its folder, or the folder of an export. A tokenizer archive opens as well; it
                encodes queries only.
            query: The tokenizer archive for the queries of an inference-free encoder; without it the one that
                the manifest names.
            runtime: What it shall run on; what is left to ``"auto"`` there is measured as soon as a job is
                long enough, see :mod:`oskit.archive.backends.auto`. None is ONNX Runtime (torch for a
                TorchScript archive), whatever is faster: what others are compared with.
            threads: Threads that one batch may use; None lets the back end decide.
            notify: Told, in one line, what was found to be the fastest.

        Raises:
            ArchiveError: An archive is missing, unsafe, damaged or incomplete.
            MissingDependencyError: What it shall run on is not installed.
            UsageError: The archive does not fit ``runtime``, or runs no model.
        """
        wanted = runtime.format if runtime is not None else None
        archive = path if isinstance(path, Archive) else open_archive(path, first=wanted)
        if archive.kind == "tokenizer":
            if runtime is not None:
                runtime.refuse_unused("on a tokenizer archive, which runs no model")
            # Behind an output that is wider than the tokenizer, the manifest knows how wide.
            size = archive.manifest.vocabulary.size if archive.manifest else None
            side = _TokenizerSide(archive, size)
            return cls(archive, documents=None, queries=side, architecture="inference-free", query=archive)
        documents = _ModelSide(archive, runtime, threads, notify)
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
    def runtime(self) -> str | None:
        """What runs the model now, with its version; None for a tokenizer archive alone."""
        return self._documents.backend.name if self._documents is not None else None

    @property
    def vocabulary(self) -> Vocabulary:
        """Token ids and the cluster's keys."""
        return self._vocabulary

    @property
    def max_length(self) -> int:
        """Tokens a text is truncated to, special tokens included."""
        return self._tokenizers[0].truncation.max_length

    @property
    def truncation(self) -> Truncation:
        """What of all texts so far, documents and queries alike, was too long to be encoded."""
        first, *others = (tokenizer.truncation for tokenizer in self._tokenizers)
        return sum(others, start=first)

    def tokenize_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each document as the model gets them; they count as :attr:`truncation` does."""
        return self._tokenizers[0].encode(checked_texts(texts))

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Document vectors, shape ``[len(texts), vocabulary.size]``, float32, special tokens zero.

        Args:
            texts: Texts of any length; long ones are truncated as on the server, an empty one has no weights.

        Raises:
            EncoderError: The archive is a tokenizer's, or the model fails.
        """
        return self._document_side().encode(texts)

    def document_steps(self) -> Steps:
        """How :meth:`document_matrix` encodes, without the search for a faster back end.

        Raises:
            EncoderError: The archive is a tokenizer's.
        """
        return self._document_side().steps()

    def _document_side(self) -> _ModelSide:
        if self._documents is None:
            raise EncoderError(
                f"{self.archive.path} is a tokenizer archive, it encodes queries only",
                hint="Open the encoder's archive (onnx or torchscript) for documents.",
            )
        return self._documents

    def query_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Query vectors, shape ``[len(texts), vocabulary.size]``, float32, special tokens zero.

        Raises:
            ArchiveError: An inference-free encoder's tokenizer archive is not there.
            EncoderError: The model fails.
        """
        side = self._query_side()
        return side.encode(texts) if side is not None else self.document_matrix(texts)

    def query_steps(self) -> Steps:
        """How :meth:`query_matrix` encodes.

        Raises:
            ArchiveError: An inference-free encoder's tokenizer archive is not there.
        """
        side = self._query_side()
        return side.steps() if side is not None else self.document_steps()

    def _query_side(self) -> _TokenizerSide | None:
        """What encodes queries without the model; None where the model does."""
        if self._queries is None and self.architecture == "inference-free":
            named = self.archive.manifest.query_archive if self.archive.manifest else None
            raise ArchiveError(
                f"{self.archive.path} needs its tokenizer archive for queries, which is not at {named}",
                hint="Give the tokenizer archive of the same export as the query archive.",
            )
        return self._queries


def _query_archive(archive: Archive, query: str | Path | Archive | None) -> Archive | None:
    named = archive.query_archive() if query is None else query
    if named is None:
        return None
    found = named if isinstance(named, Archive) else open_archive(named)
    if found.kind != "tokenizer":
        raise ArchiveError(
            f"{found.path} is an encoder; inference-free queries need a tokenizer archive",
            hint="Give the archive in the export's folder `tokenizer`.",
        )
    return found


class _ArchiveTokenizer:
    """The archive's tokenizer, set up as the server does: its own truncation, at most 512, no padding."""

    def __init__(self, archive: Archive) -> None:
        self.tokenizer = archive.tokenizer()
        truncation = dict(self.tokenizer.truncation or {})
        max_length = min(int(truncation.pop("max_length", SERVER_MAX_LENGTH)), SERVER_MAX_LENGTH)
        # A stride repeats tokens in what is cut off, which nobody encodes but which is counted.
        self.tokenizer.enable_truncation(max_length, **{**truncation, "stride": 0})
        self.tokenizer.no_padding()
        self._around = len(self.tokenizer.encode("").ids)
        self.truncation = Truncation(max_length)
        self._lock = threading.Lock()  # ONNX Runtime runs in several threads at once, and so may callers

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens around them; nothing at all for a text without tokens."""
        encodings = self.tokenizer.encode_batch_fast(list(texts))
        cut = Truncation(self.truncation.max_length).with_texts(encodings)
        with self._lock:
            self.truncation += cut
        return self._ids(encodings)

    def beginnings(self, texts: Sequence[str]) -> list[list[int]]:
        """The same ids as :meth:`encode`, without cutting what nobody reads of megabytes into tokens first.

        So what is cut off is counted, but not its tokens.
        """
        some = [_beginning(text, CHARACTERS_A_TOKEN * self.truncation.max_length) for text in texts]
        ids = self.encode(some)
        for place, (text, row) in enumerate(zip(texts, ids, strict=True)):
            if len(row) < self.truncation.max_length and len(some[place]) < len(text):
                (ids[place],) = self.encode([text])  # of few tokens for its size
        return ids

    def uncounted(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for texts that are encoded on the side."""
        return self._ids(self.tokenizer.encode_batch_fast(list(texts)))

    def _ids(self, encodings: Sequence[Encoding]) -> list[list[int]]:
        ids = (encoding.ids for encoding in encodings)
        return [row if len(row) > self._around else [] for row in ids]


def _beginning(text: str, characters: int) -> str:
    """At most so many characters, and whole words where there are some."""
    if len(text) <= characters:
        return text
    start = text[:characters]
    return start[: end + 1] if (end := start.rfind(" ")) >= 0 else start


class _ModelSide:
    """Texts through the model."""

    def __init__(
        self,
        archive: Archive,
        runtime: Runtime | None,
        threads: int | None,
        notify: Callable[[str], object] | None,
    ) -> None:
        self.tokenizer = _ArchiveTokenizer(archive)
        self._selection = selection(archive, runtime, threads, notify)
        choice = self._selection.recall() if self._selection is not None else None
        self.backend: Backend = open_backend(archive, choice.runtime() if choice else runtime, threads)
        # The output's width is the vocabulary's size; the file does not say it in both formats, a run does.
        width = self.backend.run([self.tokenizer.tokenizer.encode("a").ids or [0]], None).shape[1]
        self.vocabulary = _vocabulary(archive, self.tokenizer.tokenizer, width)
        self._keep = self.vocabulary.weight_mask() > 0
        self._budget = token_budget(width, choice.budget) if choice else token_budget(width)

    def encode(self, texts: Sequence[str]) -> csr_matrix:
        checked = checked_texts(texts)
        if self._selection is not None:
            self._select(self._selection, checked)
        backend, keep = self.backend, self._keep
        return encode_in_batches(
            checked,
            tokenize=self.tokenizer.encode,
            run=lambda ids: backend.run(ids, keep),
            width=self.vocabulary.size,
            budget=self._budget if backend.batches else 1,
        )

    def steps(self) -> Steps:
        backend, keep = self.backend, self._keep
        return Steps(
            lambda texts: self.tokenizer.beginnings(checked_texts(texts)),
            lambda ids: backend.run(ids, keep),
            self._budget if backend.batches else 1,
        )

    def _select(self, selection: Selection, texts: Sequence[str]) -> None:
        found = selection.decide(texts, self.tokenizer.uncounted, self.backend, self._keep)
        if found is not None:
            choice, self.backend = found
            self._budget = token_budget(self.vocabulary.size, choice.budget)


class _TokenizerSide:
    """Queries without a model: each token once, weighing its IDF; no term frequency."""

    def __init__(self, archive: Archive, size: int | None) -> None:
        self.tokenizer = _ArchiveTokenizer(archive)
        self.vocabulary = _vocabulary(archive, self.tokenizer.tokenizer, size)
        idf: dict[str, float] = json.loads(archive.read("idf.json"))
        # The server looks a token's weight up by its key, so ids with the same key have the same weight.
        weights = [idf.get(key, MISSING_IDF) for key in self.vocabulary.keys]
        self.idf = np.array(weights, dtype=np.float32) * self.vocabulary.weight_mask()

    def encode(self, texts: Sequence[str]) -> csr_matrix:
        return weigh_each_once(self.tokenizer.encode(checked_texts(texts)), self.idf)

    def steps(self) -> Steps:
        return Steps(
            lambda texts: self.tokenizer.beginnings(checked_texts(texts)),
            lambda ids: weigh_each_once(ids, self.idf),
            TOKENS_AT_ONCE,
        )


def selection(
    archive: Archive,
    runtime: Runtime | None,
    threads: int | None,
    notify: Callable[[str], object] | None,
) -> Selection | None:
    """What finds the fastest back end; None where nothing is left to it."""
    if (
        runtime is None
        or archive.model_format != "ONNX"
        or "auto" not in (runtime.backend, runtime.precision)
    ):
        return None
    from oskit.archive.backends.auto import Selection

    return Selection(archive, runtime, threads, notify)


def _vocabulary(archive: Archive, tokenizer: Tokenizer, size: int | None) -> Vocabulary:
    try:
        return Vocabulary(tokenizer, size=size)
    except EncoderError as error:
        raise ArchiveError(f"{archive.path}: {error.message}", hint=error.hint) from error
