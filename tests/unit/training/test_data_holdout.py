"""Queries held out of training data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oskit.data.collection import Collection
from oskit.errors import DataError, UsageError
from oskit.training import TrainingData, find_leakage, hold_out, load_training_data
from oskit.training.data.normalising import same_key


def data_of(path: Path, count: int = 100, *, reverse: bool = False) -> TrainingData:
    """``count`` queries, each spelled in two ways and with two positives, one of which all share."""
    rows = []
    for i in range(count):
        rows.append({"query": f"question {i}", "positive": f"answer {i}"})
        rows.append({"query": f"Question {i}?", "positive": "the answer of all"})
    path.write_text("".join(json.dumps(row) + "\n" for row in (reversed(rows) if reverse else rows)))
    return load_training_data([path])


def test_a_query_is_held_out_with_all_its_spellings_and_positives(tmp_path: Path) -> None:
    data = data_of(tmp_path / "a.jsonl")
    training, collection = hold_out(data, count=10)
    assert len(collection.queries) == 10
    assert len(training) == 180
    assert all(len(judged) == 2 for judged in collection.qrels.values())
    assert find_leakage(training, collection, threshold=1).rows == ()
    texts = {document.id: document.text for document in collection.documents()}
    assert len(texts) == 101, "the whole corpus, with the positives of the queries held out"
    for key, query in collection.queries.items():
        number = query.split()[1].rstrip("?")
        assert {texts[document] for document in collection.qrels[key]} == {
            f"answer {number}",
            "the answer of all",
        }


def test_the_choice_depends_on_the_seed_and_the_query_alone(tmp_path: Path) -> None:
    def chosen(data: TrainingData, seed: int = 0) -> set[str]:
        queries = hold_out(data, fraction=0.2, seed=seed)[1].queries
        return {query.lower().rstrip("?") for query in queries.values()}

    first = chosen(data_of(tmp_path / "a.jsonl"))
    assert 8 <= len(first) <= 34
    assert chosen(data_of(tmp_path / "b.jsonl", reverse=True)) == first
    more = chosen(data_of(tmp_path / "c.jsonl", count=150))
    assert {query for query in more if int(query.split()[1]) < 100} == first
    assert chosen(data_of(tmp_path / "a.jsonl"), seed=1) != first


def test_written_to_a_folder_it_is_the_same(tmp_path: Path) -> None:
    data = data_of(tmp_path / "a.jsonl")
    _, held = hold_out(data, count=5)
    _, written = hold_out(data, count=5, folder=tmp_path / "held")
    opened = Collection.open(tmp_path / "held")
    assert isinstance(written.corpus, Path)
    for other in (written, opened):
        assert (other.queries, other.qrels) == (held.queries, held.qrels)
        assert list(other.documents()) == list(held.documents())


def answers_of(data: TrainingData) -> set[str]:
    return {text for row in data.examples for text in data.texts_of(row["candidates"][: row["positives"]])}


def relevant_texts(collection: Collection) -> set[str]:
    judged = {document for row in collection.qrels.values() for document in row}
    return {document.text for document in collection.documents() if document.id in judged}


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_what_is_nearly_asked_or_answered_in_the_evaluation_is_not_trained_on(fraction: float) -> None:
    """Questions that are nearly the same, and texts that answer several, on both sides of every cut."""
    things = [f"thing{i} of kind{i % 7} from place{i % 11}" for i in range(120)]
    rows = [
        {"query": spelled.format(thing), "positive": f"All about {thing}{ending}"}
        for thing in things
        for spelled, ending in (
            ("how do I get a licence for {}", "."),
            ("how do I get licence for {}", ", more."),
            ("what is the price of {} and who pays it", "!"),
            ("tell me when {} was founded", ""),
        )
    ]
    data = TrainingData.of(rows)
    training, collection = hold_out(data, fraction=fraction)
    assert find_leakage(training, collection).rows == ()
    relevant = {same_key(text) for text in relevant_texts(collection)}
    assert relevant.isdisjoint(map(same_key, answers_of(training)))
    assert any("nearly the same as queries held out" in note for note in training.notes)
    held = len(collection.queries)
    assert abs(held - fraction * len(rows)) < 0.6 * fraction * len(rows)
    assert len(training) > len(rows) - 3 * held, "and no more is lost than is near"


def test_a_query_loses_a_positive_that_the_evaluation_asks_for(tmp_path: Path) -> None:
    """Each query has an answer of its own, and shares another one with the next query."""
    rows = [
        {
            "query": f"unlike{n} words{n * 3}",
            "positives": [f"own {n}", f"shared {n // 2 * 2}"],
            "negatives": ["x"],
        }
        for n in range(80)
    ]
    data = TrainingData.of({**row, "scores": [3.0, 2.0, 1.0]} for row in rows)
    training, collection = hold_out(data, fraction=0.2)
    assert answers_of(training).isdisjoint(relevant_texts(collection))
    assert len(training) + len(collection.queries) == 80, "their own answers are left"
    touched = [row for row in training.examples if row["positives"] == 1]
    assert touched
    for row in touched:
        assert [text.split()[0] for text in training.texts_of(row["candidates"])] == ["own", "x"]
        assert row["scores"] == [3, 1]
    assert any("lose a positive that is relevant to a query held out" in note for note in training.notes)


def test_questions_about_one_text_are_held_out_together() -> None:
    rows = [{"query": f"question{n} number{n * 7}", "positive": f"paragraph {n // 5}"} for n in range(500)]
    training, collection = hold_out(TrainingData.of(rows), fraction=0.2)
    assert len(training) + len(collection.queries) == 500, "nothing is lost"
    assert len(collection.queries) % 5 == 0
    assert answers_of(training).isdisjoint(relevant_texts(collection))


def test_an_answer_of_all_does_not_hold_out_all() -> None:
    rows = [{"query": f"question{n} number{n * 7}", "positive": ["yes", "no"][n % 2]} for n in range(300)]
    training, collection = hold_out(TrainingData.of(rows), fraction=0.2)
    assert 30 < len(collection.queries) < 90
    assert len(training) + len(collection.queries) == 300
    assert any("too many have it" in note for note in training.notes)


def test_data_with_scores_alone_is_judged_by_the_best_of_them() -> None:
    rows = [
        {"query": f"question{n} number{n * 7}", "docs": [f"a{n}", f"b{n}", f"c{n}"], "scores": [1, 3, None]}
        for n in range(60)
    ]
    training, collection = hold_out(TrainingData.of(rows), fraction=0.3)
    assert any("best scored candidate counts as relevant" in note for note in training.notes)
    texts = {document.id: document.text for document in collection.documents()}
    for key, query in collection.queries.items():
        assert [texts[document] for document in collection.qrels[key]] == [
            f"b{query.split()[0].removeprefix('question')}"
        ]


def test_a_query_that_is_a_document_has_its_id() -> None:
    """So rankings leave it out, as BEIR's do for ArguAna."""
    rows = [
        {"query": f"claim{n} number{n * 7}", "positive": f"claim{n + 1} number{n * 7 + 7}"} for n in range(50)
    ]
    _, collection = hold_out(TrainingData.of(rows), fraction=0.3)
    texts = {document.id: document.text for document in collection.documents()}
    found = {query: texts.get(key) for key, query in collection.queries.items()}
    assert all(text == query for query, text in found.items() if query != "claim0 number0")
    assert all(key not in judged for key, judged in collection.qrels.items())


def test_what_cannot_be_held_out(tmp_path: Path) -> None:
    data = data_of(tmp_path / "a.jsonl", count=2)
    for wrong in ({}, {"fraction": 0.5, "count": 1}, {"count": 0}, {"fraction": 1.0}):
        with pytest.raises(UsageError):
            hold_out(data, **wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="of 2 queries 2 would be held out, which leaves none to train on"):
        hold_out(data, count=2)
