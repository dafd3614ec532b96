"""Does the encoder's vocabulary know the script and language of the texts, or does it shatter them?

A vocabulary that was made for other languages cuts words into pieces that mean nothing alone, or does not
know their letters at all; no encoder on top of it can retrieve well. Two things are looked for:

* **Texts in a script that it hardly knows**: a quarter of a text's letters is unknown ([UNK]), or its words
  fall into pieces of hardly more than one letter. That shows in a single text, a query too.
* **A language that it cuts to pieces**, by letters that it knows: that shows in many texts together.

Of a query, which is short, all letters are looked at: a word of another script in an English question is part
of it. And in Latin script its words may be cut as small as they will: made-up names are.

What is no language is left out: words with digits or capitals (codes, formulas, names, acronyms), and words
of less than four letters in Latin script (units, variables, abbreviations). A byte-level vocabulary knows
every letter; there a letter that it has no piece for takes several, which shows in the pieces.

Of samples, with the English vocabulary of BERT (30,522 WordPieces), mBERT's (119,547), and a byte-level one
of 128,000 pieces, mostly Chinese and English; letters a piece decide, where there are more than 1.6 pieces:

=====================================  ===========  ==========  ==========
pieces per word, letters per piece     BERT         mBERT       byte-level
=====================================  ===========  ==========  ==========
English texts and questions            1.03, 5.4    1.21, 4.7   1.05, 5.6
                                       1.47, 4.8    1.69, 4.2   1.25, 5.1
code, logs, JSON, HTML, CSV            1.22 to 1.51 1.26 to 1.7 1.1 to 1.5
                                       4.1 to 5.5   3.7 to 5.5  4.2 to 5.5
names, in lower case                   1.42, 4.7    1.78, 3.7   1.75, 3.8
Spanish                                2.58, 2.9    1.52, 5.0   1.75, 4.3
Norwegian                              2.87, 2.5    1.89, 3.8   2.39, 3.0
Swedish                                3.05, 2.5    2.40, 3.2   2.72, 2.8
Chinese (unknown letters)              .70          .00         0
Japanese                               .31          .00         0
=====================================  ===========  ==========  ==========

One text in another script, with BERT: Cyrillic, Greek, Arabic, Hebrew, Devanagari, Bengali 3.5 to 7.1 pieces
with 1.0 to 1.1 letters; Korean 2.4 pieces a syllable; Thai, Georgian, Armenian, Amharic .8 to 1 unknown. None
of some 1,900 English texts, code and titles among them, counts as strange by any of the three.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
"""Of many texts together."""

MIN_WORDS = 100
"""Fewer words tell nothing of a language."""

STRANGE_UNKNOWN = 0.25
STRANGE_LETTERS_PER_PIECE = 1.6
"""Of one text."""

MIN_LETTERS = 8
"""Fewer letters in small pieces tell nothing of a text."""

MIN_PIECES_OF_QUERY = 4
SMALL_OF_QUERY = 0.5
"""Of one query: small pieces, and the share that their letters have of all of its letters."""

MAX_STRANGE = 0.01
"""Share of strange texts that a collection of another language may have."""

SAMPLED_TEXTS = 200
"""Texts of each side that are looked at."""

_EVERY = 32
"""Of further texts, when they come one after the other, one in so many is looked at."""

_MAX_CHARACTERS = 5_000
_EXAMPLE = 60

ADVICE = "an encoder whose vocabulary was made for it finds more (docs/architectures.md, The vocabulary)"

CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Han, Hiragana, Katakana and Hangul, as Lucene's CJKBigramFilter takes them."""

# Scripts written without spaces, and Korean syllables, of which a few make a word: each character is a word.
_NO_SPACES = f"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff{CJK}"  # Thai, Lao, Burmese, Khmer
_WORDS = f"[{_NO_SPACES}]|[\\w&&[^{_NO_SPACES}]]+"

_LATIN_ENDS = "\u0370"
"""The first letter behind Latin script, but for the one of Vietnamese and others."""

_TELLING_LETTERS = 4


