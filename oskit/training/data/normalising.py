"""When two queries count as one: up to case, punctuation and white space."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from oskit.data.duplicates import digest_of

# Marks that tell apart what people ask about: C# and C, AT&T, 5%.
_TELLING = frozenset("#%&@")


class _Kept(dict[int, "int | str"]):
    """For ``str.translate``: letters, marks, numbers and telling signs; found out when one first comes."""

    def __missing__(self, code: int) -> int | str:
        letter = chr(code)
        kept = letter in _TELLING or unicodedata.category(letter)[0] not in "PZC"
        self[code] = found = code if kept else " "
        return found


_KEPT = _Kept()


def normalise(text: str, by: str = " ") -> str:
    """A text without what does not matter for asking the same: NFKC, case, punctuation, white space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return by.join(folded.translate(_KEPT).split()) or folded


def same_key(text: str) -> str:
    """What texts that are near-identical share: all but case, punctuation and white space, also within words
    (``e-mail``, ``What's``)."""
    return normalise(text, by="")


# Scripts that write no spaces between words; pairs of letters stand for words there.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+"
)


def words(text: str) -> frozenset[str]:
    """The distinct words of a normalised text; of a script without spaces, pairs of neighbouring letters."""
    found: set[str] = set(_UNSPACED.sub(" ", text).split())
    for match in _UNSPACED.finditer(text):
        run = match.group()
        found.update(run[i : i + 2] for i in range(max(1, len(run) - 1)))
    return frozenset(found)


def keys_of(texts: Iterable[str], salt: str = "") -> NDArray[np.uint64]:
    """A number for each text, as good as random."""
    return np.fromiter((key_of(salt, text) for text in texts), dtype=np.uint64)


def key_of(*texts: str) -> int:
    """64 bits of a digest of some texts: enough to tell those of any corpus apart."""
    return int.from_bytes(digest_of(*texts)[:8], "little")
