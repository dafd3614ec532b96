"""What `oskit train auto` chooses, given what it saw: a function from facts to a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from oskit.errors import TrainingError
from oskit.training.auto.facts import Facts, StudentSeen, TeacherSeen
from oskit.training.auto.plan import (
    DIRECTIONS,
    ENOUGH,
    EPOCHS,
    FEW,
    FITTED,
    TRAINING,
    TRIED,
    TUNED,
    Plan,
    plan,
)
from oskit.training.recipe.recipe import Recipe

DATA = Facts(
    queries=2000,
    documents=3000,
    candidates=0.0,
    scored=0.0,
    language="english",
    bm25=0.6,
    machine="2 CPU cores",
    minutes=30,
)
TINY = StudentSeen(
    "tiny",
    4_000_000,
    ndcg=0.6,
    reads=20_000,
    learns=4_000,
    query_tokens=12,
    document_tokens=(90, 150),
    max_length=512,
)
BASE = StudentSeen(
    "base",
    22_000_000,
    ndcg=0.0,
    reads=2_700,
    learns=900,
    query_tokens=12,
    document_tokens=(90, 150),
    max_length=256,
    projected=True,
)
DENSE = TeacherSeen("dense", ndcg=0.75, reads=3_000)


def planned(
    minutes: float = 30,
    *,
    students: tuple[StudentSeen, ...] = (TINY, BASE),
    teachers: tuple[TeacherSeen, ...] = (DENSE,),
    **data: Any,
) -> tuple[Plan, Recipe]:
    found = plan(replace(DATA, minutes=minutes, students=students, teachers=teachers, **data))
    values = {**found.recipe, "data": {**found.recipe["data"], "train": ["pairs.jsonl"]}}
    return found, Recipe.model_validate(values)


def seconds(recipe: Recipe, student: StudentSeen, queries: int) -> float:
    """What labels and steps take, by the facts."""
    length = recipe.schedule.max_length or 0
    tokens = min(student.document_tokens[0], length) + student.query_tokens
    steps = recipe.schedule.steps or 0
    return steps * recipe.schedule.batch_size * tokens / student.learns + queries * tokens / DENSE.reads


@pytest.mark.parametrize("minutes", [3, 10, 30, 120, 600, 60_000])
@pytest.mark.parametrize("queries", [40, 353, 16_000, 500_000, 5_000_000])
def test_it_keeps_to_the_time_and_uses_it(minutes: float, queries: int) -> None:
    found, recipe = planned(minutes, queries=queries, documents=queries)
    student = next(one for one in (TINY, BASE) if one.name == recipe.encoder.name)
    trained = round(found.share * queries)
    taken = seconds(recipe, student, trained)
    assert taken < 60 * minutes * TRAINING + 1
    passes = (recipe.schedule.steps or 0) * recipe.schedule.batch_size / queries
    assert passes <= EPOCHS[student.ndcg > 0]
    if passes < EPOCHS[student.ndcg > 0] - 1 and recipe.schedule.steps != TRIED:
        assert taken > 0.9 * 60 * minutes * TRAINING, "the time is used"
    assert (found.share < 1) == (f"ONLY {trained:,} of" in found.reasons.get("data.train", ""))
    assert recipe.data.hold_out * trained >= 1
    assert recipe.schedule.batch_size <= queries


def test_the_larger_encoder_is_taken_once_the_time_is_enough_for_it() -> None:
    names = {minutes: planned(minutes)[1].encoder.name for minutes in (3, 60)}
    assert names == {3: "tiny", 60: "base"}
    found, recipe = planned(3)
    assert recipe.encoder.head == "random", "a head that can search stays as it is"
    assert recipe.encoder.keep > 0, "and what it could do before is kept"
    assert "base would learn" in found.reasons["encoder.name"]
    found, recipe = planned(60)
    assert (recipe.encoder.head, recipe.encoder.keep) == ("lexical", 0)
    assert (recipe.schedule.steps or 0) >= ENOUGH[False]
    assert "tiny is smaller" in found.reasons["encoder.name"]
    assert recipe.loss[0].temperature == FITTED == recipe.loss[1].temperature, "its scores lie far apart"
    assert recipe.sparsity.documents.target is None
    assert "top_k:150 where you ingest" in found.reasons["sparsity.documents"]
    found, recipe = planned(600, queries=FEW + 1)
    assert recipe.encoder.name == "tiny"
    assert "base cannot search yet" in found.reasons["encoder.name"]
    assert planned(600, queries=FEW + 1, students=(BASE,))[1].encoder.name == "base"


def test_a_dense_model_made_sparse_is_for_few_pairs_where_words_find_less() -> None:
    dense = replace(BASE, ndcg=0.7, dense=True)
    found, recipe = planned(students=(TINY, dense))
    assert (recipe.encoder.name, recipe.encoder.head, recipe.encoder.keep) == ("base", "dense", 0)
    assert "NAMES OF DIRECTIONS" in found.reasons["encoder.name"]
    assert recipe.schedule.steps == TUNED and recipe.schedule.learning_rate < 5e-5, "it knows much"
    assert recipe.loss[0].temperature == DIRECTIONS == recipe.labels.scale / 20
    for student, queries in (
        (replace(dense, ndcg=0.62), 2000),  # hardly more than by words
        (replace(dense, strange=True), 2000),
        (dense, FEW + 1),
    ):
        assert planned(60, students=(TINY, student), queries=queries)[1].encoder.head != "dense"


def test_a_masked_language_head_that_is_fitted_has_scores_as_trained_ones() -> None:
    _, recipe = planned(students=(replace(BASE, projected=False),))
    assert recipe.loss[0].temperature == 1.0


def test_a_vocabulary_that_hardly_knows_the_language_is_the_last_choice_and_said() -> None:
    strange = replace(BASE, strange=True)
    found, recipe = planned(60, students=(TINY, strange))
    assert recipe.encoder.name == "tiny" and "base hardly knows the language" in found.reasons["encoder.name"]
    found, _ = planned(60, students=(strange,))
    assert "HARDLY KNOWS THE LANGUAGE" in found.reasons["encoder.name"]


def test_an_encoder_that_finds_little_begins_anew() -> None:
    """A masked language model has a head, and finds next to nothing by it."""
    _, recipe = planned(students=(replace(TINY, ndcg=0.05),))
    assert recipe.encoder.head == "lexical"


def test_who_teaches_is_who_finds() -> None:
    """By kind: the dense model, and BM25 where it is nearly as good or better."""

    def kinds(recipe: Recipe) -> dict[str, float]:
        return {one.kind: one.weight for one in recipe.teachers}

    assert kinds(planned(bm25=0.3)[1]) == {"dense": 1.0}
    assert set(kinds(planned(bm25=0.7)[1])) == {"dense", "bm25"}
    found, recipe = planned(bm25=0.97, language="swedish")
    assert kinds(recipe) == {"bm25": 1.0}
    assert "dense has 0.75, which is no teacher" in found.reasons["teachers"]
    assert next(one for one in recipe.teachers if one.kind == "bm25").language == "swedish"
    assert set(kinds(planned(teachers=())[1])) == {"bm25"}
    better, worse = replace(DENSE, name="better", ndcg=0.8), replace(DENSE, name="worse", ndcg=0.6)
    for queries, names in ((FEW, ["better", "dense"]), (FEW + 1, ["better"])):
        _, recipe = planned(bm25=0.3, queries=queries, teachers=(DENSE, worse, better))
        assert [getattr(one, "name", "") for one in recipe.teachers] == names


def test_documents_are_asked_for() -> None:
    assert "500 of 2,000 queries are sentences" in planned(made=500)[0].reasons["data.train"]
    assert "data.train" not in planned()[0].reasons


def test_bfloat16_where_the_processor_has_it() -> None:
    recipe = planned(bfloat16=True)[1]
    assert recipe.schedule.precision == "bf16"
    assert [one.precision for one in recipe.teachers if one.kind == "dense"] == ["bfloat16"]
    assert planned()[1].schedule.precision == "auto"


def test_scores_that_came_with_the_data_are_the_labels() -> None:
    found, recipe = planned(scored=1.0, candidates=9.0)
    assert [one.kind for one in recipe.teachers] == ["stored"]
    assert recipe.labelled == {"own"}
    assert recipe.data.sampling.negatives == 7
    assert "scores that came with the data" in found.reasons["teachers"]
    assert planned(scored=1.0, candidates=2.0)[1].data.sampling.negatives == 2


def test_texts_decide_the_length_and_the_sparsity() -> None:
    for mean, long, length, target in ((10, 30, 64, 32), (40, 60, 64, 100), (300, 500, 512, 150)):
        student = replace(TINY, document_tokens=(mean, long))
        _, recipe = planned(students=(student,))
        assert recipe.schedule.max_length == length
        assert recipe.encoder.max_length is None, "it goes on reading as much as it did"
        assert recipe.sparsity.documents.target == target
    large = replace(TINY, document_tokens=(300, 500), parameters=110_000_000)
    assert planned(students=(large,))[1].schedule.max_length == 256, "whose batches take more memory"


def test_measuring_a_large_collection_takes_its_share_of_the_time() -> None:
    assert planned(documents=500)[1].evaluation.corpus is None
    found, recipe = planned(documents=1_000_000)
    assert recipe.evaluation.corpus is not None and 1000 <= recipe.evaluation.corpus < 1_000_000
    assert "1,000,000 documents" in found.reasons["evaluation.corpus"]


def test_every_reason_is_about_a_key_of_the_recipe() -> None:
    for found, _ in (
        planned(),
        planned(3, queries=500_000, documents=500_000),
        planned(scored=1.0, candidates=3.0),
    ):
        for key in found.reasons.keys() - {"data.train"}:
            place: Any = found.recipe
            for part in key.split("."):
                place = place[part]
        assert all("\n" not in why for why in found.reasons.values())


def test_without_an_encoder_there_is_nothing_to_train() -> None:
    with pytest.raises(TrainingError, match="no encoder on this machine") as caught:
        planned(students=())
    assert "encoder.name" in str(caught.value.hint)
