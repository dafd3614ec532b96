"""Queries made from documents, so that a corpus without queries can train an encoder.

A title or a heading is what a person would type to find the text below it. A sentence of a text stands for a
query that asks about it: the inverse cloze task (Lee, Chang and Toutanova, 2019, arXiv 1906.00300), where the
sentence is taken out of the text nine times of ten, so that matching words alone does not solve it.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from oskit.data.duplicates import digest_of
from oskit.training.recipe.sources import QueryKind, QuerySettings


class MadeQueries(NamedTuple):
    """The queries of one document."""

    queries: tuple[tuple[QueryKind, str], ...]  # kind and text of each
    # what they are to find: the document without the queries that were taken out. It is one text for all of
    # them, and what the corpus holds, so that no copy of it can be taken for a negative
    passage: str


def make_queries(title: str, text: str, settings: QuerySettings, *, seed: int = 0) -> MadeQueries:
    """The queries of a document; the same for the same document and seed, wherever it stands in a corpus."""
    title, text = title.strip(), text.strip()
    # Seeded by the content: the order of the documents and other documents must not matter. Not for secrets.
    rng = random.Random(digest_of(str(seed), title, text))  # noqa: S311
    passage = f"{title}\n{text}" if title else text
    queries: list[tuple[QueryKind, str]] = []
    for kind, query, raw in _candidates(title, text, settings, rng):
        if not settings.min_length <= len(query) <= settings.max_length or query in (q for _, q in queries):
            continue
        rest = passage.replace(raw, "\n" if kind != "span" else " ", 1).strip()
        if len(rest) < settings.min_passage:
            if passage.strip() == raw:
                continue  # the query would be all there is to find
        elif rng.random() < settings.remove:
            passage = rest
        queries.append((kind, query))
    return MadeQueries(tuple(queries), _one_line(passage))


def _candidates(
    title: str, text: str, settings: QuerySettings, rng: random.Random
) -> list[tuple[QueryKind, str, str]]:
    """Kind, query, and the characters of the document that it is."""
    found: list[tuple[QueryKind, str, str]] = []
    if "title" in settings.kinds and title:
        found.append(("title", _one_line(title), title))
    head = text[: settings.reach]
    if "heading" in settings.kinds:
        for raw, heading in _headings(head, titled=bool(title))[: settings.headings]:
            # "Side effects" alone asks about nothing, the title says of what.
            found.append(("heading", _one_line(f"{title} {heading}"), raw))
    if "span" in settings.kinds:
        spans = _spans(head, settings)
        for span in rng.sample(spans, min(settings.spans, len(spans))):
            found.append(("span", _one_line(span), span))
    return found


_HEADING = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+(\S.*?)[ \t]*#*[ \t]*$", re.MULTILINE)
_SHORT_LINE = 80


def _headings(text: str, *, titled: bool) -> list[tuple[str, str]]:
    """Headings as they stand in the text, and their words."""
    found = [(match.group(0), match.group(1)) for match in _HEADING.finditer(text)]
    first, newline, rest = text.partition("\n")
    is_sentence = first.rstrip().endswith((".", "。", ",", ";", ":"))
    if not titled and newline and rest.strip() and len(first) <= _SHORT_LINE and not is_sentence:
        line = (first, first.strip())
        if not first.lstrip().startswith("#"):
            found.insert(0, line)
    return found


# A sentence ends at its mark and white space, or at the marks of scripts that write none; or at a line's end.
_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*|\n+")  # noqa: RUF001
_ORDINAL = re.compile(r"(?<!\d)\d{1,2}\.$")
_WORDS_OF_SPAN = (5, 15)


def _spans(text: str, settings: QuerySettings) -> list[str]:
    """Sentences of a fitting length; of a text that is one sentence, windows of its words."""
    sentences = _sentences(_HEADING.sub("\n", text))
    fitting = [part for part in sentences if settings.min_length <= len(part) <= settings.max_length]
    if len(sentences) > 1:
        return fitting
    words = list(re.finditer(r"\S+", text))
    shortest, longest = _WORDS_OF_SPAN
    width = min(longest, len(words) // 3)
    if width < shortest:
        return []
    starts = range(0, len(words) - width + 1, width)
    return [text[words[start].start() : words[start + width - 1].end()] for start in starts]


def _sentences(text: str) -> list[str]:
    sentences: list[str] = []
    start = 0
    for match in _END.finditer(text):
        before, after = text[start : match.start()], text[match.end() : match.end() + 1]
        # "11. november 1918", "approx. ten": no sentence ends there.
        if "\n" not in match.group() and (after.islower() or _ORDINAL.search(before)):
            continue
        sentences.append(before.strip())
        start = match.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _one_line(text: str) -> str:
    return " ".join(text.split())
