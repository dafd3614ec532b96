"""Every layout that training data comes in is read into one record: a query, its candidates, their scores."""

from __future__ import annotations

import gzip
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oskit.errors import DataError
from oskit.training import DataSource, TrainingData, load_training_data

Rows = list[dict[str, Any]]
Read = list[tuple[str, list[str], list[str], dict[str, float]]]
"""Query, positives, other candidates, and the scores of both."""


def read(data: TrainingData) -> Read:
    found = []
    for row in data.examples:
        texts, count = data.texts_of(row["candidates"]), row["positives"]
        assert len(set(texts)) == len(texts)
        assert len(row["scores"]) in (0, len(texts))
        scores = dict(zip(texts, row["scores"], strict=False))
        known = {text: score for text, score in scores.items() if not math.isnan(score)}
        found.append((row["query"], texts[:count], texts[count:], known))
    return found


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


SCORED: list[tuple[str, Rows, Read]] = [
    (
        "OpenSearch's tuning sample, and what lightning-ir and others write",
        [{"query": "q", "docs": ["a", "b", "c"], "scores": [9, 7.5, -1]}],
        [("q", [], ["a", "b", "c"], {"a": 9, "b": 7.5, "c": -1})],
    ),
    (
        "scores of positives and negatives, one list",
        [{"anchor": "q", "positive": "p", "negative": ["m", "n"], "scores": [3, 2, 1]}],
        [("q", ["p"], ["m", "n"], {"p": 3, "m": 2, "n": 1})],
    ),
    (
        "the same as a label, numbered negatives (sentence-transformers)",
        [{"query": "q", "positive": "p", "negative_1": "m", "negative_2": "n", "label": [3, 2, 1]}],
        [("q", ["p"], ["m", "n"], {"p": 3, "m": 2, "n": 1})],
    ),
    (
        "differences to the positive, one for each negative, and one row for each",
        [
            {"query": "q", "positive": "p", "negative": "m", "score": 4.5},
            {"query": "q", "positive": "p", "negative": "n", "score": 1.5},
            {"query": "q", "positive": "p2", "negative": "n", "score": 2},
        ],
        [
            ("q", ["p"], ["m", "n"], {"p": 0, "m": -4.5, "n": -1.5}),
            ("q", ["p2"], ["n"], {"p2": 0, "n": -2}),
        ],
    ),
    (
        "differences as a list",
        [{"query": "q", "positive": "p", "negatives": ["m", "n"], "label": [4.5, 1.5]}],
        [("q", ["p"], ["m", "n"], {"p": 0, "m": -4.5, "n": -1.5})],
    ),
    (
        "pos_scores and neg_scores (FlagEmbedding)",
        [{"query": "q", "pos": ["p", "p2"], "neg": ["n"], "pos_scores": [5, 4], "neg_scores": [1]}],
        [("q", ["p", "p2"], ["n"], {"p": 5, "p2": 4, "n": 1})],
    ),
    (
        "scores in the passages (Tevatron)",
        [
            {
                "query": "q",
                "positive_passages": [{"docid": "1", "title": "T", "text": "p", "score": 2}],
                "negative_passages": [{"docid": "2", "title": "", "text": "n"}],
            }
        ],
        [("q", ["T p"], ["n"], {"T p": 2})],
    ),
    (
        "pairs with a label, one row each",
        [
            {"query": "q", "passage": "b", "label": 0},
            {"query": "q", "passage": "a", "label": 1},
            {"query": "q", "passage": "c", "label": 0},
        ],
        [("q", ["a"], ["b", "c"], {})],
    ),
    (
        "the same, where labels are words and the column is called positive",
        [
            {"query": "q", "positive": "b", "label": "False"},
            {"query": "q", "positive": "a", "label": "true"},
        ],
        [("q", ["a"], ["b"], {})],
    ),
    (
        "pairs with a score, one row each",
        [{"query": "q", "passage": "b", "score": 0.25}, {"query": "q", "passage": "a", "score": 0.75}],
        [("q", [], ["b", "a"], {"b": 0.25, "a": 0.75})],
    ),
    (
        "a label that is a score",
        [{"query": "q", "document": "b", "label": 0.25}, {"query": "q", "document": "a", "label": 1.0}],
        [("q", [], ["b", "a"], {"b": 0.25, "a": 1})],
    ),
    (
        "lists of labels (labeled-list), with scores beside them",
        [{"query": "q", "docs": ["a", "b", "c"], "labels": [0, 1, 0], "scores": [1, 2, 3]}],
        [("q", ["b"], ["a", "c"], {"b": 2, "a": 1, "c": 3})],
    ),
    (
        "a score that is missing",
        [{"query": "q", "docs": ["a", "b"], "scores": [None, 3]}],
        [("q", [], ["a", "b"], {"b": 3})],
    ),
    (
        "an answer with a score",
        [{"question": "q", "answer": "a", "score": 0.9}],
        [("q", ["a"], [], {"a": 0.9})],
    ),
]


