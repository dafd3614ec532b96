"""Collections and training pairs of the benchmark, in one working folder."""

from __future__ import annotations

import json
import lzma
import random
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.demo.data import demo_collection, faq_split
from oskit.errors import DataError

COLLECTIONS = "collections.tar.xz"
PAIRS = "medquad-pairs.jsonl.xz"

MEDQUAD = "medquad-liveqa"
FAQ_ENGLISH, FAQ_SWEDISH = "faq-en", "faq-sv"
ASIDE = ("dbpedia5k", "xquad-en")
"""Of other subjects than what is trained on: what an encoder could do before."""

_FAQ_LANGUAGES = {FAQ_ENGLISH: "en", FAQ_SWEDISH: "sv"}
_WORDS = 500
"""Words of an answer that are kept for training: more than any encoder here reads of it."""

_WATCHED = 30
"""Questions for figures while training runs."""

DEV = {MEDQUAD: 150, FAQ_ENGLISH: 110, FAQ_SWEDISH: 110}
"""Questions of each development set: other ones than those that rows are measured on."""

_DEV_ANSWERS = 2000
"""Answers to other questions among which those of :data:`DEV` are to be found."""

On = Literal["test", "dev"]


@dataclass(frozen=True)
class Workspace:
    """Where the data is, and how much of it is used.

    Attributes:
        data: Folder that holds the collections' archive and the training pairs.
        work: Folder for what is made of them, and for runs and results.
        on: ``test``: what rows are measured on. ``dev``: development sets, by which alone recipes are chosen.
        corpus: Documents of a large collection, with the queries whose judged documents fit; 0 for all.
        pairs: English training pairs, a random sample; 0 for all.
        queries: Queries of a large collection, a random sample; 0 for all.
    """

    data: Path
    work: Path
    on: On = "test"
    corpus: int = 0
    pairs: int = 0
    queries: int = 0

    def collection(self, name: str) -> Collection:
        """A collection with queries that no training here sees.

        Raises:
            DataError: The data folder lacks it, or there is no development set of it.
        """
        if self.on == "dev":
            return self._dev(name)
        if language := _FAQ_LANGUAGES.get(name):
            return replace(faq_split(language)[1], name=name)
        found = _with_queries(Collection.open(self._unpacked() / name), self.queries)
        return replace(_with_documents(found, self.corpus), name=name)

    def _dev(self, name: str) -> Collection:
        if name == MEDQUAD:
            start, end = _WATCHED, _WATCHED + DEV[MEDQUAD]
            others = [answer for record in self._records()[end:] for answer in record["pos"]]
            return _asked(self._records()[start:end], others[:_DEV_ANSWERS], name=f"{name}, dev")
        if language := _FAQ_LANGUAGES.get(name):
            held = {question for question, _ in self._faq_dev(name)}
            whole = demo_collection(language)
            queries = {key: text for key, text in whole.queries.items() if text in held}
            qrels = {key: whole.qrels[key] for key in queries}
            return replace(whole, queries=queries, qrels=qrels, name=f"{name}, dev")
        raise DataError(f"{name} has no development set: nothing is trained on it")

    def _faq_dev(self, name: str) -> list[tuple[str, str]]:
        """Some of the questions that ``test`` trains on."""
        train = faq_split(_FAQ_LANGUAGES[name])[0]
        return random.Random(0).sample(train, DEV[name])

    def pairs_file(self) -> Path:
        """English questions and answers, ``{"query": …, "positive": …}``, answers cut to some words."""
        path = self.work / f"medquad-{self.pairs or 'all'}.jsonl"
        if not path.is_file():
            start = _WATCHED + DEV[MEDQUAD]
            records = self._records()[start : start + self.pairs if self.pairs else None]
            lines = ((record["query"], answer) for record in records for answer in record["pos"])
            _write(path, ((query, _cut(answer)) for query, answer in lines))
        return path

    def watched_folder(self) -> Path:
        """A few English questions that are not in :meth:`pairs_file`, for figures while training runs.

        They choose nothing: each training is measured by its last step. A hold-out of the training data would
        be measured before and after each training too, which takes as long as the training.
        """
        folder = self.work / "medquad-watched"
        if not folder.is_dir():
            with staged(folder) as staging:
                _asked(self._records()[:_WATCHED], [], name="watched").write(staging)
        return folder

    def _records(self) -> list[dict[str, Any]]:
        """The English questions, each with its answers, in an order at random that is always the same."""
        with lzma.open(_present(self.data / PAIRS), "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        random.Random(0).shuffle(records)
        return records

    def faq_file(self, name: str) -> Path:
        """The FAQ's questions and answers without those that are held out."""
        path = self.work / f"{name}-for-{self.on}.jsonl"
        if not path.is_file():
            held = {question for question, _ in self._faq_dev(name)} if self.on == "dev" else set()
            train = faq_split(_FAQ_LANGUAGES[name])[0]
            _write(path, [pair for pair in train if pair[0] not in held])
        return path

    def documents_file(self, name: str) -> Path:
        """The FAQ's answers, all that are searched: ``{"text": …}``."""
        path = self.work / f"{name}-documents.jsonl"
        if not path.is_file():
            documents = demo_collection(_FAQ_LANGUAGES[name]).documents()
            _write_lines(path, ({"text": one.passage} for one in documents))
        return path

    def training_file(self, name: str) -> Path:
        """What is trained on for a collection."""
        return self.faq_file(name) if name in _FAQ_LANGUAGES else self.pairs_file()

    def corpus_file(self, name: str) -> Path:
        """The documents of a collection, with their titles."""
        return self._unpacked() / name / "corpus.jsonl"

    def titles_file(self, name: str) -> Path:
        """The titles alone of a collection's documents: ``{"text": …, "read": …}``."""
        path = self.work / f"{name}-titles.jsonl"
        if not path.is_file():
            documents = Collection.open(self._unpacked() / name).documents()
            _write_others(path, ((one.passage, one.title) for one in documents if one.title))
        return path

    def english_file(self) -> Path:
        """The Swedish FAQ's training questions and answers in English: ``{"text": …, "read": …}``."""
        path = self.work / f"faq-english-for-{self.on}.jsonl"
        if not path.is_file():
            trained = set(questions(self.faq_file(FAQ_SWEDISH)))
            swedish, english = (demo_collection(language) for language in ("sv", "en"))
            pairs = [(text, english.queries[key]) for key, text in swedish.queries.items() if text in trained]
            answers = {key: document.text for document in english.documents() for key in (document.id,)}
            pairs += [(one.text, answers[one.id]) for one in swedish.documents() if one.id in answers]
            _write_others(path, pairs)
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


def questions(file: Path) -> list[str]:
    """The questions of a file of pairs, in its order."""
    return [json.loads(line)["query"] for line in file.read_text(encoding="utf-8").splitlines()]


def passages(file: Path) -> list[str]:
    """The answers of a file of pairs, in its order."""
    return [json.loads(line)["positive"] for line in file.read_text(encoding="utf-8").splitlines()]


def _cut(answer: str) -> str:
    return " ".join(answer.split()[:_WORDS])


def _asked(records: list[dict[str, Any]], others: list[str], *, name: str) -> Collection:
    """Each question with its answers, among answers to others."""
    answers = {
        f"q{number}": {f"d{number}-{place}": answer for place, answer in enumerate(record["pos"])}
        for number, record in enumerate(records)
    }
    there = {text for texts in answers.values() for text in texts.values()}
    distinct = (text for text in dict.fromkeys(others) if text not in there)
    named = [*answers.values(), {f"other-{number}": text for number, text in enumerate(distinct)}]
    return Collection(
        queries={f"q{number}": record["query"] for number, record in enumerate(records)},
        qrels={query: dict.fromkeys(texts, 1) for query, texts in answers.items()},
        corpus=tuple(Document(key, text) for texts in named for key, text in texts.items()),
        name=name,
    )


def _present(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"there is no {path}", hint="Name the folder that holds it with --data.")
    return path


def _write(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    _write_lines(path, ({"query": query, "positive": positive} for query, positive in pairs))


def _write_others(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """What a teacher reads in place of texts."""
    _write_lines(path, ({"text": text, "read": read} for text, read in pairs))


def _write_lines(path: Path, lines: Iterable[dict[str, str]]) -> None:
    with staged(path) as staging, staging.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
