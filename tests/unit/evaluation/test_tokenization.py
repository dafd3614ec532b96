"""Does the tokenizer fit the texts? Counted by hand, and beside a real English vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from small_collection import SmallCollection
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

from oskit.archive.tokenization import measure_tokenization, shattering, spread, tokenizations
from oskit.archive.vocabulary import Vocabulary
from oskit.demo.data import demo_collection, demo_encoder
from oskit.evaluation.offline.evaluate import evaluate
from oskit.evaluation.reports.evaluation import evaluation_page
from oskit.evaluation.reports.page import render

JAPANESE = "市の図書館は朝九時に開いて夜八時に閉まります。"
CHINESE = "这座桥是用混凝土和钢建成的，每天有很多汽车通过。"
THAI = "ห้องสมุดเปิดเก้าโมงเช้าและปิดสองทุ่ม"
KOREAN = "도서관은 아침 아홉 시에 엽니다"
NORWEGIAN = (
    "Byggetillatelse kreves når eieren vil endre bruken av bygningen, og kommunen behandler søknaden "
    "så snart alle nødvendige opplysninger foreligger. "
)


def wordpiece(*pieces: str) -> Vocabulary:
    tokenizer = Tokenizer(
        WordPiece({piece: i for i, piece in enumerate(("[UNK]", *pieces))}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return Vocabulary(tokenizer)


@pytest.fixture(scope="module")
def english() -> Vocabulary:
    """The vocabulary of the demo's encoder: BERT's."""
    return Vocabulary.from_file(demo_encoder() / "tokenizer.json")


def test_figures_by_hand() -> None:
    found = measure_tokenization(wordpiece("cat", "##s", "d", "##og", "!"), ["cats dog!", "cat, 猫犬"])
    # cat|##s d|##og (the ! has no letter); cat, the comma unknown without a letter, and 猫犬, which BERT's
    # splitter leaves whole: two words of ours in one unknown piece.
    assert found.words == 5
    assert found.pieces_per_word == pytest.approx(6 / 5)
    assert found.letters_per_piece == pytest.approx(12 / 6)
    assert found.unknown == pytest.approx(2 / 12)
    assert not found.shatters, "five words tell nothing of a language"


@pytest.mark.parametrize("text", [JAPANESE, CHINESE, THAI, KOREAN])
def test_scripts_without_spaces_count_by_characters(text: str) -> None:
    letters = sorted({*text})
    whole = measure_tokenization(wordpiece(*letters, *(f"##{letter}" for letter in letters)), [text] * 20)
    assert whole.pieces_per_word == pytest.approx(1, abs=0.01)
    assert not whole.shatters
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(ByteLevel.alphabet())}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    by_bytes = measure_tokenization(Vocabulary(tokenizer), [text] * 20)
    assert by_bytes.pieces_per_word == pytest.approx(3, abs=0.01)
    assert by_bytes.shatters


def test_point_15_an_english_vocabulary_fits_english_and_shatters_others(english: Vocabulary) -> None:
    def warning(texts: list[str]) -> str | None:
        encoder = SimpleNamespace(vocabulary=english)
        return shattering(tokenizations(encoder, texts, texts))  # type: ignore[arg-type]

    def passages(language: str) -> list[str]:
        return [document.passage for document in demo_collection(language).documents()][:60]

    assert warning(passages("en")) is None
    assert warning(list(demo_collection("en").queries.values())) is None
    for shattered in (passages("sv"), [NORWEGIAN] * 10):
        assert "pieces a word in documents" in str(warning(shattered))
    for unknown in (JAPANESE, CHINESE):
        assert "unknown letters in queries" in str(warning([unknown] * 10))


class Even:
    """Gives every piece the weight 1, whatever the text is."""

    architecture = "symmetric"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        return csr_matrix(np.ones((len(texts), self.vocabulary.size), dtype=np.float32))

    query_matrix = document_matrix


def test_point_15_an_evaluation_warns_of_a_tokenizer_that_shatters() -> None:
    collection = SmallCollection({f"d{n}": "bro bro bro" for n in range(60)}, {"q": "bro"}, {"q": {"d1": 1}})
    collection.name, collection.split = "small", "test"  # type: ignore[attr-defined]
    vocabularies = {"whole": wordpiece("bro"), "shattered": wordpiece("b", "##r", "##o")}
    encoders = {name: partial(Even, vocabulary) for name, vocabulary in vocabularies.items()}
    report = evaluate(encoders, collection, k=10)  # type: ignore[arg-type]
    (warning,) = report.warnings
    assert warning.startswith("shattered: ")
    assert "3.0 pieces a word in documents" in warning
    assert "queries" not in warning, "one word of the queries tells nothing"
    data = report.to_dict()
    assert data["warnings"] == [warning]
    assert data["encoders"][1]["tokenization"]["documents"]["shatters"] is True
    assert "3.0 pieces a word in documents" in render(evaluation_page(report))


def test_samples_are_spread_evenly() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(9, 5) == [0, 2, 4, 6, 8]
