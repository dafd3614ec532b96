"""A share of the documents, for one of several machines: the same whatever the order of reading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from oskit.data.documents import Document, Refusal
from oskit.errors import UsageError


@dataclass
class Part:
    """One of several shares of the documents, chosen by a hash of their ids.

    Every record is in exactly one of them, and those with the same id are in the same. A record without an id
    goes by what was read.

    Args:
        number: Which, from 1.
        of: How many there are.

    Attributes:
        elsewhere: Records that :meth:`only` has left to the other parts so far.

    Raises:
        UsageError: There is no such part.
    """

    number: int
    of: int
    elsewhere: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError(f"there is no part {self.number} of {self.of}", hint="Count from 1: 1/4 to 4/4")

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``NUMBER/OF``, such as ``3/16``.

        Raises:
            UsageError: It reads otherwise, or there is no such part.
        """
        if not (found := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip(), re.ASCII)):
            raise UsageError(f"{text!r} is no part of the documents", hint="Write NUMBER/OF, such as 3/16")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, item: Document | Refusal) -> bool:
        """Whether a record belongs to this part."""
        name = item.id or (item.raw if isinstance(item, Refusal) else "")
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest) % self.of == self.number - 1

    def only(self, records: Iterable[Document | Refusal]) -> Iterator[Document | Refusal]:
        """Those of the records that belong to this part, in their order; the others are counted."""
        for item in records:
            if self.has(item):
                yield item
            else:
                self.elsewhere += 1
