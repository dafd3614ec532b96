"""Mining: texts here say their own score, so what must be chosen can be read off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value

from oskit.errors import TrainingError
from oskit.training.data.training_data import TrainingData
from oskit.training.mining.miner import MiningReport, mine_negatives
from oskit.training.recipe.recipe import MiningConfig
from oskit.training.recipe.teachers import CrossEncoderConfig, DenseTeacherConfig, LabelsPart
from oskit.training.teachers.ensemble import EnsembleTeacher, TeacherWarning
from oskit.training.teachers.models import DenseTeacher
from oskit.training.teachers.teacher import Rows, Side, VectorTeacher
from tests.unit.training.teacher_models_tiny import build_cross_encoder, build_dense

CORPUS = ["0.95 a", "0.90 b", "0.80 c", "0.70 d", "0.60 e", "0.10 f", "-0.20 g"]


class SpokenScores(VectorTeacher):
    """The score of a text is the number that it begins with, for any query but ``contrary ...``."""

    def vectors(self, data: TrainingData, side: Side, rows: Rows) -> np.ndarray:
        texts = self.texts(data, side, rows)
        if side == "query":
            said = [-1.0 if text.startswith("contrary") else 1.0 for text in texts]
        else:
            said = [float(text.split()[0]) for text in texts]
        return np.array([[number, 0] for number in said], dtype=np.float32)


SPOKEN: Any = SimpleNamespace(dense=SpokenScores(DenseTeacherConfig()), release=lambda: None)
"""All of an ensemble that mining asks for."""


def data(
    rows: Sequence[tuple[str, str | list[str], list[str]]],
    corpus: list[str] = CORPUS,
    scores: list[list[float]] | None = None,
    itself: int = -1,
) -> TrainingData:
    """Examples of query, positives and negatives that the data gives."""
    places = {text: place for place, text in enumerate(corpus)}
    positives = [[one] if isinstance(one, str) else one for _, one, _ in rows]
    columns = {
        "query": [query for query, _, _ in rows],
        "candidates": [
            [places[text] for text in [*own, *given]]
            for own, (_, _, given) in zip(positives, rows, strict=True)
        ],
        "positives": [len(own) for own in positives],
        "scores": scores or [[]] * len(rows),
        "itself": [itself] * len(rows),
    }
    features = Features(
        {
            "query": Value("string"),
            "candidates": List(Value("int32")),
            "positives": Value("int32"),
            "scores": List(Value("float32")),
            "itself": Value("int32"),
        }
    )
    examples = Dataset.from_dict(columns, features=features)
    return TrainingData(examples, Dataset.from_dict({"id": corpus, "text": corpus}))


def mine(mined: TrainingData, teachers: Any = SPOKEN, **config: Any) -> tuple[list[list[str]], MiningReport]:
    """What was added to each example's candidates."""
    found, report = mine_negatives(mined, MiningConfig(**config), teachers=teachers)
    texts = mined.corpus["text"][:]
    before = mined.examples
    assert found.examples["query"][:] == before["query"][:]
    assert found.examples["positives"][:] == before["positives"][:]
    added = []
    for old, new in zip(before["candidates"], found.examples["candidates"], strict=True):
        kept = [place for place in old if place in new]
        assert new[: len(kept)] == kept, "what was there comes first, in its order"
        assert len(set(new)) == len(new)
        added.append([texts[place] for place in new[len(kept) :]])
    return added, report


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


def test_mined_ones_are_added_to_those_given() -> None:
    rows = [("q", "0.90 b", ["0.80 c", "0.10 f"]), ("p", ["0.90 b", "0.70 d"], [])]
    negatives, report = mine(data(rows), per_query=2)
    assert negatives == [["0.70 d", "0.60 e"], ["0.60 e", "0.10 f"]]
    assert (report.given, report.mined, report.answers) == (2, 4, 0)
    # The second query's limit is 95 % of the mean of its positives, 0.76.
    assert report.false_negatives == 1 + 2


def test_scores_of_the_data_stay_and_mined_ones_have_none() -> None:
    rows = [("q", "0.90 b", ["0.80 c"]), ("p", "0.90 b", [])]
    found, _ = mine_negatives(data(rows, scores=[[3.0, 1.5], []]), MiningConfig(per_query=1), teachers=SPOKEN)
    np.testing.assert_equal(found.examples["scores"][0], [3.0, 1.5, np.nan])
    assert found.examples["scores"][1] == []


