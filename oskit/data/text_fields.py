"""The fields of a record whose texts are searched together, as in ``title^2,body``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from oskit.errors import UsageError

_BOOSTED = re.compile(r"(?P<name>.+)\^(?P<boost>\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class TextFields:
    """Fields in the order in which their texts are joined to what is encoded.

    Args:
        names: One or several.
        boosts: How much each counts for BM25; to what is encoded they mean nothing.
    """

    names: tuple[str, ...]
    boosts: Mapping[str, str]

    @classmethod
    def parse(cls, given: str) -> TextFields:
        """Read ``title^2,body``.

        Raises:
            UsageError: A name is missing or there twice, or a boost has no effect.
        """
        parts = [part.strip() for part in given.split(",")]
        found = [match if (match := _BOOSTED.fullmatch(part)) else None for part in parts]
        names = tuple(match["name"] if match else part for part, match in zip(parts, found, strict=True))
        if "" in names or len(set(names)) < len(names):
            raise UsageError(
                f"--text-field {given!r} leaves a name out or names a field twice",
                hint="Write it as in title^2,body",
            )
        if len(names) > 1 and (wrong := [name for name in names if "^" in name]):
            raise UsageError(
                f"--text-field {given!r} boosts by what is no number, in {wrong[0]!r}",
                hint="Write it as in title^2,body",
            )
        boosts = {match["name"]: match["boost"] for match in found if match}
        if len(names) == 1 and boosts:
            raise UsageError(
                f"the boost in --text-field {given!r} has no effect: there is no other field to outweigh",
                hint=f"Write --text-field {names[0]}",
            )
        if zeros := [name for name, boost in boosts.items() if not float(boost)]:
            raise UsageError(f"--text-field gives {zeros[0]!r} the boost 0", hint="Leave the field out")
        return cls(names, boosts)

    @property
    def for_bm25(self) -> str | None:
        """The fields and boosts that BM25 searches, as they are recorded; None for a single field."""
        if len(self.names) == 1:
            return None
        return ",".join(f"{name}^{self.boosts[name]}" if name in self.boosts else name for name in self.names)
