"""Test collections in BEIR's layout: a corpus, queries, and relevance judgements (qrels).

::

    FOLDER/
      corpus.jsonl[.gz|.bz2|.xz|.zst]    {"_id": "d1", "title": "…", "text": "…"}
      queries.jsonl[.gz|…]               {"_id": "q1", "text": "…"}
      qrels/test.tsv                     query-id <tab> corpus-id <tab> score, with a header line
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oskit.data.compression import COMPRESSION_SUFFIXES
from oskit.data.documents import Document, FieldNames, Refusal
from oskit.data.duplicates import DuplicateFilter
from oskit.data.jsonl import broken_line, enumerate_lines, read_jsonl, read_objects
from oskit.data.values import text_of
from oskit.errors import DataError

CORPUS = "corpus.jsonl"
QUERIES = "queries.jsonl"
QRELS = "qrels"
QRELS_HEADER = "query-id\tcorpus-id\tscore"


@dataclass(frozen=True)
class Collection:
    """A corpus with queries and their relevance judgements.

    Args:
        queries: Text of each query that the split judges, by id, in the order of the file.
        qrels: For each query's id, the relevance of documents by their ids (0: judged, not relevant).
        corpus: The corpus, a file or the documents themselves.
        split: Which judgements these are.
        name: How reports call the collection.
    """

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    corpus: Path | tuple[Document, ...] = field(repr=False)
    split: str = "test"
    name: str = "collection"

    @classmethod
    def open(cls, folder: str | Path, split: str = "test") -> Collection:
        """Open a folder; queries and judgements are read now, the corpus when it is iterated.

        Raises:
            DataError: A file is missing or has a broken line; names the file and the line.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder", hint=f"A collection is a folder with {CORPUS}")
        corpus = find_corpus(folder)
        if corpus is None:
            raise DataError(f"{folder} has no {CORPUS}", hint="It must be a folder in BEIR's layout")
        qrels_path = _qrels_path(folder, split)
        qrels = read_qrels(qrels_path)
        texts = _read_queries(folder)
        if missing := [query for query in qrels if query not in texts]:
            raise DataError(
                f"{qrels_path} judges {len(missing)} queries that {QUERIES} lacks, such as {missing[0]!r}",
                hint="Both files must be of one collection",
            )
        queries = {query: text for query, text in texts.items() if query in qrels}
        return cls(queries, qrels, corpus, split, folder.resolve().name)

    def documents(self) -> Iterator[Document]:
        """The documents, streamed.

        Raises:
            DataError: At the first broken line, or when an id comes twice.
        """
        if isinstance(self.corpus, tuple):
            yield from self.corpus
            return
        with closing(DuplicateFilter()) as seen:
            for item in read_jsonl(self.corpus, FieldNames("_id")):
                if isinstance(item, Refusal):
                    broken_line(item.where, item.reason)
                if seen.check(item) != "new":
                    broken_line(item.where, f"the id {item.id!r} came before")
                yield item

    def write(self, folder: str | Path, documents: Iterable[Document] | None = None) -> Path:
        """Write the collection as a folder in BEIR's layout, uncompressed; returns the folder.

        Args:
            folder: Where.
            documents: A corpus to stream instead of the collection's own, which memory may not hold.

        Raises:
            DataError: The folder cannot be written.
        """
        folder = Path(folder)
        try:
            (folder / QRELS).mkdir(parents=True, exist_ok=True)
            corpus = self.documents() if documents is None else documents
            _write_lines(folder / CORPUS, map(_corpus_line, corpus))
            queries = ({"_id": key, "text": text} for key, text in self.queries.items())
            _write_lines(folder / QUERIES, map(_json, queries))
            write_qrels(folder / QRELS / f"{self.split}.tsv", self.qrels)
        except OSError as error:
            raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
        return folder


def find_corpus(folder: Path) -> Path | None:
    """The corpus of a folder in BEIR's layout, compressed or not; None if it has none."""
    return _find(folder, CORPUS)


def _find(folder: Path, name: str) -> Path | None:
    candidates = [folder / name, *(folder / f"{name}{suffix}" for suffix in COMPRESSION_SUFFIXES)]
    return next((path for path in candidates if path.is_file()), None)


def _qrels_path(folder: Path, split: str) -> Path:
    path = folder / QRELS / f"{split}.tsv"
    if path.is_file():
        return path
    splits = sorted(found.stem for found in (folder / QRELS).glob("*.tsv"))
    hint = f"It has: {', '.join(splits)}" if splits else f"Judgements belong in {QRELS}/<split>.tsv"
    raise DataError(f"{folder} has no judgements for the split {split!r}", hint=hint)


def find_queries(folder: Path) -> Path | None:
    """The queries of a folder in BEIR's layout, compressed or not; None if it has none."""
    return _find(folder, QUERIES)


def _read_queries(folder: Path) -> dict[str, str]:
    path = find_queries(folder)
    if path is None:
        raise DataError(f"{folder} has no {QUERIES}", hint="It must be a folder in BEIR's layout")
    queries: dict[str, str] = {}

    def use(record: dict[str, Any], _where: str) -> None:
        key = text_of(record["_id"], "_id")
        if key in queries:
            raise ValueError(f"the id {key!r} came before")
        queries[key] = text_of(record["text"], "text")

    read_objects(path, use)
    return queries


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Judgements of a file: for each query's id, the relevance of documents by their ids.

    Raises:
        DataError: A line is broken, or there are none; names the file and the line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate_lines(path):
        where = f"{path}:{number}"
        try:
            columns = line.decode().split("\t")
        except UnicodeDecodeError:
            broken_line(where, "not UTF-8")
        if len(columns) != 3:
            broken_line(where, f"{len(columns)} columns where query-id, corpus-id and score are due")
        query, document, score = (column.strip() for column in columns)
        if not re.fullmatch("-?[0-9]+", score):
            if number == 1:
                continue  # the header
            broken_line(where, f"the score {score!r} is not an integer")
        judged = qrels.setdefault(query, {})
        if document in judged and judged[document] != int(score):
            broken_line(where, f"query {query!r} and document {document!r} were judged differently before")
        judged[document] = int(score)
    if not qrels:
        raise DataError(f"{path} holds no judgements", hint=f"Its lines are: {QRELS_HEADER!r}")
    return qrels


def _corpus_line(document: Document) -> str:
    own = {key: value for key, value in document.fields.items() if key not in ("_id", "title", "text")}
    return _json({"_id": document.id, "title": document.title, "text": document.text, **own})


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def write_qrels(path: Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write judgements as BEIR has them."""
    _write_lines(path, _qrels_lines(qrels))


def _qrels_lines(qrels: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    yield QRELS_HEADER
    for query, judged in qrels.items():
        for document, score in judged.items():
            yield f"{query}\t{document}\t{score}"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(line + "\n")
