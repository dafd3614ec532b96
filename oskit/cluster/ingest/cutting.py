"""The stage of a load that cuts documents into chunks, by the encoder's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from oskit.archive.text_encoder import SERVER_MAX_LENGTH
from oskit.cluster.index.mapping import IndexInfo, IndexSettings
from oskit.cluster.ingest.accounting import Account
from oskit.cluster.ingest.admission import DOCUMENT_BYTES, Window
from oskit.data.chunks import Chunking
from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.archive.text_encoder import TextEncoder

MAX_CHUNKS = 10_000
"""Nested objects of one document that an index takes (``index.mapping.nested_objects.limit``)."""


def check_chunking(settings: IndexSettings, encode: str | None, encoder: TextEncoder | None) -> None:
    """Refuse to cut documents where nobody knows how, or where the encoder would cut the chunks.

    Raises:
        UsageError: Says which.
    """
    if settings.chunking is None:
        return
    if encode == "none":
        raise UsageError(
            "documents that come with their vectors are not cut into chunks",
            hint="Leave --chunk out, or encode them here",
        )
    if encoder is None:
        raise UsageError(
            "cutting documents into chunks needs the encoder's tokenizer",
            hint="Give its archive with --archive DIR, with --encode cluster too",
        )
    settings.chunking.check_length(getattr(encoder, "max_length", SERVER_MAX_LENGTH))


def cut_into_chunks(
    windows: Iterable[Window], info: IndexInfo, encoder: TextEncoder | None, account: Account
) -> Iterator[Window]:
    """The documents with their chunks; as they are, where an index has none.

    What has more chunks than an index takes is refused here, since the cluster would refuse it after they
    were all encoded.
    """
    if info.chunking is None or encoder is None:
        yield from windows
        return
    chunking, tokenize = Chunking.parse(info.chunking), encoder.vocabulary.tokenizer().encode
    for window in windows:
        documents, size = [], 0
        for document in window.documents:
            chunks = chunking.split(document.title, document.text, tokenize)
            if len(chunks) > MAX_CHUNKS:
                account.refuse(
                    document,
                    f"it has {len(chunks):,} chunks, and an index takes {MAX_CHUNKS:,} of a document",
                )
                continue
            account.cut(len(chunks))
            documents.append(replace(document, chunks=chunks))
            size += sum(DOCUMENT_BYTES + len(chunk.text) for chunk in chunks)
        if documents:
            yield Window(documents, window.size + size)
