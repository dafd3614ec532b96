"""Does the encoder's tokenizer fit the texts, or does it shatter them?

A vocabulary that was made for other languages cuts words into pieces that mean nothing alone, or does not
know their letters at all; no encoder on top of it can retrieve well. Three figures tell. With the English
vocabulary of BERT (30,522 WordPieces), the documents of seven collections:

==========================  ===============  =================  ===============
texts                       pieces per word  letters per piece  unknown letters
==========================  ===============  =================  ===============
English, four collections   1.10 to 1.20     4.2 to 4.6         up to .001
Spanish                     1.80             2.8                0
Norwegian, Swedish          2.10, 2.38       2.4                0
Chinese, Japanese           1.01, .98        1.1                .63, .30
==========================  ===============  =================  ===============

Queries differ little from documents: the worst English ones, consumers' questions about medicines, have 1.36
pieces per word. A byte-level vocabulary of 128,000 pieces, made mostly of Chinese and English, has .60 for
Chinese, .71 for Japanese, 1.1 for English and 1.42 for Spanish, but 1.83 for Norwegian and 2.17 for Swedish.
The limits lie between what fits and what does not; letters per piece excuse languages with long words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.data.values import clean_text

if TYPE_CHECKING:
    from oskit.archive.text_encoder import TextEncoder
    from oskit.archive.vocabulary import Vocabulary

MAX_PIECES_PER_WORD = 1.6
MIN_LETTERS_PER_PIECE = 3.0
MAX_UNKNOWN = 0.05

MIN_WORDS = 100
"""Fewer words tell nothing of a language."""

SAMPLED_TEXTS = 200
"""Texts of each side that are looked at."""

_MAX_CHARACTERS = 5_000

CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Han, Hiragana, Katakana and Hangul, as Lucene's CJKBigramFilter takes them."""

# Scripts written without spaces, and Korean syllables, of which a few make a word: each character is a word.
_NO_SPACES = f"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff{CJK}"  # Thai, Lao, Burmese, Khmer
_WORDS = f"[{_NO_SPACES}]|[\\w&&[^{_NO_SPACES}]]+"


@dataclass(frozen=True)
class Tokenization:
    """How a tokenizer cuts texts.

    Attributes:
        words: Words in the texts: runs of letters and digits; in scripts without spaces, characters.
        pieces_per_word: Tokens with a letter or digit, by words.
        letters_per_piece: Letters and digits, by these tokens.
        unknown: Share of the letters and digits that the vocabulary does not know ([UNK]).
    """

    words: int
    pieces_per_word: float
    letters_per_piece: float
    unknown: float

    @property
    def shatters(self) -> bool:
        """Whether the pieces are too small, or the letters unknown, for the words to be told apart."""
        small = self.pieces_per_word > MAX_PIECES_PER_WORD and self.letters_per_piece < MIN_LETTERS_PER_PIECE
        return self.words >= MIN_WORDS and (small or self.unknown > MAX_UNKNOWN)

    def to_dict(self) -> dict[str, Any]:
        """All attributes, for JSON."""
        return {**asdict(self), "shatters": self.shatters}


def measure_tokenization(vocabulary: Vocabulary, texts: Iterable[str]) -> Tokenization:
    """Cut ``texts`` (the first 5,000 characters of each, untruncated by the encoder's length) and count."""
    tokenizer, unknown_id = vocabulary.tokenizer(), vocabulary.unknown_id
    words = letters = pieces = lost = 0
    for text in texts:
        text = clean_text(text[:_MAX_CHARACTERS])
        inside = np.zeros(len(text) + 1, dtype=np.int64)
        for _, (start, end) in splitter(_WORDS).pre_tokenize_str(text):
            words += 1
            inside[start + 1 : end + 1] = 1
        before = np.cumsum(inside)
        letters += int(before[-1])
        encoding = tokenizer.encode(text, add_special_tokens=False)
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            held = int(before[end] - before[start])
            pieces += held > 0
            lost += held if token_id == unknown_id else 0
    return Tokenization(words, pieces / max(1, words), letters / max(1, pieces), lost / max(1, letters))


def tokenizations(
    encoder: TextEncoder, documents: Sequence[str], queries: Sequence[str]
) -> dict[str, Tokenization]:
    """Of both sides; ``documents`` are a sample already, of the queries one is taken here."""
    asked = [queries[position] for position in spread(len(queries), SAMPLED_TEXTS)]
    return {
        "documents": measure_tokenization(encoder.vocabulary, documents),
        "queries": measure_tokenization(encoder.vocabulary, asked),
    }


def shattering(found: Mapping[str, Tokenization]) -> str | None:
    """The warning, in one line; None where the tokenizer fits."""
    worst = [
        f"{value.unknown:.0%} unknown letters in {side}"
        if value.unknown > MAX_UNKNOWN
        else f"{value.pieces_per_word:.1f} pieces a word in {side}"
        for side, value in found.items()
        if value.shatters
    ]
    if not worst:
        return None
    return (
        f"the encoder's tokenizer shatters these texts: {', '.join(worst)} (in a language that a vocabulary "
        "was made for, up to 1.4 pieces a word and no unknown letters)"
    )


def spread(size: int, count: int) -> list[int]:
    """At most ``count`` positions, spread evenly over ``size``."""
    if size <= count:
        return list(range(size))
    return sorted({int(position) for position in np.linspace(0, size - 1, count)})


@cache
def splitter(words: str) -> Any:
    """Words, by a library whose ``\\w`` has combining marks in it: Python's cuts Hindi at its vowel signs."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    return Split(Regex(words), "removed", invert=True)