def rounded(found: Read) -> Read:
    return [(*row[:3], {text: round(score, 5) for text, score in row[3].items()}) for row in found]


@pytest.mark.parametrize(
    ("rows", "expected"), [case[1:] for case in SCORED], ids=[case[0] for case in SCORED]
)
def test_layouts_with_scores_and_labels(rows: Rows, expected: Read) -> None:
    data = TrainingData.of(rows)
    assert rounded(read(data)) == expected
    (facts,) = data.sources
    assert facts.scored == sum(len(row[3]) for row in expected)
    assert (facts.ignored, facts.refused) == ((), 0)


def test_grades_between_the_two_say_neither() -> None:
    rows = [{"query": "q", "docs": ["a", "b", "c", "d"], "labels": [3, 1, 0, 2]}]
    assert read(TrainingData.of(rows, min_relevance=2)) == [("q", ["a", "d"], ["c"], {})]
    assert read(TrainingData.of(rows, judged_negatives=False)) == [("q", ["a", "b", "d"], [], {})]


def test_scores_of_two_sources_are_on_two_scales(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "a.jsonl", [{"query": "q", "docs": ["a", "b"], "scores": [1, 2]}])
    other = jsonl(tmp_path / "b.jsonl", [{"query": "q", "docs": ["b", "c"], "scores": [70, 90]}])
    assert read(load_training_data([one, other])) == [
        ("q", [], ["a", "b"], {"a": 1, "b": 2}),
        ("q", [], ["b", "c"], {"b": 70, "c": 90}),
    ]


WRONG = [
    ({"query": "q", "docs": ["a", "b"], "scores": [1]}, "1 scores in 'scores' for 2 documents"),
    ({"query": "q", "docs": ["a", "b"], "scores": [1, "high"]}, "'scores' holds 'high', which is no number"),
    ({"query": "q", "docs": ["a", "b"], "scores": [1, "inf"]}, "a score that is not finite"),
    ({"query": "q", "docs": ["a", "b"], "scores": [1, 1e39]}, "too large for 32 bits"),
    ({"query": "q", "docs": ["a", "b"], "scores": [10**400, 1]}, "too large for 32 bits"),
    ({"query": "q", "docs": ["a", " "], "scores": [1, 2]}, r"'docs\[1\]' is empty"),
    (
        {"query": "q", "positive": "p", "negative": "n", "scores": [1, 2, 3]},
        "3 scores in 'scores' for 2 documents",
    ),
    ({"query": "q", "docs": ["a", "b"], "labels": [1]}, "1 labels in 'labels' for 2 documents"),
]


@pytest.mark.parametrize(("row", "message"), WRONG)
def test_what_does_not_fit_together_is_refused(row: dict[str, Any], message: str) -> None:
    good = {"query": "g", **{name: value for name, value in row.items() if name != "query"}}
    good |= {name: [1, 0] for name in ("scores", "labels") if name in row}
    good |= {"docs": ["a", "b"]} if "docs" in row else {}
    with pytest.raises(DataError, match=rf"records\.jsonl:2: .*{message}"):
        TrainingData.of([good, row])


def test_a_label_that_turns_out_to_be_a_score_is_not_taken_for_a_grade() -> None:
    rows = [{"query": "q", "passage": "a", "label": 1.0}, {"query": "q", "passage": "b", "label": 0.83}]
    with pytest.raises(DataError, match=r"0\.83, which is no grade .*columns: \{scores: label\}"):
        TrainingData.of(rows)
    named = TrainingData.of(rows, columns={"scores": "label"})
    assert rounded(read(named)) == [("q", [], ["a", "b"], {"a": 1, "b": 0.83})]
    # Nor is a grade taken for a score because the first record lacks its own.
    rows = [{"query": "q", "passage": "a", "label": None}, {"query": "q", "passage": "b", "label": 1}]
    assert read(TrainingData.of(rows, broken="skip")) == [("q", ["b"], [], {})]


