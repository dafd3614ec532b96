"""What is relevant to held-out queries besides their own answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.evaluation.offline.bm25 import Bm25Index
from oskit.training.data.arrow import LABELLED, RowWriter, open_rows
from oskit.training.data.training_data import TrainingData
from oskit.training.report.pooling import OWN, pool

ANSWER = "a virus brings measles, and the rash with it"
SAME = "A virus brings measles and the rash with it."
SUBJECT = "vitamin A and rest until the fever is gone"
ALIKE = "measles and pox are two illnesses"
FAR = "gold is dug in the hills"

PAIRS = {
    "what causes measles": ANSWER,
    "where does measles come from": SAME,
    "what treats measles": SUBJECT,
    "what causes pox": ALIKE,
    "what is gold": FAR,
    **{f"what causes thing{number}": f"some reason{number}" for number in range(20)},
    **{f"what treats thing{number}": f"some remedy{number}" for number in range(20)},
}


@pytest.fixture
def data() -> TrainingData:
    return TrainingData.of([{"query": query, "positive": text} for query, text in PAIRS.items()])


def held_out(data: TrainingData, query: str = "what causes measles", key: str = "q") -> Collection:
    texts = dict(zip(data.corpus["text"], data.corpus["id"], strict=True))
    documents = tuple(Document(identity, text) for text, identity in texts.items())
    return Collection({key: query}, {key: {texts[PAIRS[query]]: 1}}, documents)


def by_text(data: TrainingData, qrels: dict[str, dict[str, int]]) -> dict[str, int]:
    texts = dict(zip(data.corpus["id"], data.corpus["text"], strict=True))
    return {texts[document]: grade for document, grade in qrels["q"].items()}


def test_texts_nearly_the_same_are_answers_and_those_of_the_subject_are_near(
    data: TrainingData, tmp_path: Path
) -> None:
    found = pool(data, held_out(data), None, tmp_path)
    assert found is not None
    grades, facts = by_text(data, found[0]), found[1]
    assert grades[ANSWER] == grades[SAME] == OWN
    assert OWN / 2 <= grades[SUBJECT] < OWN, "an answer of a query that shares its rare word"
    assert set(grades) == {ANSWER, SAME, SUBJECT}, "a shared word is no subject"
    assert (facts.own, facts.same, facts.subject, facts.taught) == (1, 1, 1, None)
    assert 0 < facts.overlap < 1, "of what causes measles the answer has measles alone"


def test_teachers_and_bm25_grade_the_pool(data: TrainingData, tmp_path: Path) -> None:
    scores = {ANSWER: 0.8, SAME: 0.9, SUBJECT: -0.1, ALIKE: 0.5}
    asked: list[list[str]] = []

    def label(given: TrainingData) -> TrainingData:
        with RowWriter(tmp_path / "labelled.arrow", LABELLED) as writer:
            for row in given.examples:
                asked.append(given.texts_of(row["candidates"]))
                labels = [scores.get(text, float("nan")) for text in asked[-1]]
                writer.add(*row.values(), labels)
        return given.with_examples(open_rows(tmp_path / "labelled.arrow"))

    found = pool(data, held_out(data), label, tmp_path)
    assert found is not None
    assert {ANSWER, SAME, SUBJECT, ALIKE} <= set(asked[0])
    assert FAR not in asked[0], "nobody finds it"
    grades = by_text(data, found[0])
    assert grades[ANSWER] == OWN
    # Each from the pool's lowest score to its highest: the teachers' are -0.1 and 0.9.
    words = list(data.corpus["text"])
    ((places, values),) = Bm25Index(words).search(["what causes measles"], 50)
    bm25 = {words[place]: value for place, value in zip(places, values, strict=True)}
    assert min(bm25.get(text, 0) for text in asked[0]) == 0, "of the subject, without a word in common"
    taught, found_by_words = (0.5 + 0.1) / (0.9 + 0.1), bm25[ALIKE] / max(bm25.values())
    assert grades[ALIKE] == round(OWN * (taught + found_by_words) / 2)
    assert found[1].taught is not None and found[1].taught >= 3


def test_of_data_that_has_scores_alone_the_best_scored_are_answers(tmp_path: Path) -> None:
    texts = list(PAIRS.values())
    scored = TrainingData.of(
        [
            {"query": query, "docs": [texts[number - 1], text], "scores": [0.5, 2.0]}
            for number, (query, text) in enumerate(PAIRS.items())
        ]
    )
    found = pool(scored, held_out(scored), None, tmp_path)
    assert found is not None
    grades = by_text(scored, found[0])
    assert grades[ANSWER] == grades[SAME] == OWN > grades[SUBJECT] > 0
