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

from oskit.archive.tokenization import (
    QueryWatch,
    measure_tokenization,
    shattering,
    spread,
    tokenizations,
)
from oskit.archive.vocabulary import Vocabulary
from oskit.cluster.ingest.load import dry_run
from oskit.data.documents import Document
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
    vocabulary = wordpiece("bird", "##s", "d", "##ucks", "!", "cat", "Bird", "x", "##7")
    found = measure_tokenization(vocabulary, ["birds ducks! Bird x7 cat", "bird, 猫犬"])
    # bird|##s d|##ucks (capitals, digits and three letters tell nothing); bird, the comma unknown, without
    # a letter, and 猫犬, which BERT's splitter leaves whole: two words in one unknown piece.
    assert (found.texts, found.words, found.letters, found.pieces, found.unknown_letters) == (2, 5, 16, 6, 2)
    assert found.pieces_per_word == pytest.approx(6 / 5)
    assert found.letters_per_piece == pytest.approx(16 / 6)
    assert found.unknown == pytest.approx(2 / 16)
    assert (found.strange, found.example) == (1, "bird, 猫犬"), "a third of its letters is unknown"


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


RUSSIAN = "Разрешение на строительство нужно, когда владелец хочет изменить использование здания."
GREEK = "Η άδεια οικοδομής χρειάζεται όταν ο ιδιοκτήτης θέλει να αλλάξει τη χρήση του κτιρίου."
ARABIC = "رخصة البناء مطلوبة عندما يريد المالك تغيير استخدام المبنى"
HINDI = "जब मालिक भवन का उपयोग बदलना चाहता है तो भवन निर्माण की अनुमति आवश्यक है"
GEORGIAN = "მშენებლობის ნებართვა საჭიროა, როდესაც მფლობელს სურს შენობის გამოყენების შეცვლა"
SCRIPTS = [JAPANESE, CHINESE, THAI, KOREAN, RUSSIAN, GREEK, ARABIC, HINDI, GEORGIAN]

ENGLISH_DOMAINS = {
    "codes": "SKU AX-4411-Z9, NDC 0002-1433-80 or part no. XJ9-778/QW, ISBN 978-3-16-148410-0, rev. B2.",
    "formulas": "Let f(x) = x^2 + 3xy and α = β + γ; then 2 H2SO4 + Fe → Fe(SO4)2, ∂f/∂x = 2x, ∑ x_i.",
    "names": "Wojciech Szczęsny, Krzysztof Piątek, Nguyễn Văn Thiệu and Søren Kierkegaard met.",
    "genes": "BRCA1 and TP53 mutations; p.Arg175His; IL-6, TNF-α; mRNA, siRNA, qPCR of ACTB were used.",
    "protein": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV",
    "log": "2024-01-01 12:00:00,123 ERROR [main] o.s.boot.SpringApplication - Application run failed",
    "code": "def tokenize(self, text): return [tok for tok in self._re.findall(text) if tok not in STOP]",
    "quotation": "The Greek word λόγος (logos) and the Chinese 西安市 stand among words of plain English.",
    "emoji": "great phone 😀😀 love it ❤️ 👍👍",
    "capitals": "THE BUILDING PERMIT IS REQUIRED WHEN THE OWNER WANTS TO CHANGE THE USE OF THE BUILDING",
}


@pytest.mark.parametrize("domain", ENGLISH_DOMAINS)
def test_no_domain_of_english_is_taken_for_another_language(english: Vocabulary, domain: str) -> None:
    assert QueryWatch(english).told(ENGLISH_DOMAINS[domain]) is None
    found = measure_tokenization(english, [ENGLISH_DOMAINS[domain]] * 100)
    assert (found.strange, found.shatters) == (0, False)


@pytest.mark.parametrize(
    "query",
    [
        "how to say 你好",
        "what does спасибо mean",
        "xkcd wysiwyg rtfm",
        "fhqwhgads",
        "qwrtzpsdfgh mnbvcxkj",
        "ⅷ ⅸ ⅹ",
        "ⓐⓑⓒ 12 ① ②",
        "α = β + γ",
        "tnf-α il-6 κβ",
        "is 50 µm the ωmega of λ",
        "",
    ],
)
def test_a_query_with_a_strange_word_or_name_is_not_in_another_script(
    english: Vocabulary, query: str
) -> None:
    assert QueryWatch(english).told(query) is None