def test_columns_that_are_not_understood_are_told() -> None:
    rows: Rows = [
        {"query": "q", "positive": "p", "id": 7},
        {"query": "r", "positive": "p", "id": 8, "difficulty": "hard"},
    ]
    (facts,) = TrainingData.of(rows).sources
    assert facts.ignored == ("id", "difficulty")
    assert "not used: id, difficulty" in str(facts)
    plain = TrainingData.of([{"query": "q", "positive": "p", "negative": "n"}], kind="pairs").sources[0]
    assert plain.ignored == ("negative",)
    with pytest.raises(DataError, match="has no column for the scores"):
        TrainingData.of(rows, columns={"scores": "marks"})


def test_queries_of_which_only_wrong_answers_are_known_are_told() -> None:
    rows = [
        {"query": "q", "passage": "a", "label": 1},
        {"query": "r", "passage": "a", "label": 0},
    ]
    data = TrainingData.of(rows)
    assert read(data) == [("q", ["a"], [], {})]
    assert data.sources[0].unanswered == 1
    assert "1 queries without a positive or scores dropped" in str(data.sources[0])


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Any]:
    """A collection whose texts are named by ids: numbers there, texts here."""
    folder = tmp_path / "texts"
    folder.mkdir()
    jsonl(folder / "corpus.jsonl", [{"_id": str(n), "title": "", "text": f"document {n}"} for n in range(10)])
    jsonl(folder / "queries.jsonl", [{"_id": str(n), "text": f"query {n}"} for n in range(3)])
    return {"queries": str(folder), "corpus": str(folder)}


def documents(*numbers: int) -> list[str]:
    return [f"document {number}" for number in numbers]


BY_ID: list[tuple[str, Rows, Read]] = [
    (
        "query_id, document_ids, scores",
        [{"query_id": 1, "document_ids": [4, 2], "scores": [1.5, 0.5]}],
        [("query 1", [], documents(4, 2), {"document 4": 1.5, "document 2": 0.5})],
    ),
    (
        "sentence-transformers/msmarco: triplets",
        [
            {"query_id": "1", "positive_id": "4", "negative_id": "2"},
            {"query_id": "1", "positive_id": "4", "negative_id": "3"},
        ],
        [("query 1", documents(4), documents(2, 3), {})],
    ),
    (
        "bert-ensemble-margin-mse",
        [{"query_id": "1", "positive_id": "4", "negative_id": "2", "score": 4.0}],
        [("query 1", documents(4), documents(2), {"document 4": 0, "document 2": -4})],
    ),
    (
        "bert-ensemble-mse",
        [{"query_id": "1", "passage_id": n, "score": n / 2} for n in (3, 5)],
        [("query 1", [], documents(3, 5), {"document 3": 1.5, "document 5": 2.5})],
    ),
    (
        "judgements as BEIR and MTEB have them",
        [
            {"query-id": "1", "corpus-id": "4", "score": 1},
            {"query-id": "1", "corpus-id": "3", "score": 0},
        ],
        [("query 1", documents(4), documents(3), {})],
    ),
    (
        "labeled-list",
        [{"query_id": "1", "doc_ids": ["3", "4", "5"], "labels": [0, 1, 0]}],
        [("query 1", documents(4), documents(3, 5), {})],
    ),
    (
        "opensearch-project/msmarco-hard-negatives: ids where texts were",
        [{"query": "1", "docs": ["3", "4"], "scores": [2.0, 1.0]}],
        [("query 1", [], documents(3, 4), {"document 3": 2, "document 4": 1})],
    ),
    (
        "sentence-transformers/msmarco-hard-negatives: by the system that found them",
        [{"qid": 1, "pos": [4], "neg": {"bm25": [2, 3], "dense": [3, 5, 4]}}],
        [("query 1", documents(4), documents(2, 3, 5), {})],
    ),
    (
        "its older form, with cross-encoder scores inside",
        [
            {
                "qid": 1,
                "pos": [{"pid": 4, "ce-score": 9.5}],
                "neg": {"bm25": [{"pid": 2, "ce-score": -3.0}], "dense": [{"pid": 3, "ce-score": 1.0}]},
            }
        ],
        [
            (
                "query 1",
                documents(4),
                documents(2, 3),
                {"document 4": 9.5, "document 2": -3, "document 3": 1},
            )
        ],
    ),
]


@pytest.mark.parametrize(("rows", "expected"), [case[1:] for case in BY_ID], ids=[case[0] for case in BY_ID])
def test_ids_are_joined_with_their_texts(texts: dict[str, Any], rows: Rows, expected: Read) -> None:
    data = TrainingData.of(rows, join=texts)
    assert read(data) == expected
    assert set(data.passages()) == {text for row in expected for text in (*row[1], *row[2])}
    assert data.sources[0].ignored == ()


