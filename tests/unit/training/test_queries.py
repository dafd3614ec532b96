"""Queries made of documents."""

from __future__ import annotations

import random

import pytest
from pydantic import ValidationError

from oskit.training.data.pseudo_queries import MadeQueries, make_queries
from oskit.training.recipe.sources import QuerySettings

TEXT = """# How the bridge was built

The first stone was laid in 1901. Workers came from the whole valley! Was it finished in time?

## What it cost

Nobody knows exactly what the bridge cost. The papers were lost in a fire."""

ALWAYS = QuerySettings(remove=1)
NEVER = QuerySettings(remove=0)


def texts(made: MadeQueries, kind: str) -> list[str]:
    return [text for found, text in made.queries if found == kind]


def test_titles_headings_and_sentences() -> None:
    made = make_queries("Old bridge", TEXT, NEVER)
    assert texts(made, "title") == ["Old bridge"]
    assert texts(made, "heading") == ["Old bridge How the bridge was built", "Old bridge What it cost"]
    (span,) = texts(made, "span")
    assert span in TEXT and span.endswith((".", "!", "?"))
    assert made.passage == " ".join(f"Old bridge {TEXT}".split())


def test_queries_are_taken_out_of_the_passage() -> None:
    made = make_queries("Old bridge", TEXT, ALWAYS)
    for gone in ("Old bridge", "How the bridge was built", "What it cost", *texts(made, "span")):
        assert gone not in made.passage
    assert "Nobody knows" in made.passage or "Nobody knows" in texts(made, "span")[0]


def test_as_often_as_the_settings_say() -> None:
    settings = QuerySettings(kinds=("title",), remove=0.75)
    body = "There is enough text here to stand for itself without the title."
    kept = ["Title number" in make_queries(f"Title number {i}", body, settings).passage for i in range(400)]
    assert 0.17 < sum(kept) / len(kept) < 0.33


def test_the_same_document_gives_the_same_whatever_was_drawn_before() -> None:
    first = make_queries("Old bridge", TEXT, QuerySettings(), seed=3)
    random.seed(99)
    make_queries("Another", TEXT[::-1], QuerySettings(), seed=3)
    assert make_queries("Old bridge", TEXT, QuerySettings(), seed=3) == first
    spans = {tuple(texts(make_queries("", TEXT, QuerySettings(), seed=seed), "span")) for seed in range(20)}
    assert len(spans) > 2


def test_a_short_first_line_is_a_heading_where_there_is_no_title() -> None:
    text = "Bridges of the valley\nThere are three of them, and all three of them are made of stone."
    assert texts(make_queries("", text, ALWAYS), "heading") == ["Bridges of the valley"]
    assert texts(make_queries("A title of its own", text, ALWAYS), "heading") == []
    sentence = "It is a whole sentence.\nAnd here is another one, which goes on for a little longer."
    assert texts(make_queries("", sentence, ALWAYS), "heading") == []


def test_a_text_of_one_sentence_gives_a_window_of_words() -> None:
    words = [f"word{i}" for i in range(45)]
    made = make_queries("", " ".join(words), QuerySettings(remove=1))
    ((kind, query),) = made.queries
    assert kind == "span"
    assert len(query.split()) == 15
    assert query in " ".join(words)
    assert made.passage.split() == [word for word in words if word not in query.split()]


def test_a_dot_behind_a_number_ends_no_sentence() -> None:
    text = "Krigen varte til 11. november 1918. Freden kom 28. Juni året etter, approx. ett år senere."
    settings = QuerySettings(kinds=("span",), spans=5, remove=0)
    assert sorted(texts(make_queries("", text, settings), "span")) == [
        "Freden kom 28. Juni året etter, approx. ett år senere.",
        "Krigen varte til 11. november 1918.",
    ]


def test_a_script_without_spaces() -> None:
    text = "这座桥建于一九零一年春天。工人来自整个山谷地区。没有人知道它花了多少钱。" * 2
    (span,) = texts(make_queries("", text, QuerySettings(kinds=("span",))), "span")
    assert span.endswith("。") and 8 <= len(span) <= 15


def test_what_would_leave_nothing_stays() -> None:
    made = make_queries("A title that is long", "tiny", ALWAYS)
    assert made.queries == (("title", "A title that is long"),)
    assert made.passage == "A title that is long tiny"
    assert make_queries("", "just one line", ALWAYS).queries == ()


def test_lengths_and_numbers() -> None:
    settings = QuerySettings(spans=3, headings=1, min_length=20, max_length=50)
    made = make_queries("Short", TEXT, settings)
    assert texts(made, "title") == []
    assert len(texts(made, "heading")) == 1
    assert len(texts(made, "span")) == 3
    assert all(20 <= len(text) <= 50 for _, text in made.queries)
    late = "x" * 3000 + ". " + TEXT
    assert make_queries("", late, QuerySettings(kinds=("heading",))).queries == ()


def test_settings_that_cannot_be() -> None:
    for given in ({"kinds": []}, {"remove": 1.5}, {"min_length": 9, "max_length": 8}, {"spams": 1}):
        with pytest.raises(ValidationError):
            QuerySettings.model_validate(given)
