"""Which language is a corpus in? By its script and its stop words, for BM25's sake.

A document votes for the language whose stop words make up the largest share of its words, from a fifth on,
or whose letters it is written in; a corpus is in a language if most of its documents say so. Of 200 documents
of each of the benchmarks' collections in English, Spanish, Norwegian and Swedish 73 % (short Swedish answers)
to 100 % vote, 96 % to 100 % of these for their own language. Single documents in Polish, Czech, Finnish,
Hungarian, Indonesian and Vietnamese, which have no stop words here, do not vote; Catalan votes for French,
Galician for Portuguese, Ukrainian for Russian, Afrikaans for Dutch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from oskit.archive.tokenization import CJK, splitter, spread

STOP_WORD_LANGUAGES = (
    *("danish", "dutch", "english", "french", "german", "italian"),
    *("norwegian", "portuguese", "russian", "spanish", "swedish", "turkish"),
)
"""Languages whose stop words bm25s brings."""

SCRIPTS = {
    "cjk": CJK,
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "armenian": "\u0530-\u058f",
}
"""Scripts that one analyzer of OpenSearch is for."""

_SAMPLED = 200
_CHARACTERS = 2_000
_FEWEST_WORDS = 100
"""Fewer words tell nothing of a language."""

_SHARE = 0.2
"""Of a document's words that are stop words, for a vote."""

_AGREEMENT = 0.7
"""Of the documents that vote, for a language."""

_TURNOUT = 0.25
"""Of the documents, for a language: where the others have no sentences, these few say nothing of them."""

_WORDS = r"[\p{L}\p{M}]+"


@dataclass(frozen=True)
class LanguageGuess:
    """What a sample of texts looks like.

    Attributes:
        language: As OpenSearch's analyzer is called; None where the texts do not agree on one that is known.
        votes: How many texts vote for each language, most first.
        texts: How many were looked at.
    """

    language: str | None
    votes: dict[str, int]
    texts: int

    def __str__(self) -> str:
        if self.language is not None:
            return f"guessed by {self.votes[self.language]:,} of {self.texts:,} documents"
        found = ", ".join(f"{count:,} {language}" for language, count in list(self.votes.items())[:3])
        return f"of {self.texts:,} documents {found or 'none'} by their stop words, too few to guess"


def guess_language(texts: Sequence[str]) -> LanguageGuess:
    """Guess by a sample of ``texts``, spread evenly.

    Raises:
        ModuleNotFoundError: bm25s is not installed.
    """
    chosen = [texts[place] for place in spread(len(texts), _SAMPLED)]
    votes: Counter[str] = Counter()
    counted = 0
    for text in chosen:
        words = _words(text[:_CHARACTERS])
        counted += len(words)
        if words and (language := _vote(words)) is not None:
            votes[language] += 1
    ranked = dict(votes.most_common())
    best = next(iter(ranked), None)
    wanted = max(_AGREEMENT * votes.total(), _TURNOUT * len(chosen))
    agreed = best is not None and votes[best] >= wanted and counted >= _FEWEST_WORDS
    return LanguageGuess(best if agreed else None, ranked, len(chosen))


def stop_words(language: str) -> frozenset[str]:
    """The stop words that bm25s brings for a language; none for others."""
    return _listed(language) if language in STOP_WORD_LANGUAGES else frozenset()


def _words(text: str) -> list[str]:
    return [word for word, _ in splitter(_WORDS).pre_tokenize_str(text.lower())]


def _vote(words: Sequence[str]) -> str | None:
    letters = "".join(words)
    for script, characters in SCRIPTS.items():
        inside = sum(len(run) for run, _ in splitter(f"[{characters}]+").pre_tokenize_str(letters))
        if inside > len(letters) / 2:
            return script
    counts = {
        language: [word for word in words if word in stop] for language, stop in _all_stop_words().items()
    }
    best = max(counts, key=lambda language: len(counts[language]))
    # One alone may be a unit, an initial or a name.
    found = len(counts[best]) >= _SHARE * len(words) and len(set(counts[best])) > 1
    return best if found else None


@cache
def _all_stop_words() -> dict[str, frozenset[str]]:
    # English has a short list, Lucene's, which is what BM25 leaves out, and one as long as the others',
    # with what an apostrophe leaves (don't: don, t).
    english = {word for word in _listed("english_plus") if len(word) > 1 or word in "ai"}
    return {name: stop_words(name) for name in STOP_WORD_LANGUAGES} | {"english": frozenset(english)}


def _listed(name: str) -> frozenset[str]:
    from bm25s.tokenization import _infer_stopwords

    return frozenset(_infer_stopwords(name))
