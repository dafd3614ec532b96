"""What of the texts was too long to be encoded: counted while they are tokenized, by what was cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass(frozen=True)
class Truncation:
    """Texts that an encoder tokenized, and what it could not read of them.

    Attributes:
        max_length: Tokens that it reads of a text, special tokens included.
        texts: How many were tokenized.
        cut: How many of them were longer.
        tokens: Of all texts in full, without special tokens.
        lost: How many of these tokens were cut off.
    """

    max_length: int
    texts: int = 0
    cut: int = 0
    tokens: int = 0
    lost: int = 0

    def with_texts(self, encodings: Iterable[Encoding]) -> Truncation:
        """The count with further texts, tokenized with truncation and without stride, padded or not."""
        texts = cut = tokens = lost = 0
        for encoding in encodings:
            beyond = sum(map(_own_tokens, encoding.overflowing))
            texts, cut = texts + 1, cut + (beyond > 0)
            tokens, lost = tokens + _own_tokens(encoding) + beyond, lost + beyond
        return self + Truncation(self.max_length, texts, cut, tokens, lost)

    def __add__(self, other: Truncation) -> Truncation:
        counts = zip(astuple(self)[1:], astuple(other)[1:], strict=True)
        return Truncation(self.max_length, *map(sum, counts))

    def __sub__(self, earlier: Truncation) -> Truncation:
        return self + Truncation(0, -earlier.texts, -earlier.cut, -earlier.tokens, -earlier.lost)

    @property
    def lost_share(self) -> float:
        """Share of all tokens that was cut off, 0 to 1."""
        return self.lost / self.tokens if self.tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "lost_share": round(self.lost_share, 4)}

    def told(self, texts: str, done: str = "encoded") -> str:
        """One line about what was cut off; ``texts`` says of what, such as ``documents``."""
        share = f"{self.lost_share:.0%}" if self.lost_share >= 0.01 else "less than 1%"
        verb = "is" if self.cut == 1 else "are"
        return (
            f"{self.cut:,} of {self.texts:,} {texts} {verb} longer than {self.max_length} tokens: "
            f"the rest is not {done} ({share} of all tokens)"
        )

    @property
    def advice(self) -> str:
        """What can be done about it, by an option of ``oskit ingest`` and ``oskit evaluate``."""
        tokens = self.max_length * 3 // 4
        return f"--chunk tokens:{tokens},overlap:{tokens // 6} cuts them into chunks, so that all is read"


def _own_tokens(encoding: Encoding) -> int:
    """Tokens of the text itself: neither the special ones around it nor padding."""
    return encoding.special_tokens_mask.count(0)


def truncation_from_now(encoder: object) -> Callable[[], Truncation | None]:
    """What ``encoder`` tokenizes from this call on, whenever the result is called.

    It gives None where that is not known: the encoder does not count (``TextEncoder`` does not demand it),
    or was asked for nothing.
    """
    before = _reading(encoder)

    def counted() -> Truncation | None:
        now = _reading(encoder)
        found = now - before if now is not None and before is not None else None
        return found if found is not None and found.texts else None

    return counted


def _reading(encoder: object) -> Truncation | None:
    found = getattr(encoder, "truncation", None)
    return found if isinstance(found, Truncation) else None
