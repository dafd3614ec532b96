"""BM25 against values computed by hand, and how texts become words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_collection import SmallCollection

from oskit.errors import DataError, UsageError
from oskit.evaluation.offline.bm25 import Bm25Index, Bm25Settings, rank_bm25, split_words

TEXTS = {"d1": "Red house, red roof!", "d2": "a red boat", "d3": "the sea"}


def score(tf: int, length: int, df: int, *, k1: float = 1.2, b: float = 0.75) -> float:
    """Lucene's BM25 of one term; three documents with 9 words."""
    idf = math.log(1 + (3 - df + 0.5) / (df + 0.5))
    return idf * tf / (tf + k1 * (1 - b + b * length / 3))


def test_scores_by_hand() -> None:
    collection = SmallCollection(TEXTS, {"q1": "red roof", "q2": "RED red", "q3": "ocean", "q4": ""})
    run = rank_bm25(collection).run
    assert list(run["q1"]) == ["d1", "d2"]
    assert run["q1"]["d1"] == pytest.approx(score(2, 4, 2) + score(1, 4, 1), rel=1e-6)
    assert run["q1"]["d2"] == pytest.approx(score(1, 3, 2), rel=1e-6)
    assert run["q2"]["d2"] == pytest.approx(2 * score(1, 3, 2), rel=1e-6)
    assert run["q3"] == run["q4"] == {}


def test_settings_count() -> None:
    collection = SmallCollection(TEXTS, {"q": "red"})
    run = rank_bm25(collection, Bm25Settings(0.9, 0.4)).run
    assert run["q"]["d1"] == pytest.approx(score(2, 4, 2, k1=0.9, b=0.4), rel=1e-6)


def test_words_behind_the_last_that_counts_are_not_there() -> None:
    texts = ["the red house and a red roof", "a red boat", "the sea"]
    cut = ["red house", "red boat", "sea"]
    queries = ["red", "roof", "boat"]
    found, expected = (
        Bm25Index(given, Bm25Settings(language="english", max_words=words)).search(queries, 3)
        for given, words in ((texts, 2), (cut, None))
    )
    for (positions, scores), (places, values) in zip(found, expected, strict=True):
        assert positions.tolist() == places.tolist()
        assert scores == pytest.approx(values)


def test_ties_are_in_the_order_of_the_corpus_and_k_cuts() -> None:
    index = Bm25Index(["b x", "a x", "c x", "y y", "a x"])
    ((positions, scores),) = index.search(["x"], 3)
    assert positions.tolist() == [0, 1, 2]
    assert len(set(scores.tolist())) == 1
    ((positions, _),) = index.search(["a x"], 3)
    assert positions.tolist() == [1, 4, 0]


def test_cost_by_hand() -> None:
    found = Bm25Index(TEXTS.values()).sparsity(["red roof", "red unknown"])
    # Postings: red house roof, a red boat, the sea.
    assert (found.postings, found.document_active, found.query_active) == (8, pytest.approx(8 / 3), 1.5)
    # red: 2/2 of the queries and 2/3 of the documents; roof: 1/2 and 1/3.
    assert found.flops == pytest.approx(2 / 3 + 1 / 6)


def test_language_stems_and_drops_stop_words() -> None:
    english = Bm25Index(["The bridges are closing", "a tunnel"], Bm25Settings(language="english"))
    found = [
        positions.tolist() for positions, _ in english.search(["the bridge closed", "the", "tunnels"], 5)
    ]
    assert found == [[0], [], [1]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Naïve CAFÉ, 3 x_y", ["naïve", "café", "3", "x_y"]),
        ("我爱北京abc天", ["我爱", "爱北", "北京", "abc", "天"]),
        ("ﾃｽﾄ東京", ["テス", "スト", "ト東", "東京"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("--", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k1": -1}, "k1=-1"),
        ({"b": 1.5}, "b=1.5"),
        ({"language": "klingon"}, "'klingon'"),
        ({"k1": np.nan}, "nan"),
        ({"max_words": 0}, "0 words"),
    ],
)
def test_settings_that_cannot_be_right(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Bm25Settings(**values)  # type: ignore[arg-type]


def test_corpus_without_words() -> None:
    with pytest.raises(DataError, match="no word"):
        Bm25Index(["", "!"])


SENTENCES = {
    "english": "The permit is given by the city as soon as all that it asks for has been sent to it.",
    "swedish": "Bygglov krävs när ägaren vill ändra hur huset används, och det ges av kommunen så snart som "
    "allt som den frågar efter har skickats till den.",
    "german": "Eine Genehmigung ist nötig, wenn der Eigentümer das Haus anders nutzen will, und sie wird von "
    "der Stadt erteilt, sobald ihr alles vorliegt, was sie für das Verfahren braucht.",
    "spanish": "El permiso es necesario cuando el dueño quiere cambiar el uso de la casa, y lo da el "
    "ayuntamiento en cuanto tiene todo lo que ha pedido.",
    "russian": "Разрешение нужно, когда владелец хочет изменить то, как он использует дом, и его выдаёт "
    "город, как только у него будет всё, что для этого нужно.",
    "greek": "Η άδεια χρειάζεται όταν ο ιδιοκτήτης θέλει να αλλάξει τη χρήση του σπιτιού του.",
    "cjk": "市の図書館は朝九時に開いて夜八時に閉まります。这座桥是用混凝土和钢建成的。",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_the_language_of_most_documents_is_taken(language: str) -> None:
    others = [text for name, text in SENTENCES.items() if name != language]
    index = Bm25Index([SENTENCES[language]] * 20 + others)
    assert index.settings.language == language
    assert index.guess is not None and index.guess.votes[language] >= 20


@pytest.mark.parametrize(
    "texts",
    [
        [SENTENCES["english"], SENTENCES["swedish"]] * 20,  # two languages
        ["Rakennuslupa tarvitaan, kun omistaja haluaa muuttaa rakennuksen käyttöä heti."] * 20,  # not known
        ["screw M8 x 40 galvanised", "hinge left 90 mm"] * 50 + [SENTENCES["english"]],  # no sentences
        [SENTENCES["english"]],  # too little
    ],
)
def test_where_documents_do_not_tell_words_stay_as_they_are(texts: list[str]) -> None:
    index = Bm25Index(texts)
    assert index.settings.language is None
    (found,) = index.search([texts[0]], 1)
    assert found[0].tolist() == [0]
    given = Bm25Index(texts, Bm25Settings(language=None))
    assert (given.guess, given.settings.language) == (None, None)


def test_a_languages_stemmer_alone_where_there_are_no_stop_words() -> None:
    finnish = Bm25Index(["talot ja tiet", "silta"], Bm25Settings(language="finnish"))
    assert [list(positions) for positions, _ in finnish.search(["talo", "sillat"], 5)] == [[0], [1]]