@pytest.mark.parametrize(
    "query",
    ["你好", "混凝土 iso", "図書館 閉館", "привет", "Строительство", "αλλαγή χρήσης", "도서관", "में अनुमति"],
)
def test_a_query_of_one_or_two_words_in_another_script_is_noticed(english: Vocabulary, query: str) -> None:
    assert "hardly knows the query's script" in str(QueryWatch(english).told(query))


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_script_that_is_hardly_known_shows_in_one_query(english: Vocabulary, text: str) -> None:
    warning = str(QueryWatch(english).told(text))
    assert "hardly knows the query's script" in warning and "docs/architectures.md" in warning


def test_point_15_an_english_vocabulary_fits_english_and_shatters_others(english: Vocabulary) -> None:
    def warning(texts: list[str]) -> str | None:
        encoder = SimpleNamespace(vocabulary=english)
        return shattering(tokenizations(encoder, texts, texts))  # type: ignore[arg-type]

    def passages(language: str) -> list[str]:
        return [document.passage for document in demo_collection(language).documents()][:60]

    assert warning(passages("en")) is None
    assert warning(list(demo_collection("en").queries.values())) is None
    for shattered in (passages("sv"), [NORWEGIAN] * 10):
        assert "pieces a word), such as" in str(warning(shattered))
    for unknown in (JAPANESE, CHINESE):
        found = str(warning([unknown] * 10))
        assert "queries (10 of 10" in found and "unknown letters" in found and unknown[:20] in found


def test_a_load_is_warned_of_once_with_the_share_and_an_example(english: Vocabulary) -> None:
    def warning(texts: list[str]) -> str | None:
        encoder = SimpleNamespace(vocabulary=english, tokenize_documents=lambda texts: [[]] * len(texts))
        documents = (Document(f"d{n}", text) for n, text in enumerate(texts))
        report = dry_run("any", documents, encoder=encoder, encode="client")  # type: ignore[arg-type]
        told = report.to_dict()["tokenization"]
        assert told["shatters"] is (report.language_warning is not None)
        return report.language_warning

    plain = [f"The permit number {n} is given by the city when the owner asks for it." for n in range(3000)]
    assert warning(plain) is None
    assert warning([*plain, RUSSIAN]) is None, "one of thousands"
    mixed = [RUSSIAN if n % 10 == 3 else text for n, text in enumerate(plain[:150])]
    found = str(warning(mixed))
    assert "documents (15 of 150" in found and "such as 'Разрешение на строительство" in found
    assert found.count("hardly knows") == 1
    late = str(warning([*plain, *[CHINESE] * 1500]))  # behind 3,000 others, of which a sample is looked at
    assert "unknown letters), such as" in late and CHINESE[:20] in late
    assert "pieces a word), such as 'Byggetillatelse" in str(warning([NORWEGIAN] * 30))


class Even:
    """Gives every piece the weight 1, whatever the text is."""

    architecture = "symmetric"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        return csr_matrix(np.ones((len(texts), self.vocabulary.size), dtype=np.float32))

    query_matrix = document_matrix


def test_point_15_an_evaluation_warns_of_a_tokenizer_that_shatters() -> None:
    collection = SmallCollection(
        {f"d{n}": "boro boro boro" for n in range(60)}, {"q": "boro"}, {"q": {"d1": 1}}
    )
    collection.name, collection.split = "small", "test"  # type: ignore[attr-defined]
    vocabularies = {"whole": wordpiece("boro"), "shattered": wordpiece("b", "##r", "##o")}
    encoders = {name: partial(Even, vocabulary) for name, vocabulary in vocabularies.items()}
    report = evaluate(encoders, collection, k=10)  # type: ignore[arg-type]
    (warning,) = report.warnings
    assert warning.startswith("shattered: ")
    assert "4.0 pieces a word), such as 'boro boro boro'" in warning
    assert "queries" not in warning, "one word of the queries tells nothing"
    data = report.to_dict()
    assert data["warnings"] == [warning]
    assert data["encoders"][1]["tokenization"]["documents"]["shatters"] is True
    assert "4.0 pieces a word" in render(evaluation_page(report))


def test_samples_are_spread_evenly() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(9, 5) == [0, 2, 4, 6, 8]
