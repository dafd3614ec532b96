"""Collections and training pairs of the benchmark, in one working folder."""

from __future__ import annotations

import json
import lzma
import random
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.demo.data import faq_split
from oskit.errors import DataError

COLLECTIONS = "collections.tar.xz"
PAIRS = "medquad-pairs.jsonl.xz"

MEDQUAD = "medquad-liveqa"
MEDQUAD_ALL_QUERIES = f"{MEDQUAD}, all queries"
"""The same with as many documents as all of its queries need, where it is cut."""
FAQ_ENGLISH, FAQ_SWEDISH = "faq-en", "faq-sv"

_FAQ_LANGUAGES = {FAQ_ENGLISH: "en", FAQ_SWEDISH: "sv"}
_WORDS = 200
"""Words of an answer that are kept for training: more than any encoder here reads of it."""

_DEV = 30
"""Questions for figures while training runs."""


@dataclass(frozen=True)
class Workspace:
    """Where the data is, and how much of it is used.

    Attributes:
        data: Folder that holds the collections' archive and the training pairs.
        work: Folder for what is made of them, and for runs and results.
        corpus: Documents of a large collection, with the queries whose judged documents fit; 0 for all.
        pairs: English training pairs, a random sample; 0 for all.
        queries: Queries of a large collection, a random sample; 0 for all.
    """

    data: Path
    work: Path
    corpus: int
    pairs: int
    queries: int = 0

    def collection(self, name: str) -> Collection:
        """A collection with the queries that no training here ever sees.

        Raises:
            DataError: The data folder lacks it.
        """
        if language := _FAQ_LANGUAGES.get(name):
            return replace(faq_split(language)[1], name=name)
        folder = MEDQUAD if name == MEDQUAD_ALL_QUERIES else name
        found = _with_queries(Collection.open(self._unpacked() / folder), self.queries)
        size = self.corpus
        if size and name == MEDQUAD_ALL_QUERIES:
            size = max(size, len({document for judged in found.qrels.values() for document in judged}))
        return replace(_with_documents(found, size), name=name)

    def pairs_file(self) -> Path:
        """English questions and answers, ``{"query": …, "positive": …}``, answers cut to some words."""
        path = self.work / f"medquad-{self.pairs or 'all'}.jsonl"
        if not path.is_file():
            records = self._records()
            records = records[_DEV : _DEV + self.pairs] if self.pairs else records[_DEV:]
            lines = ((record["query"], answer) for record in records for answer in record["pos"])
            _write(path, ((query, _cut(answer)) for query, answer in lines))
        return path

    def dev_folder(self) -> Path:
        """A few English questions that are not in :meth:`pairs_file`, for figures while training runs.

        The verdicts come from whole collections afterwards; a hold-out of the training data would be measured
        before and after each training too, which takes as long as the training.
        """
        folder = self.work / "medquad-dev"
        if not folder.is_dir():
            with staged(folder) as staging:
                _asked(self._records()[:_DEV]).write(staging)
        return folder

    def _records(self) -> list[dict[str, Any]]:
        """The English questions, each with its answers, in an order at random that is always the same."""
        with lzma.open(_present(self.data / PAIRS), "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        random.Random(0).shuffle(records)
        return records

    def faq_file(self, name: str) -> Path:
        """The FAQ's questions and answers without those that are held out."""
        path = self.work / f"{name}-train.jsonl"
        if not path.is_file():
            _write(path, faq_split(_FAQ_LANGUAGES[name])[0])
        return path

    def _unpacked(self) -> Path:
        folder = self.work / "collections"
        if not folder.is_dir():
            packed = _present(self.data / COLLECTIONS)
            with staged(folder) as staging, tarfile.open(packed) as archive:
                archive.extractall(staging, filter="data")
        return folder


@lru_cache(maxsize=4)
def _reduced_documents(path: Path, judged: frozenset[str], size: int) -> tuple[Document, ...]:
    documents = list(Collection({}, {}, path).documents())
    kept = [document for document in documents if document.id in judged]
    others = [document for document in documents if document.id not in judged]
    random.Random(0).shuffle(others)
    return tuple(islice((*kept, *others), size))


def _with_documents(collection: Collection, size: int) -> Collection:
    """A collection with ``size`` documents at most, and the queries whose judged documents are all there.

    Queries come at random, until one has no place for its documents; then other documents. 0 for all.
    """
    if not size:
        return collection
    assert isinstance(collection.corpus, Path)
    queries = sorted(collection.queries)
    random.Random(0).shuffle(queries)
    judged: set[str] = set()
    kept: list[str] = []
    for query in queries:
        wanted = judged | collection.qrels.get(query, {}).keys()
        if len(wanted) > size:
            break
        judged = wanted
        kept.append(query)
    if not kept:
        raise DataError(
            f"{size} documents of {collection.name} are too few for those that one query is judged by",
            hint="Raise --corpus, or give 0 for all.",
        )
    found = _only(collection, sorted(kept))
    return replace(found, corpus=_reduced_documents(collection.corpus, frozenset(judged), size))


def _with_queries(collection: Collection, size: int) -> Collection:
    """A collection with at most ``size`` queries, at random; 0 for all."""
    if not size or len(collection.queries) <= size:
        return collection
    return _only(collection, random.Random(0).sample(sorted(collection.queries), size))


def _only(collection: Collection, kept: list[str]) -> Collection:
    """A collection with some of its queries."""
    return replace(
        collection,
        queries={query: collection.queries[query] for query in kept},
        qrels={query: collection.qrels[query] for query in kept if query in collection.qrels},
    )


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Where to write a file or a folder, which is at ``path`` once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}")
    yield staging
    staging.rename(path)


def passages(file: Path) -> list[str]:
    """The answers of a file of pairs, in its order."""
    return [json.loads(line)["positive"] for line in file.read_text(encoding="utf-8").splitlines()]


def _cut(answer: str) -> str:
    return " ".join(answer.split()[:_WORDS])


def _asked(records: list[dict[str, Any]]) -> Collection:
    """Each question with its answers."""
    answers = {
        f"q{number}": {f"d{number}-{place}": _cut(answer) for place, answer in enumerate(record["pos"])}
        for number, record in enumerate(records)
    }
    return Collection(
        queries={f"q{number}": record["query"] for number, record in enumerate(records)},
        qrels={query: dict.fromkeys(texts, 1) for query, texts in answers.items()},
        corpus=tuple(Document(key, text) for texts in answers.values() for key, text in texts.items()),
    )


def _present(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"there is no {path}", hint="Name the folder that holds it with --data.")
    return path


def _write(path: Path, pairs: object) -> None:
    with staged(path) as staging, staging.open("w", encoding="utf-8") as file:
        for query, positive in pairs:  # type: ignore[attr-defined]
            file.write(json.dumps({"query": query, "positive": positive}, ensure_ascii=False) + "\n")
