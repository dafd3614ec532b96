"""Queries held out of training data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oskit.data.collection import Collection
from oskit.errors import DataError, UsageError
from oskit.training import TrainingData, find_leakage, hold_out, load_training_data


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


def test_what_cannot_be_held_out(tmp_path: Path) -> None:
    data = data_of(tmp_path / "a.jsonl", count=2)
    for wrong in ({}, {"fraction": 0.5, "count": 1}, {"count": 0}, {"fraction": 1.0}):
        with pytest.raises(UsageError):
            hold_out(data, **wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="of 2 queries 2 would be held out, which leaves none to train on"):
        hold_out(data, count=2)