@dataclass
class Tokenization:
    """How a tokenizer cuts texts.

    Attributes:
        texts: How many were looked at.
        strange: How many of them are in a script that it hardly knows.
        words: Words that tell of a language: runs of letters; in scripts without spaces, characters.
        letters: Their letters.
        pieces: Tokens with one of these letters.
        unknown_letters: Letters that the vocabulary does not know ([UNK]).
        example: The beginning of a strange text, or of the first one.
    """

    texts: int = 0
    strange: int = 0
    words: int = 0
    letters: int = 0
    pieces: int = 0
    unknown_letters: int = 0
    example: str = ""

    @property
    def pieces_per_word(self) -> float:
        """Pieces by words."""
        return self.pieces / max(1, self.words)

    @property
    def letters_per_piece(self) -> float:
        """Letters by pieces."""
        return self.letters / max(1, self.pieces)

    @property
    def unknown(self) -> float:
        """Share of the letters that is unknown."""
        return self.unknown_letters / max(1, self.letters)

    @property
    def in_small_pieces(self) -> bool:
        """Whether the words fall into pieces of hardly more than one letter; for one text."""
        return (
            self.pieces_per_word > MAX_PIECES_PER_WORD and self.letters_per_piece < STRANGE_LETTERS_PER_PIECE
        )

    @property
    def is_strange(self) -> bool:
        """Whether a script is hardly known; for one text."""
        return (self.letters >= MIN_LETTERS and self.in_small_pieces) or self.unknown > STRANGE_UNKNOWN

    @property
    def _cuts_to_pieces(self) -> bool:
        small = self.pieces_per_word > MAX_PIECES_PER_WORD and self.letters_per_piece < MIN_LETTERS_PER_PIECE
        return self.words >= MIN_WORDS and (small or self.unknown > MAX_UNKNOWN)

    @property
    def shatters(self) -> bool:
        """Whether the vocabulary hardly knows the script or language of the texts, or of some of them."""
        return self._cuts_to_pieces or self.strange > MAX_STRANGE * self.texts

    def add(self, text: str, one: Tokenization) -> None:
        """Take in what was found of one text."""
        if (one.is_strange and not self.strange) or not self.texts:
            beginning = " ".join(text[: 4 * _EXAMPLE].split())
            self.example = beginning if len(beginning) <= _EXAMPLE else f"{beginning[:_EXAMPLE]}…"
        self.texts += 1
        self.strange += one.is_strange
        self.words += one.words
        self.letters += one.letters
        self.pieces += one.pieces
        self.unknown_letters += one.unknown_letters

    def told(self, texts: str) -> str:
        """What is wrong with the texts, called so, in half a sentence."""
        found = [f"{self.strange:,} of {self.texts:,}"] if self.strange else []
        if self._cuts_to_pieces and self.unknown > MAX_UNKNOWN:
            found.append(f"{self.unknown:.0%} unknown letters")
        elif self._cuts_to_pieces:
            found.append(f"{self.pieces_per_word:.1f} pieces a word")
        return f"{texts} ({', '.join(found)}), such as {self.example!r}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rates = {name: getattr(self, name) for name in ("pieces_per_word", "letters_per_piece", "unknown")}
        counts = {name: getattr(self, name) for name in ("texts", "strange", "words", "example")}
        return {**counts, **rates, "shatters": self.shatters}


class TextWatch:
    """Looks at texts that come one after the other: at the first 200, then at one of 32, which costs little.

    Args:
        vocabulary: Of the encoder.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._cutter: _Cutter | None = None
        self._seen = 0
        self._found = Tokenization()

    def look(self, texts: Iterable[str]) -> None:
        """Look at some of the texts."""
        cutter = self._cutter = self._cutter or _Cutter(self._vocabulary)
        for text in texts:
            if self._seen < SAMPLED_TEXTS or self._seen % _EVERY == 0:
                self._found.add(text, cutter.cut(text))
            self._seen += 1

    def found(self) -> Tokenization | None:
        """What they are like so far; None without any."""
        return self._found if self._seen else None


def measure_tokenization(vocabulary: Vocabulary, texts: Iterable[str]) -> Tokenization:
    """Cut ``texts`` (the first 5,000 characters of each, untruncated by the encoder's length) and count."""
    found, cutter = Tokenization(), _Cutter(vocabulary)
    for text in texts:
        found.add(text, cutter.cut(text))
    return found


class _Cutter:
    """Cuts single texts and counts."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer, self._unknown_id = vocabulary.tokenizer(), vocabulary.unknown_id

    def cut(self, text: str) -> Tokenization:
        text = clean_text(text[:_MAX_CHARACTERS])
        return self._count(text, list(_telling_words(text)))

    def cut_query(self, query: str) -> tuple[Tokenization, Tokenization]:
        """Unknown ones of all its letters; and its words that are not in Latin script, by themselves."""
        text = clean_text(query[:_MAX_CHARACTERS])
        words = list(_telling_words(text))
        letters = sum(unicodedata.category(letter)[0] in "LM" for letter in text)
        other = self._count(text, [span for span in words if text[span[0]] >= _LATIN_ENDS])
        found = self._count(text, words)
        return replace(found, letters=max(letters, found.letters)), other

    def _count(self, text: str, words: Sequence[tuple[int, int]]) -> Tokenization:
        inside = np.zeros(len(text) + 1, dtype=np.int64)
        pieces = lost = 0
        for start, end in words:
            inside[start + 1 : end + 1] = 1
        before = np.cumsum(inside)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            held = int(before[end] - before[start])
            pieces += held > 0
            lost += held if token_id == self._unknown_id else 0
        return Tokenization(1, 0, len(words), int(before[-1]), pieces, lost)


def _telling_words(text: str) -> Iterator[tuple[int, int]]:
    """Where words are that tell of a language."""
    for word, span in splitter(_WORDS).pre_tokenize_str(text):
        if word[0] >= _LATIN_ENDS:
            if not any(unicodedata.category(letter)[0] in "NS" for letter in word):
                yield span
        elif len(word) >= _TELLING_LETTERS and word.islower() and word.isalpha():
            yield span


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
    """The warning, in one line, for what each side's texts are called; None where the vocabulary fits."""
    worst = [value.told(side) for side, value in found.items() if value.shatters]
    if not worst:
        return None
    return f"the encoder's vocabulary hardly knows the language of {'; '.join(worst)}: {ADVICE}"


class QueryWatch:
    """Looks at single queries.

    Args:
        vocabulary: Of the encoder.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._cutter = _Cutter(vocabulary)

    def told(self, query: str) -> str | None:
        """The warning; None where the query's script is known."""
        found, other = self._cutter.cut_query(query)
        if found.unknown > STRANGE_UNKNOWN:
            how = f"{found.unknown:.0%} unknown letters"
        elif (
            other.in_small_pieces
            and other.pieces >= MIN_PIECES_OF_QUERY
            and other.letters >= SMALL_OF_QUERY * found.letters
        ):
            how = f"{other.letters_per_piece:.1f} letters a piece"
        else:
            return None
        return f"the encoder's vocabulary hardly knows the query's script ({how}): {ADVICE}"


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
