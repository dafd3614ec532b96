"""Whether training queries are also evaluation queries, against brute force."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.errors import UsageError
from oskit.training import find_leakage, load_training_data
from oskit.training.data.leakage import drop_leaking
from oskit.training.data.normalising import normalise, words


def collection(queries: list[str], documents: tuple[Document, ...] = ()) -> Collection:
    texts = {f"q{i}": query for i, query in enumerate(queries)}
    relevant = {document.id: 1 for document in documents} or {"d": 1}
    return Collection(texts, dict.fromkeys(texts, relevant), documents, name="exam")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("How deep is it?", "how  deep is it", True),
        ("\uff28ow deep", "how deep", True),  # full width
        ("Straße", "STRASSE", True),
        ("what is C#", "what is C", False),
        ("what is C++", "what is C", False),
        ("क्या", "कया", False),
        ("???", "!!!", False),
    ],
)
def test_what_is_the_same(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


def test_words_of_scripts_without_spaces() -> None:
    assert words(normalise("桥有多长 bridge")) == {"桥有", "有多", "多长", "bridge"}
    assert words("桥") == {"桥"}


TRAINING = [
    "How do I get a building permit?",
    "how do i get building permit",
    "what are the first symptoms of measles",
    "who gets measles",
    "where is the town hall",
]


def test_the_same_and_nearly_the_same() -> None:
    exam = collection(
        ["how do I get a building permit", "what are the first symptoms of mumps", "who gets mumps"]
    )
    report = find_leakage(TRAINING, exam)
    assert report.exact_rows == (0,)
    assert report.near_rows == (1,)
    assert report.leaked_queries == 1
    # Six words shared, each in 3 of the 8 queries; "a" is in 2. Counting each word 1 it would be 6/7.
    shared = 6 * math.log(1 + 8 / 3)
    assert [leak.similarity for leak in report.leaks] == [
        1,
        pytest.approx(shared / (shared + math.log(1 + 8 / 2))),
    ]
    assert "2 of 5 training queries are evaluation queries of exam (1 the same, 1 nearly)" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["near"] == 1


def test_without_leakage() -> None:
    report = find_leakage(TRAINING, collection(["how high is the tower"]))
    assert report.rows == ()
    assert str(report) == "no training query is an evaluation query of exam"


def brute_force(training: list[str], evaluation: list[str], threshold: float) -> set[int]:
    """Every pair compared, by the definition."""
    df = Counter(word for text in [*training, *evaluation] for word in set(text.split()))
    weight = {word: math.log(1 + (len(training) + len(evaluation)) / count) for word, count in df.items()}
    near = set()
    for row, one in enumerate(training):
        for other in evaluation:
            a, b = set(one.split()), set(other.split())
            counted = len(a & b) / len(a | b)
            weighted = sum(weight[word] for word in a & b) / sum(weight[word] for word in a | b)
            if one != other and min(counted, weighted) >= threshold:
                near.add(row)
    return near - {row for row, one in enumerate(training) if one in evaluation}


@pytest.mark.parametrize("threshold", [0.3, 0.55, 0.8])
def test_the_index_finds_what_comparing_all_pairs_finds(threshold: float) -> None:
    rng = random.Random(5)
    vocabulary = [f"w{i}" for i in range(30)]

    def draw(count: int) -> list[str]:
        found = {
            " ".join(rng.sample(vocabulary[: rng.choice([6, 30])], rng.randint(1, 6))) for _ in range(count)
        }
        return sorted(found)

    training, evaluation = draw(300), draw(40)
    report = find_leakage(training, collection(evaluation), threshold=threshold)
    expected = brute_force(training, evaluation, threshold)
    assert set(report.near_rows) == expected
    assert len(expected) > 5
    assert set(report.exact_rows) == {row for row, text in enumerate(training) if text in evaluation}


def test_documents_that_training_saw_are_told_apart_from_queries(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        ("how wide", "The Answer, one."),
        ("how deep", "another answer"),
        ("how tall", "Depth two metres"),
    ]
    path.write_text("".join(json.dumps({"query": q, "positive": p}) + "\n" for q, p in rows))
    documents = (
        Document("1", "the answer one"),
        Document("2", "two metres", "Depth"),
        Document("3", "unseen"),
    )
    data = load_training_data([path])
    report = find_leakage(data, collection(["How deep?"], documents))
    assert report.exact_rows == (1,)
    assert (report.relevant_documents, report.trained_documents, report.trained_rows) == (3, 2, 2)
    assert "2 of 3 relevant documents are also training positives (in-domain)" in str(report)
    left = drop_leaking(data, report)
    assert list(left.examples["query"]) == ["how wide", "how tall"]
    assert left.corpus is not None and len(left.corpus) == 3
    assert len(data) == 3


@pytest.mark.parametrize("threshold", [0, 1.1])
def test_a_threshold_that_cannot_be(threshold: float) -> None:
    with pytest.raises(UsageError, match="threshold of similarity"):
        find_leakage(TRAINING, collection(["a"]), threshold=threshold)
