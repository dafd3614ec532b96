"""How much of a text training reads, and how much the trained encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from oskit.archive.truncation import Truncation
from oskit.encoder.loader.tokenizer_files import open_here
from oskit.training.recipe.recipe import Recipe

if TYPE_CHECKING:
    from tokenizers import Encoding

_BLOCK = 1000


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens, special tokens included."""

    max_length: int  # what the encoder reads of a text, once it is trained
    shortened_from: int | None  # what it read before `encoder.max_length` shortened it; None where it did not
    trained: int  # what training reads of a text
    truncation: Truncation | None = None  # what training cuts off its texts; None before they were tokenized
    longest: int | None = None  # of the texts, as far as training reads them; None as above

    @classmethod
    def of(cls, length: int, own: int, recipe: Recipe) -> Lengths:
        """Of an encoder that reads ``length`` tokens of a text, and read ``own``; nothing is counted yet."""
        trained = min(recipe.schedule.max_length or length, length)
        return cls(length, own if length < own else None, trained)

    @property
    def warning(self) -> str | None:
        """What must not be overlooked: the encoder becomes a shorter one for good."""
        if self.shortened_from is None:
            return None
        own = self.shortened_from
        return (
            f"encoder.max_length shortens the encoder from {own} to {self.max_length} tokens: no more of a "
            f"text will be read, here and on the cluster; schedule.max_length shortens training alone"
        )

    @property
    def lines(self) -> list[str]:
        """What people are told when it is done."""
        short = f"SHORTENED from {self.shortened_from} by encoder.max_length"
        before = f", {short}" if self.shortened_from is not None else ""
        alone = f"; training {self.trained}" if self.trained < self.max_length else ""
        lines = [f"the encoder reads {self.max_length} tokens of a text{before}{alone}"]
        if self.truncation is not None and self.truncation.cut:
            lines.append(self.truncation.told("training texts", "trained on"))
        return lines

    def with_texts(
        self, texts: Iterable[str], tokenize: Callable[[list[str]], Iterable[Encoding]]
    ) -> Lengths:
        """The same with what training cuts off these texts, which are tokenized to as much as it reads."""
        found, longest, stream = Truncation(self.trained), 0, iter(texts)
        while block := list(islice(stream, _BLOCK)):
            encodings = list(tokenize(block))
            found = found.with_texts(encodings)
            longest = max(longest, *(len(encoding.ids) for encoding in encodings))
        return replace(self, truncation=found, longest=longest) if found.texts else self

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        cut = None if self.truncation is None else self.truncation.to_dict()
        return {**vars(self), "truncation": cut}


def planned_lengths(recipe: Recipe, texts: Iterable[str]) -> Lengths | None:
    """What training would come to, without loading the encoder; None where it is not on this machine.

    Args:
        recipe: What it says of the encoder, and of training.
        texts: What would be learned from.
    """
    found = open_here(recipe.encoder.name)
    if found is None:
        return None
    vocabulary, own = found
    lengths = Lengths.of(min(recipe.encoder.max_length or own, own), own, recipe)
    tokenizer = vocabulary.tokenizer()
    tokenizer.enable_truncation(lengths.trained)
    return lengths.with_texts(texts, tokenizer.encode_batch_fast)
