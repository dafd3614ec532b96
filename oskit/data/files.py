"""Read documents from files of any kind: JSONL, CSV, TSV, Parquet, a folder in BEIR's layout, stdin."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from oskit.data.collection import CORPUS, find_corpus
from oskit.data.compression import COMPRESSION_SUFFIXES, STDIN
from oskit.data.documents import OSKIT_KEY, Document, FieldNames, Record, Refusal
from oskit.data.jsonl import document_of, read_objects_of
from oskit.data.parquet import count_rows, read_parquet_rows
from oskit.data.tables import read_rows
from oskit.errors import DataError, UsageError

_log = logging.getLogger(__name__)

Format = Literal["jsonl", "csv", "tsv", "parquet"]

FORMATS: tuple[Format, ...] = get_args(Format)

_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16

_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def read_documents(
    sources: Sequence[str | Path],
    *,
    format: Format | None = None,
    id_field: str | None = None,
    text_field: str | Sequence[str] = "text",
    title_field: str = "title",
    vector_field: str | None = None,
) -> Iterator[Document | Refusal]:
    """Stream the documents of files, folders in BEIR's layout, and stdin (``-``), one after the other.

    Every record gives exactly one item: a document, or a refusal that says where and why. Memory is
    bounded by the longest record. Compressed files (gzip, bz2, xz, zstd) are noticed by their content.

    Args:
        sources: Files, folders, or ``-``.
        format: Format of the files; without it their names tell. Stdin is JSONL without it.
        id_field: Field that holds the id. Without it ``_id``, ``id``, or else a hash of the content.
        text_field: Field that holds the text. Of several, the texts are joined in their order, and a record
            may lack some; if the first is ``title_field``, it is the title, and else there is none.
        title_field: Field that holds the title; records need not have it.
        vector_field: Field that holds token weights, which every record must have; None where there is none.

    Raises:
        UsageError: A format cannot be told, or stdin is named twice.
        DataError: A file cannot be read. All sources are looked at before the first is read.
    """
    if [str(source) for source in sources].count(STDIN) > 1:
        raise UsageError("'-' (stdin) can be read only once")
    texts = [text_field] if isinstance(text_field, str) else text_field
    names = FieldNames.of(id_field, texts, title_field, vector_field)
    files = [_resolve(source, format) for source in sources]
    return _read_all(files, names)


def read_records(
    source: str | Path, *, format: Format | None = None, wanted: Sequence[str] = ()
) -> Iterator[Record | Refusal]:
    """Stream the records of a file as they are; every record gives exactly one item.

    Args:
        source: A file, compressed or not, or ``-``; of a folder in BEIR's layout, its corpus.
        format: Format of the file; without it its name tells. Stdin is JSONL without it.
        wanted: Columns that may be there; they tell how a CSV file is separated.

    Raises:
        UsageError: The format cannot be told.
        DataError: The file cannot be read.
    """
    path, kind = _resolve(source, format)
    return _records(path, kind, wanted, {}, None)


def count_records(sources: Sequence[str | Path], *, format: Format | None = None) -> int | None:
    """About how many records there are, for a progress bar; None where telling takes reading them.

    Of a large file some parts are looked at.

    Raises:
        UsageError, DataError: As :func:`read_documents`.
    """
    counts = [_count(source, kind) for source, kind in (_resolve(source, format) for source in sources)]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _count(source: str | Path, kind: Format) -> int | None:
    path = Path(source)
    if not path.is_file() or path.suffix.lower() in COMPRESSION_SUFFIXES:
        return None
    if kind == "parquet":
        return count_rows(path)
    try:
        lines = _count_lines(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return lines if kind == "jsonl" else max(0, lines - 1)


def _count_lines(path: Path) -> int:
    """Exactly in a file of up to 1 MiB; else by parts that lie evenly in it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            return file.read().count(b"\n")
        found = 0
        for number in range(_SAMPLES):
            file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            found += file.read(_SAMPLE_BYTES).count(b"\n")
    return max(1, round(found * size / (_SAMPLES * _SAMPLE_BYTES)))


def _read_all(files: list[tuple[str | Path, Format]], names: FieldNames) -> Iterator[Document | Refusal]:
    required = dict.fromkeys(names.texts, "--text-field")
    required |= {} if names.id is None else {names.id: "--id-field"}
    told = names.id in (None, "_id")
    lacking = set(names.texts) if names.joined else set()
    for source, kind in files:
        for item in _records(source, kind, names.texts, required, names.vector):
            if lacking and isinstance(item, Record):
                lacking -= item.values.keys()
            if (
                not told
                and isinstance(item, Record)
                and "_id" in item.values
                and OSKIT_KEY not in item.values
            ):
                _log.warning("%s has an '_id', which is left out: ids are in %r", item.where, names.id)
                told = True
            yield document_of(item, names)
    for name in sorted(lacking):
        _log.warning("no record has the field %r, which --text-field names", name)


def _records(
    source: str | Path,
    kind: Format,
    wanted: Sequence[str],
    required: Mapping[str, str],
    vector: str | None,
) -> Iterator[Record | Refusal]:
    if kind == "jsonl":
        return read_objects_of(source)
    if kind == "parquet":
        return read_parquet_rows(Path(source), required=required, vector=vector)
    return read_rows(source, wanted=wanted, required=required, tabs=kind == "tsv")


def _resolve(source: str | Path, format: Format | None) -> tuple[str | Path, Format]:
    if str(source) == STDIN:
        if format == "parquet":
            raise UsageError("Parquet cannot be read from stdin", hint="Name the file instead")
        return STDIN, format or "jsonl"
    path = Path(source)
    if path.is_dir():
        corpus = find_corpus(path)
        if corpus is None:
            raise DataError(f"the folder {path} has no {CORPUS}", hint="Name the files themselves")
        return corpus, "jsonl"
    if not path.exists():
        raise DataError(f"no such file: {path}")
    return path, format or _format_of(path)


def _format_of(path: Path) -> Format:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSION_SUFFIXES:
        suffixes.pop()
    kind = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise UsageError(
            f"the name of {path} does not tell its format",
            hint=f"Say it with --format, or a source's key format: {'|'.join(FORMATS)}",
        )
    return kind
