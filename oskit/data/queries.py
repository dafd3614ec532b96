"""Files of queries: one a line, with ids or by their line numbers, as texts or as token weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oskit.data.collection import QUERIES, find_queries
from oskit.data.compression import COMPRESSION_SUFFIXES, source_name
from oskit.data.jsonl import broken_line, enumerate_lines, load_object
from oskit.data.values import text_of
from oskit.errors import DataError

_IDS = ("_id", "id", "qid", "query_id")
_TEXTS = ("text", "query")
_HEADER = (*_IDS, "query-id")
"""Of the first column of a TSV file that begins with the names of its columns."""

_WEIGHTS = "embedding"
"""Where ``oskit encode -o`` puts token weights."""


@dataclass(frozen=True)
class FileQuery:
    """A query of a file.

    Attributes:
        id: Its own, or the number of its line.
        query: A text, or token weights.
        where: File and line.
    """

    id: str
    query: str | dict[str, float]
    where: str

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to search for."""
        return not (self.query.strip() if isinstance(self.query, str) else self.query)


def read_queries(source: str | Path) -> list[FileQuery]:
    """The queries of a file, or of a folder in BEIR's layout; lines that are blank are none.

    JSONL (``_id`` or ``id``, ``qid``, ``query_id``, and ``text`` or ``query``, or token weights in
    ``embedding``), TSV (id, tab, text), or else one query a line, whose id is the number of the line; by the
    name, and where that does not tell, by the first line. Compressed or not; ``-`` is stdin.

    Raises:
        DataError: It cannot be read, or has no queries, or a line is broken or has an id that came before.
    """
    if Path(source).is_dir():
        found = find_queries(Path(source))
        if found is None:
            raise DataError(f"{source} has no {QUERIES}", hint="Give a file, or a folder in BEIR's layout")
        source = found
    queries = list(_read(source))
    seen: set[str] = set()
    for query in queries:
        if query.id in seen:
            broken_line(query.where, f"the id {query.id!r} came before")
        seen.add(query.id)
    if not queries:
        raise DataError(f"{source_name(source)} has no queries")
    return queries


def _read(source: str | Path) -> Iterator[FileQuery]:
    name = source_name(source)
    read = _by_name(name)
    for number, line in enumerate_lines(source):
        read = read or (_json_line if line.lstrip().startswith(b"{") else _text_line)
        where = f"{name}:{number}"
        try:
            key, query = read(line, number)
        except KeyError as error:
            broken_line(where, f"no field {error.args[0]}")
        except (ValueError, RecursionError) as error:
            broken_line(where, str(error))
        if not key or key.split() != [key]:
            broken_line(where, f"the id {key!r} is empty or has a blank in it, which ends a column of a run")
        if number == 1 and key in _HEADER and query in _TEXTS:
            continue
        yield FileQuery(key, query, where)


def _by_name(name: str) -> Callable[[bytes, int], tuple[str, Any]] | None:
    plain = name.lower()
    for suffix in COMPRESSION_SUFFIXES:
        plain = plain.removesuffix(suffix)
    if plain.endswith((".jsonl", ".ndjson", ".json")):
        return _json_line
    return _tsv_line if plain.endswith(".tsv") else None


def _json_line(line: bytes, number: int) -> tuple[str, Any]:
    record = load_object(line)
    key = next((name for name in _IDS if name in record), None)
    identity = str(number) if key is None else text_of(record[key], key)
    text = next((name for name in _TEXTS if record.get(name) is not None), None)
    if text is not None:
        return identity, text_of(record[text], text)
    if not isinstance(record.get(_WEIGHTS), dict):
        raise KeyError("'text', 'query' or 'embedding'")
    return identity, record[_WEIGHTS]


def _tsv_line(line: bytes, _number: int) -> tuple[str, Any]:
    identity, tab, text = line.decode().partition("\t")
    if not tab:
        raise ValueError("no tab between an id and a text")
    return identity.strip(), text


def _text_line(line: bytes, number: int) -> tuple[str, Any]:
    return str(number), line.decode()