def test_without_a_join_ids_are_an_error_that_says_so() -> None:
    with pytest.raises(
        DataError, match=r"no column for the query.*join: \{queries: \.\.\., corpus: \.\.\.\}"
    ):
        TrainingData.of([{"query_id": "1", "document_ids": ["3"], "scores": [1.0]}])


def test_an_id_without_a_text_is_refused_if_it_is_the_query_or_a_positive(texts: dict[str, Any]) -> None:
    for row, message in (
        ({"query_id": "7", "positive_id": "4", "negative_id": "2"}, "the query '7' is empty, or not in"),
        ({"query_id": "1", "positive_id": "44", "negative_id": "2"}, "its document '44' is not in"),
    ):
        with pytest.raises(DataError, match=message):
            TrainingData.of([row], join=texts)
    data = TrainingData.of([{"query_id": "1", "positive_id": "4", "negative_id": "22"}], join=texts)
    assert read(data) == [("query 1", documents(4), [], {})]
    assert data.sources[0].dropped_negatives == 1


def test_only_documents_may_be_ids(texts: dict[str, Any]) -> None:
    rows = [{"query": "how deep", "document_ids": [4, 2], "scores": [1.0, 2.0]}]
    data = TrainingData.of(rows, join={"corpus": texts["corpus"]})
    assert read(data) == [("how deep", [], documents(4, 2), {"document 4": 1, "document 2": 2})]


@pytest.mark.parametrize("form", ["pkl.gz", "jsonl", "parquet"])
def test_scores_of_a_file_of_their_own(form: str, texts: dict[str, Any], tmp_path: Path) -> None:
    """As the cross-encoder's of msmarco-hard-negatives, which are a pickled dictionary of dictionaries."""
    path = tmp_path / f"scores.{form}"
    if form == "pkl.gz":
        with gzip.open(path, "wb") as file:
            pickle.dump({1: {4: 9.5, 2: -3.0}, 2: {4: 1.0}}, file)
    elif form == "jsonl":
        jsonl(path, [{"query_id": 1, "corpus_id": [4, 2], "score": [9.5, -3.0]}])
    else:
        import pyarrow
        import pyarrow.parquet

        rows = [
            {"query_id": "1", "corpus_id": "4", "score": 9.5},
            {"query_id": "1", "corpus_id": "2", "score": -3},
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    rows = [{"qid": 1, "pos": [4], "neg": {"bm25": [2, 3]}}]
    data = TrainingData.of(rows, join={**texts, "scores": str(path)})
    assert read(data) == [("query 1", documents(4), documents(2, 3), {"document 4": 9.5, "document 2": -3})]


def test_a_pickle_that_would_call_code_is_refused(texts: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "scores.pkl"
    path.write_bytes(pickle.dumps({1: {4: np.float32(1)}}))
    rows = [{"qid": 1, "pos": [4], "neg": {"bm25": [2]}}]
    with pytest.raises(DataError, match=r"scores\.pkl cannot be read as a pickle of scores .*: it holds"):
        TrainingData.of(rows, join={**texts, "scores": str(path)})


def test_one_id_with_two_texts(texts: dict[str, Any], tmp_path: Path) -> None:
    path = jsonl(tmp_path / "twice.jsonl", [{"id": 4, "text": "one"}, {"id": 4, "text": "other"}])
    with pytest.raises(DataError, match="two texts have the id '4'"):
        TrainingData.of([{"query": "q", "positive_id": 4}], join={"corpus": str(path)})


def test_a_query_that_is_a_document_is_not_its_own_candidate(tmp_path: Path) -> None:
    """As in ArguAna: a query has the id of the document that it is, perhaps with a title more."""
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{n}", "title": f"Topic {n}", "text": f"argument {n}"} for n in range(4)]
    jsonl(folder / "corpus.jsonl", rows)
    jsonl(folder / "queries.jsonl", [{"_id": "d0", "text": "argument 0"}, {"_id": "q9", "text": "who"}])
    lines = ["query-id\tcorpus-id\tscore", "d0\td1\t1", "d0\td0\t1", "q9\td2\t1"]
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n")
    data = load_training_data([DataSource(path=str(folder))])
    assert read(data) == [
        ("argument 0", ["Topic 1 argument 1"], [], {}),
        ("who", ["Topic 2 argument 2"], [], {}),
    ]
    assert [data.texts_of([row]) if row >= 0 else None for row in data.examples["itself"]] == [
        ["Topic 0 argument 0"],
        None,
    ]
