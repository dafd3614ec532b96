"""What a name stands for on a cluster: an index, an alias, a data stream, or nothing.

Names are resolved once, here, and everything after that goes by the concrete index: an alias may move at any
moment, and neural-search resolves neither aliases nor patterns where a field is a ``sparse_vector``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opensearchpy.exceptions import NotFoundError

from oskit.cluster.client.failures import cluster_errors
from oskit.errors import IndexingError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch


_NO_TEXT = re.compile(r"[\ud800-\udfff]")
"""What a command line has of bytes that are no UTF-8."""

NAME_ONE = "Name the index itself"
"""What to do about an alias of several indexes."""


@dataclass(frozen=True)
class Target:
    """The one index that a name stands for, or the indexes of a data stream.

    Attributes:
        asked: The name, as somebody gave it.
        index: The concrete index. Of a data stream that is read all of them, with commas between; of one that
            is written the last one, which takes the documents that are sent to the stream.
        filter: What an alias keeps of the index; None if everything.
        routing: What an alias searches of the index: the shards of these routing values; None for all.
        parts: The indexes of a data stream, the oldest first; empty where it is none.
        timestamp: The field with the time that each document of a data stream needs; known to who writes.
        lacks: Those of the parts that are not searched, since they have no vectors.
    """

    asked: str
    index: str
    filter: dict[str, Any] | None = None
    routing: str | None = None
    parts: tuple[str, ...] = ()
    timestamp: str | None = None
    lacks: tuple[str, ...] = ()

    @property
    def written(self) -> str:
        """What documents are sent to: the index, or the data stream."""
        return self.asked if self.parts else self.index

    @property
    def is_alias(self) -> bool:
        """Whether the name is not the index's own."""
        return self.asked != self.index

    def __str__(self) -> str:
        """For messages: ``'live' (the alias of 'articles-2')``."""
        if self.parts:
            return f"{self.asked!r} (a data stream)"
        return f"{self.asked!r} (the alias of {self.index!r})" if self.is_alias else repr(self.index)


def check_index_name(name: str) -> None:
    """Refuse names that OpenSearch refuses, or that would mean several indexes.

    Raises:
        UsageError: The name cannot be an index's.
    """
    bad = sorted({letter for letter in name if letter in '\\/*?"<>|,#: ' or letter.isupper()})
    bad = _NO_TEXT.findall(name) or bad
    if not name or bad or name[0] in "-_+." or len(name.encode()) > 255:
        what = f"it holds {bad[0]!r}" if bad else "it is empty, too long, or begins with one of -_+."
        raise UsageError(
            f"{name!r} cannot be an index's name: {what}", hint="Use lower case, digits, - and _"
        )


def resolve(client: OpenSearch, name: str, *, writing: bool = False) -> Target | None:
    """The index behind a name; None if there is none.

    Args:
        name: Of an index, or of an alias. A name that means several indexes is no name.
        writing: Documents are to be written: of several indexes behind an alias its write index is meant.

    Raises:
        UsageError: The name cannot be an index's.
        IndexingError: It stands for several indexes that are no data stream, or the cluster refuses.
    """
    if (
        not name
        or name[0] in "-_+"
        or name in (".", "..")
        or _NO_TEXT.search(name)
        or len(name.encode()) > 255
        or any(letter in name for letter in '*?,<>:#/\\"| ')
    ):
        check_index_name(name)
    with cluster_errors(f"look up {name!r}", IndexingError):
        try:
            answer: dict[str, Any] = client.indices.get_alias(index=name)
        except NotFoundError:
            # What takes mappings and has no aliases of its own is a data stream.
            parts = client.indices.get_mapping(index=name, params={"ignore_unavailable": "true"})
            if not parts:
                return None
            timestamp = None
            if writing:
                (found,) = client.indices.get_data_stream(name=name)["data_streams"]
                timestamp = found["timestamp_field"]["name"]
            names = tuple(sorted(parts))  # their names end with six digits that count them
            return Target(name, names[-1] if writing else ",".join(names), parts=names, timestamp=timestamp)
    if name in answer:
        return Target(name, name)
    behind: dict[str, dict[str, Any]] = {
        index: found["aliases"][name] for index, found in answer.items() if name in found["aliases"]
    }
    if not behind:
        return None
    if writing:
        chosen = [index for index, alias in behind.items() if alias.get("is_write_index")]
        if not chosen and len(behind) == 1:
            chosen = [index for index, alias in behind.items() if alias.get("is_write_index") is not False]
        why = "none of which takes writes (is_write_index)"
    else:
        chosen, why = list(behind), "which is more than one"
    if len(chosen) != 1:
        listed = ", ".join(sorted(behind)[:5]) + (", …" if len(behind) > 5 else "")
        count = f"{len(behind)} indexes" if len(behind) > 1 else "an index"
        raise IndexingError(f"{name!r} is an alias of {count}, {why}: {listed}", hint=NAME_ONE)
    alias = behind[chosen[0]]
    if not writing:
        return Target(name, chosen[0], alias.get("filter"), alias.get("search_routing"))
    if "index_routing" in alias:
        raise IndexingError(
            f"the alias {name!r} sends documents to the shard of the routing {alias['index_routing']!r}, and "
            "those that go by their ids alone would be missed there",
            hint=f"Name the index itself: {chosen[0]}",
        )
    return Target(name, chosen[0])


def one_index(target: Target) -> Target:
    """The same, where only a single index will do.

    Raises:
        IndexingError: It is a data stream of several.
    """
    if len(target.parts) > 1:
        listed = ", ".join(target.parts[:5]) + (", …" if len(target.parts) > 5 else "")
        raise IndexingError(
            f"{target.asked!r} is a data stream of {len(target.parts)} indexes: {listed}", hint=NAME_ONE
        )
    return target
