"""Documents with their vectors into a file, Parquet or JSONL, which ``--encode none`` loads as it is."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson

from oskit.archive.vector_writer import VectorWriter
from oskit.cluster.index.mapping import IndexInfo
from oskit.cluster.ingest.accounting import Account, IngestReport
from oskit.cluster.ingest.actions import ItemMaker, dump, encoding_stages
from oskit.cluster.ingest.admission import Admission, Window
from oskit.cluster.ingest.bulk import BulkOutcome
from oskit.cluster.ingest.dead_letter import DeadLetterFile
from oskit.cluster.ingest.stages import Line
from oskit.data.atomic import beside
from oskit.data.documents import Document, Refusal
from oskit.data.duplicates import DuplicateFilter, Duplicates
from oskit.data.parquet import FIELDS_COLUMN, METADATA_KEY
from oskit.data.values import clean_text
from oskit.errors import DataError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.text_encoder import KeyFormat, TextEncoder
    from oskit.archive.token_weights import Prune

_ROW_GROUP_BYTES = 16_000_000
"""Of a Parquet file, about, before it is compressed."""

_PARQUET, _JSONL = (".parquet", ".pq"), (".jsonl", ".ndjson", ".json")


class _File(Protocol):
    def write(self, documents: Sequence[Document], vectors: csr_matrix) -> None: ...
    def close(self) -> None: ...


def encode_to_file(
    documents: Iterable[Document | Refusal],
    encoder: TextEncoder,
    path: str | Path,
    *,
    key: KeyFormat | None = None,
    queries: bool = False,
    prune: Prune | None = None,
    duplicates: Duplicates = "refuse",
    embedding_field: str = "embedding",
    text_field: str = "text",
    title_field: str = "title",
    dead_letter: str | Path | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> IngestReport:
    """Encode documents into a file, streaming; it is there whole or not at all, and cannot be gone on with.

    Args:
        documents: From :func:`oskit.data.files.read_documents`, or your own.
        encoder: Encodes the passages.
        path: Ends with ``.parquet``, ``.jsonl`` or ``.jsonl.gz``; what is there is replaced at the end.
        key: Whether tokens are named by text or by id; None for texts where they are unambiguous.
        queries: Encode as queries.
        prune: Which weights to keep.
        duplicates: What becomes of documents with the same id and different contents.
        embedding_field: Name of the field, or column, with the weights.
        text_field: Column of the text, in Parquet.
        title_field: Column of the title, in Parquet.
        dead_letter: File for what is refused, appended to; None keeps only the counts.
        progress: Called with the number of further records that are done with, from several threads.

    Raises:
        UsageError: The name does not tell a format.
        DataError: A source cannot be read, or the file cannot be written.
        MissingDependencyError: Parquet without pyarrow.
        OskitError: What encoding raises.
    """
    path = Path(path)
    info = IndexInfo(
        str(path), "rank_features", key or encoder.vocabulary.key_format, embedding_field, None, "client"
    )
    maker = ItemMaker(info, encoder, prune, queries=queries)
    letters = DeadLetterFile(dead_letter) if dead_letter is not None else None
    account = Account(str(path), letters, maker.truncation, maker.encoding_s, progress, watch=maker.watch)
    writer = VectorWriter(encoder.vocabulary, info.key, prune)
    seen = DuplicateFilter(duplicates)
    windows = Admission(info).windows(documents, account, seen, patient=True)
    _format(path)
    with closing(seen), closing(letters) if letters is not None else nullcontext(), beside(path) as part:
        file: _File
        if _format(path) == "parquet":
            names = encoder.vocabulary.keys if info.key == "token" else ()
            columns = {"_id": "_id", "title": title_field, "text": text_field, "vector": embedding_field}
            file = _ParquetFile(part, writer, names, columns, _identity(encoder, info.key, prune))
        else:
            file = _JsonlFile(part, writer, embedding_field, zipped=path.suffix.lower() == ".gz")
        with closing(file), Line() as line:

            def write(window: Window, vectors: csr_matrix | None) -> None:
                assert vectors is not None
                try:
                    file.write(window.documents, vectors)
                except OSError as error:
                    raise DataError(f"cannot write {path}: {error.strerror or error}") from error
                account.settle(BulkOutcome(indexed=len(window.documents)))

            encoding, writing = encoding_stages(line, maker, write, progress)
            for window in windows:
                encoding.put(window, window.size)
            encoding.finish()
            writing.finish()
    return account.report()


def _format(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(_PARQUET) and not path.name.lower().endswith(".gz"):
        return "parquet"
    if name.endswith(_JSONL):
        return "jsonl"
    raise UsageError(
        f"the name of {path} does not tell its format", hint="Let it end with .parquet, .jsonl or .jsonl.gz"
    )


def _identity(encoder: TextEncoder, key: KeyFormat, prune: Prune | None) -> dict[str, Any]:
    """What a Parquet file says of its vectors."""
    archive, query = getattr(encoder, "archive", None), getattr(encoder, "query", None)
    return {
        "sha256": getattr(archive, "sha256", None),
        "name": getattr(archive, "name", None),
        "architecture": encoder.architecture,
        "query_sha256": getattr(query, "sha256", None),
        "key": key,
        "prune": str(prune) if prune else None,
    }


class _JsonlFile:
    """The documents as they were read, each with one more field."""

    def __init__(self, path: Path, writer: VectorWriter, field: str, *, zipped: bool) -> None:
        self._file = gzip.open(path, "wb", compresslevel=3) if zipped else path.open("wb")  # noqa: SIM115
        self._writer = writer
        self._field = b"," + orjson.dumps(field) + b":"

    def write(self, documents: Sequence[Document], vectors: csr_matrix) -> None:
        """Write a line for each."""
        for document, vector in zip(documents, self._writer.write(vectors), strict=True):
            body = dump({"_id": clean_text(document.id), **document.source()})
            self._file.write(b"".join((body[:-1], self._field, vector or b"{}", b"}\n")))

    def close(self) -> None:
        """Close it."""
        self._file.close()


class _ParquetFile:
    """Columns for id, title, text and vector; all other fields in one, as JSON, whatever their types are."""

    def __init__(
        self,
        path: Path,
        writer: VectorWriter,
        names: Sequence[str],
        columns: Mapping[str, str],
        metadata: Mapping[str, Any],
    ) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingDependencyError.for_extra(f"writing {path}", "pyarrow", "parquet") from error
        text = pyarrow.string()
        kinds = {columns["_id"]: text, columns["title"]: text, columns["text"]: text, FIELDS_COLUMN: text,
                 columns["vector"]: pyarrow.map_(text, pyarrow.float32())}  # fmt: skip
        if len(kinds) < len(columns) + 1:
            raise UsageError(f"two columns of {path} would have one name: {', '.join(columns.values())}")
        self._schema = pyarrow.schema(kinds.items(), {METADATA_KEY: json.dumps(metadata)})
        self._names = pyarrow.array(names, text) if names else None
        self._writer = writer
        self._tables: list[Any] = []
        self._bytes = 0
        self._file = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, documents: Sequence[Document], vectors: csr_matrix) -> None:
        """Keep a row for each; written with others, since small row groups are read slowly."""
        import pyarrow

        kept = self._writer.kept(vectors)
        ids = pyarrow.array(kept.indices)
        keys = ids.cast(pyarrow.string()) if self._names is None else self._names.take(ids)
        weights = pyarrow.array(kept.data.astype(np.float32, copy=False))
        offsets = pyarrow.array(kept.indptr.astype(np.int32))
        columns = [
            [clean_text(document.id) for document in documents],
            [clean_text(document.title) for document in documents],
            [clean_text(document.text) for document in documents],
            [dump(dict(document.fields)).decode() if document.fields else None for document in documents],
        ]
        vector = pyarrow.MapArray.from_arrays(offsets, keys, weights)
        table = pyarrow.table([*columns, vector], schema=self._schema)
        self._tables.append(table)
        self._bytes += table.nbytes
        if self._bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._tables:
            self._file.write_table(pyarrow.concat_tables(self._tables))
        self._tables, self._bytes = [], 0

    def close(self) -> None:
        """Write what is left, and the file's end."""
        try:
            self._flush()
        finally:
            self._file.close()
