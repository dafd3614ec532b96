"""Long texts in pieces that an encoder reads whole: chunks, cut at sentences, by its own tokenizer's tokens.

What an encoder is not given it cannot find: of a text longer than its limit, only the beginning is encoded.
A chunk is counted with all that the encoder gets: the special tokens, the document's title, which stands in
front of every chunk, and a piece of the text. A document that fits is one chunk, its passage as it is.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from oskit.data.values import clean_text
from oskit.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Encoding

Tokenize = Callable[[str], "Encoding"]
"""The encoder's tokenizer without its truncation: ``encoder.vocabulary.tokenizer().encode``."""

MIN_TOKENS = 16
"""Of a chunk; fewer hold no sentence."""

_BORDERS = re.compile(
    # A mark, what closes behind it, and white space; in scripts without spaces, the mark; or a blank line.
    r"""(?<=[.!?…‼⁇؟۔।॥։።။។])["'”’»›)\]]*+(?P<spaced>\s++)"""  # noqa: RUF001
    r"""|(?<=[。！？｡])[」』）】〉》”’]*+\s*+(?![。！？｡」』）】〉》”’])"""  # noqa: RUF001
    r"""|\n[^\S\n]*\n\s*+"""
)
_LINES = re.compile(r"\n\s*+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document.

    Attributes:
        text: What is encoded: the title, and the document's text from ``start`` to ``end``.
        start: Where it begins in the document's text, in characters.
        end: Where it ends.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Chunking:
    """How documents are cut.

    Args:
        tokens: Of a chunk at most, special tokens and title included.
        overlap: Tokens of the text that a chunk repeats of the one before at most: whole sentences, as many
            as fit; where a sentence had to be cut, its last words.
    """

    tokens: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.tokens < MIN_TOKENS:
            raise UsageError(
                f"chunks of {self.tokens} tokens are too short", hint=f"Use {MIN_TOKENS} or more"
            )
        if not 0 <= self.overlap <= self.tokens // 2:
            raise UsageError(
                f"chunks of {self.tokens} tokens cannot overlap by {self.overlap}",
                hint=f"Use 0 to {self.tokens // 2}: half of them",
            )

    @classmethod
    def parse(cls, text: str) -> Chunking:
        """Read ``tokens:384,overlap:64``; without ``overlap`` there is none.

        Raises:
            UsageError: It does not read so, or no text can be cut so.
        """
        pairs = [part.strip().split(":") for part in text.split(",")]
        given = {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
        known = "tokens" in given and given.keys() <= {"tokens", "overlap"} and len(given) == len(pairs)
        if not known or not all(value.isascii() and value.isdigit() for value in given.values()):
            raise UsageError(f"chunks cannot be read from {text!r}", hint="Write tokens:384,overlap:64")
        return cls(int(given["tokens"]), int(given.get("overlap", "0")))

    def __str__(self) -> str:
        return f"tokens:{self.tokens},overlap:{self.overlap}"

    def check_length(self, max_length: int) -> None:
        """Refuse chunks that the encoder would cut.

        Args:
            max_length: Tokens that it reads of a text, special tokens included.

        Raises:
            UsageError: A chunk may have more.
        """
        if self.tokens > max_length:
            raise UsageError(
                f"the encoder reads {max_length} tokens of a text, and would cut chunks of {self.tokens}",
                hint=f"Use --chunk tokens:{max_length} or less",
            )

    def split(self, title: str, text: str, tokenize: Tokenize) -> list[Chunk]:
        """Cut a document.

        All of the text is in the chunks, but for white space between them; a chunk begins behind the one
        before it or, by the overlap, inside of it. None has more than ``tokens`` tokens, unless one
        character has.

        Args:
            title: Stands before each chunk; of one longer than half a chunk, the beginning.
            text: Of the document. Lone surrogates become U+FFFD; positions are those after that.
            tokenize: From the encoder.

        Returns:
            The chunks in their order; none for a document without title and text.
        """
        title, text = clean_text(title), clean_text(text)
        whole = f"{title} {text}".strip() if title else text
        if not whole.strip():
            return []
        if len(tokenize(whole).ids) <= self.tokens:
            return [Chunk(whole, 0, len(text))]
        found = _Tokens.of(text, tokenize)
        room = self.tokens - found.special
        head = _beginning(title.strip(), room // 2, tokenize)
        heading = _Tokens.of(head, tokenize).count if head else 0
        chunks = list(self._cut(found, f"{head} " if head else "", room - heading, tokenize))
        return chunks or [Chunk(_beginning(title.strip(), room, tokenize), 0, len(text))]

    def _cut(self, tokens: _Tokens, head: str, room: int, tokenize: Tokenize) -> Iterator[Chunk]:
        begin = done = last = 0
        overlap = min(self.overlap, room // 2)
        while done < tokens.count:
            limit = begin + room
            while True:  # a piece alone may have more tokens than it had inside of the text
                end = tokens.end(begin, done, limit)
                chunk = tokens.chunk(head, begin, end)
                over = len(tokenize(chunk.text).ids) - self.tokens if chunk is not None else 0
                if over <= 0 or ((smallest := end <= tokens.next_cut(done)) and begin == done):
                    break
                begin, limit = (done, done + room) if smallest else (begin, min(limit, end) - over)
            if chunk is not None and chunk.end > last:  # else there is but white space behind the last one
                yield chunk
                last = chunk.end
            begin, done = tokens.begin(begin, end, overlap, room), end


class _Tokens:
    """The tokens of a text, and where it can be cut: positions are indexes of tokens.

    Attributes:
        text: The text.
        count: How many tokens it has.
        special: How many the tokenizer puts around it.
    """

    def __init__(self, text: str, spans: list[tuple[int, int]], special: int) -> None:
        self.text, self.count, self.special = text, len(spans), special
        # What a normalizer drops may stand anywhere: positions only grow.
        self._starts = list(accumulate((start for start, _ in spans), max))
        self._ends = list(accumulate((end for _, end in spans), max))
        self._places: dict[int, int] = {0: 0, self.count: len(text)}
        self._sentences = self._indexes(_sentence_starts(text))

    @classmethod
    def of(cls, text: str, tokenize: Tokenize) -> _Tokens:
        encoding = tokenize(text)
        mask = encoding.special_tokens_mask
        own = [span for span, special in zip(encoding.offsets, mask, strict=True) if not special]
        return cls(text, own, len(mask) - len(own))

    @cached_property
    def _lines(self) -> list[int]:
        return self._indexes([match.end() for match in _LINES.finditer(self.text)])

    @cached_property
    def _words(self) -> list[int]:
        text, starts = self.text, self._starts
        words = [i for i in self._cuts[:-1] if text[starts[i]].isspace() or text[starts[i] - 1].isspace()]
        return [*words, self.count]

    @cached_property
    def _cuts(self) -> list[int]:
        """Where one character's tokens end and another's begin."""
        starts, ends = self._starts, self._ends
        return [*(i for i in range(1, self.count) if ends[i - 1] <= starts[i] < ends[i]), self.count]

    def _indexes(self, places: list[int]) -> list[int]:
        """The first token behind each place, where a token begins there; and the end of the text."""
        found = []
        for place in places:
            index = bisect_right(self._ends, place)
            # A token may have the white space before it in itself.
            inside = index < self.count and self.text[self._starts[index] : place].strip()
            if 0 < index < self.count and not inside:
                self._places.setdefault(index, place)
                found.append(index)
        return [*sorted(set(found)), self.count]

    def chunk(self, head: str, begin: int, end: int) -> Chunk | None:
        """The piece from ``begin`` to ``end``; None for white space alone."""
        first, last = self._place(begin), self._place(end)
        piece = self.text[first:last]
        if not piece.strip():
            return None
        first += len(piece) - len(piece.lstrip())
        piece = piece.strip()
        return Chunk(head + piece, first, first + len(piece))

    def end(self, begin: int, done: int, limit: int) -> int:
        """Where a chunk from ``begin`` ends: behind ``done``, at ``limit`` at most if there is a place."""
        if limit >= self.count:
            return self.count
        half = max(done, (begin + limit) // 2)
        for places, least in ((self._sentences, done), (self._lines, done), (self._words, half)):
            if (found := _last(places, limit)) is not None and found > least:
                return found
        found = _last(self._cuts, limit)
        return found if found is not None and found > done else self.next_cut(done)

    def next_cut(self, done: int) -> int:
        """The first place behind ``done``."""
        return self._cuts[bisect_right(self._cuts, done)]

    def begin(self, begin: int, end: int, overlap: int, room: int) -> int:
        """Where the chunk behind the one from ``begin`` to ``end`` begins: before ``end``, by the overlap."""
        if end >= self.count or overlap == 0:
            return end
        least = max(end - overlap, begin + 1)
        following = self._sentences[bisect_right(self._sentences, end)]
        if following - end <= room:  # the next sentence is not cut for the sake of what is repeated
            least = max(least, following - room)
        whole = end in self._sentences[bisect_left(self._sentences, end) :][:1]
        for places in (self._sentences,) if whole else (self._sentences, self._words, self._cuts):
            if (found := places[bisect_left(places, least)]) < end:
                return found
        return end

    def _place(self, index: int) -> int:
        return self._places[index] if index in self._places else self._starts[index]


def _last(places: list[int], limit: int) -> int | None:
    """The last of the places up to the limit."""
    index = bisect_right(places, limit)
    return places[index - 1] if index else None


def _sentence_starts(text: str) -> list[int]:
    """Where sentences begin, but the first. Abbreviations before a small letter end none."""
    return [
        match.end()
        for match in _BORDERS.finditer(text)
        if match.end() < len(text) and not (match["spaced"] and text[match.end()].islower())
    ]


def _beginning(text: str, tokens: int, tokenize: Tokenize) -> str:
    """As much of a text as so many tokens hold."""
    found = _Tokens.of(text, tokenize)
    if found.count <= tokens:
        return text
    chunk = found.chunk("", 0, found.end(0, 0, tokens))
    return chunk.text if chunk is not None else ""