@pytest.mark.parametrize(
    "written",
    [
        "What\u2019s  an e-mail server?",
        "WHAT\u2019S AN E-MAIL SERVER?",
        "whats an email server",
        "What's an e mail server...",
        "\uff37hat's an e-mail server\uff1f",
    ],
)
@pytest.mark.parametrize("ranker", ["dense", "bm25"])
def test_what_says_the_same_is_no_negative(written: str, ranker: str) -> None:
    """Neither another writing of an answer, nor the answer to another writing of the question."""
    query, answer = "What's an e-mail server?", "0.9 an e-mail server, it's said, holds e-mails"
    corpus = [answer, answer.upper(), f"{answer} !", "0.8 What's an e-mail server?", "0.7 red", "0.6 server"]
    other = corpus.index("0.6 server")
    rows = [(query, answer, []), (written, "0.6 server", [answer.upper(), "0.7 red"])]
    found, report = mine_negatives(
        data(rows, corpus),
        MiningConfig(per_query=4, ranker=ranker, positive_share=None),
        teachers=SPOKEN,
    )
    free = {corpus.index("0.8 What's an e-mail server?"), corpus.index("0.7 red")}
    assert [set(row) for row in found.examples["candidates"]] == [{0} | free, {other} | free]
    assert (report.queries, report.answers, report.short) == (1, 1, 2)


def test_the_query_itself_is_no_negative() -> None:
    # ArguAna's queries are documents of its corpus; here one with another text, by its id.
    asked = "0.80 c?"
    rows = [(asked, "0.60 e", [])]
    negatives, _ = mine(data(rows, itself=3), per_query=7, positive_share=None)
    assert set(negatives[0]) == {"0.95 a", "0.90 b", "0.10 f", "-0.20 g"}


def test_skip_top_and_depth() -> None:
    negatives, _ = mine(data([("q", "0.95 a", [])]), per_query=1, skip_top=3)
    assert negatives == [["0.70 d"]]
    negatives, report = mine(data([("q", "0.95 a", [])]), per_query=3, depth=3)
    assert negatives[0][:2] == ["0.90 b", "0.80 c"], "the others are beyond the depth"
    assert (report.mined, report.random, report.filled) == (2, 1, 1)
    assert negatives[0][2] in CORPUS[3:]


def test_random_fill_takes_nothing_that_was_left_out() -> None:
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


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from oskit.training.data import arrow
    from oskit.training.mining import miner

    rows = [(f"q{number}", text, []) for number, text in enumerate(CORPUS)]
    whole, _ = mine(data(rows), per_query=2, depth=6)
    monkeypatch.setattr(miner, "_BLOCK_DOCUMENTS", 2)
    monkeypatch.setattr(miner, "_BLOCK_QUERIES", 3)
    monkeypatch.setattr(arrow, "BLOCK", 2)
    assert mine(data(rows), per_query=2, depth=6)[0] == whole


def test_bm25_finds_and_the_teacher_filters() -> None:
    corpus = ["0.9 red house", "0.89 red house roof", "0.3 house boat", "0.2 sea"]
    rows = [("red house", "0.9 red house", [])]
    bare, report = mine(data(rows, corpus), None, ranker="bm25", per_query=1)
    assert bare == [["0.89 red house roof"]]
    assert (report.filtered, report.positive_score) == (False, None)
    negatives, report = mine(data(rows, corpus), ranker="bm25", per_query=2)
    assert negatives == [["0.3 house boat", "0.2 sea"]]
    assert (report.mined, report.random, report.false_negatives) == (1, 1, 1)
    assert report.mined_score == pytest.approx(0.3)


def test_examples_without_a_positive() -> None:
    """Scored candidates of which none is known to answer: there is no limit to hold candidates against."""
    negatives, report = mine(data([("q", [], ["0.80 c"])]), per_query=2)
    assert negatives == [["0.95 a", "0.90 b"]]
    assert (report.positive_score, report.false_negatives) == (None, 0)


def test_teacher_is_needed() -> None:
    with pytest.raises(TrainingError, match="needs a dense teacher"):
        mine_negatives(data([("q", "0.90 b", [])]))


def test_teachers_without_a_dense_one_and_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BM25 mines beside a cross-encoder; a dense teacher that fails is dropped, and labels nothing either."""
    labels = LabelsPart(cache_folder=tmp_path / "cache")
    cross = CrossEncoderConfig(name=str(build_cross_encoder(tmp_path / "cross")))
    dense = DenseTeacherConfig(name=str(build_dense(tmp_path / "dense")))
    mined = data([("e", "0.60 e", [])])
    bm25 = {"ranker": "bm25", "per_query": 2}
    alone, report = mine(mined, EnsembleTeacher([cross], labels), **bm25)
    assert not report.filtered
    assert mine(mined, EnsembleTeacher([cross, dense], labels), **bm25)[1].filtered

    def explode(*_args: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(DenseTeacher, "vectors", explode)
    teachers = EnsembleTeacher([cross, dense], labels)
    with pytest.warns(TeacherWarning, match="device lost"):
        again, report = mine(mined, teachers, **bm25)
    assert (again, report.filtered) == (alone, False)
    assert [t.status for t in teachers.report.teachers] == ["used", "dropped"]
    with (
        pytest.warns(TeacherWarning, match="device lost"),
        pytest.raises(TrainingError, match="the dense teacher that mines failed: device lost"),
    ):
        mine(mined, EnsembleTeacher([cross, dense], labels))
