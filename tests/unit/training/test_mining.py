"""Mining: texts here say their own score, so what must be chosen can be read off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from oskit.errors import TrainingError
from oskit.training.data.training_data import TrainingData
from oskit.training.mining.miner import MiningConfig, MiningReport, mine_negatives

CORPUS = ["0.95 a", "0.90 b", "0.80 c", "0.70 d", "0.60 e", "0.10 f", "-0.20 g"]


class SpokenScores:
    """The score of a text is the number that it begins with, for any query but ``contrary ...``."""

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        return np.array(
            [[-1.0 if text.startswith("contrary") else 1.0, 0] for text in texts], dtype=np.float32
        )

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[float(text.split()[0]), 0] for text in texts], dtype=np.float32)


def data(rows: list[tuple[str, str, list[str]]], corpus: list[str] | None = CORPUS) -> TrainingData:
    columns = {
        name: [row[place] for row in rows] for place, name in enumerate(("query", "positive", "negatives"))
    }
    table = None if corpus is None else Dataset.from_dict({"id": corpus, "text": corpus})
    return TrainingData(Dataset.from_dict(columns), table)


def mine(mined: TrainingData, **config: Any) -> tuple[list[list[str]], MiningReport]:
    found, report = mine_negatives(mined, MiningConfig(**config), teacher=SpokenScores())  # type: ignore[arg-type]
    assert found.examples["query"][:] == mined.examples["query"][:]
    assert found.examples["positive"][:] == mined.examples["positive"][:]
    return found.examples["negatives"][:], report


def test_hardest_below_the_share_of_the_positive() -> None:
    # 95 % of 0.90 is 0.855: "0.95 a" is dropped, "0.80 c" is the first that is left.
    negatives, report = mine(data([("q", "0.90 b", [])]), per_query=2)
    assert negatives == [["0.80 c", "0.70 d"]]
    assert (report.mined, report.random, report.false_negatives, report.short) == (2, 0, 1, 0)
    assert report.positive_score == pytest.approx(0.9)
    assert report.mined_score == pytest.approx(0.75)


def test_absolute_margin() -> None:
    negatives, _ = mine(data([("q", "0.90 b", [])]), per_query=2, margin=0.15, positive_share=None)
    assert negatives == [["0.70 d", "0.60 e"]]
    negatives, _ = mine(data([("q", "0.90 b", [])]), per_query=2, positive_share=None)
    assert negatives == [["0.95 a", "0.80 c"]]


def test_share_of_a_negative_score_is_lower() -> None:
    # The positive scores -0.6, so the limit is -0.63 and not -0.57.
    negatives, report = mine(data([("contrary", "0.60 e", [])]), per_query=2, depth=7)
    assert negatives == [["0.70 d", "0.80 c"]]
    assert report.false_negatives == 2


def test_other_positives_of_the_query_are_no_negatives() -> None:
    rows = [("q", "0.90 b", []), ("q", "0.80 c", []), ("other", "0.95 a", [])]
    negatives, report = mine(data(rows), per_query=1)
    assert negatives == [["0.70 d"], ["0.70 d"], ["0.90 b"]]
    assert report.queries == 2


def test_given_negatives_come_first_and_count() -> None:
    rows = [("q", "0.90 b", ["from elsewhere", "0.80 c", "0.90 b", "0.80 c"])]
    negatives, report = mine(data(rows), per_query=3)
    assert negatives == [["from elsewhere", "0.80 c", "0.70 d"]]
    assert (report.given, report.mined) == (2, 1)


def test_skip_top_and_depth() -> None:
    negatives, _ = mine(data([("q", "0.95 a", [])]), per_query=1, skip_top=3)
    assert negatives == [["0.70 d"]]
    negatives, report = mine(data([("q", "0.95 a", [])]), per_query=3, depth=3)
    assert negatives[0][:2] == ["0.90 b", "0.80 c"], "the others are beyond the depth"
    assert (report.mined, report.random, report.filled) == (2, 1, 1)
    assert negatives[0][2] in CORPUS[3:]


def test_random_fill_takes_nothing_that_was_dropped() -> None:
    # Skipped: a. Likely answers: b and c. That leaves two of seven to draw from.
    rows = [("q", "0.70 d", []), ("q", "0.60 e", [])]
    negatives, report = mine(data(rows), per_query=3, skip_top=1, depth=3)
    assert [set(row) for row in negatives] == [{"0.10 f", "-0.20 g"}] * 2
    assert (report.false_negatives, report.short) == (4, 2)


def test_corpus_that_is_too_small() -> None:
    negatives, report = mine(data([("q", "0.90 b", [])], ["0.90 b", "0.10 f"]), per_query=3)
    assert negatives == [["0.10 f"]]
    assert report.short == 1


def test_random_sampling_is_seeded_and_within_the_candidates() -> None:
    rows = [(f"q{number}", "0.95 a", []) for number in range(20)]
    config = {"per_query": 1, "sampling": "random", "depth": 5}
    first, _ = mine(data(rows), **config, seed=1)
    assert first == mine(data(rows), **config, seed=1)[0]
    assert first != mine(data(rows), **config, seed=2)[0]
    assert {row[0] for row in first} == {"0.90 b", "0.80 c", "0.70 d", "0.60 e"}


def test_without_a_corpus_the_examples_are_it() -> None:
    rows = [("q", "0.90 b", ["0.10 f"]), ("p", "0.50 x", [])]
    negatives, report = mine(data(rows, None), per_query=1, positive_share=None)
    assert negatives == [["0.10 f"], ["0.90 b"]]
    assert report.documents == 3


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from oskit.training.mining import miner as mining

    rows = [(f"q{number}", text, []) for number, text in enumerate(CORPUS)]
    whole, _ = mine(data(rows), per_query=2, depth=6)
    monkeypatch.setattr(mining, "_BLOCK_DOCUMENTS", 2)
    monkeypatch.setattr(mining, "_BLOCK_QUERIES", 3)
    monkeypatch.setattr(mining, "_ROWS", 2)
    assert mine(data(rows), per_query=2, depth=6)[0] == whole


def test_bm25_finds_and_the_teacher_filters() -> None:
    corpus = ["0.9 red house", "0.89 red house roof", "0.3 house boat", "0.2 sea"]
    rows = [("red house", "0.9 red house", [])]
    bare, report = mine_negatives(data(rows, corpus), MiningConfig(ranker="bm25", per_query=1))
    assert bare.examples["negatives"][:] == [["0.89 red house roof"]]
    assert (report.filtered, report.positive_score) == (False, None)
    negatives, report = mine(data(rows, corpus), ranker="bm25", per_query=2)
    assert negatives == [["0.3 house boat", "0.2 sea"]]
    assert (report.mined, report.random, report.false_negatives) == (1, 1, 1)
    assert report.mined_score == pytest.approx(0.3)


def test_teacher_is_needed() -> None:
    with pytest.raises(TrainingError, match="needs a dense teacher"):
        mine_negatives(data([("q", "0.90 b", [])]))
