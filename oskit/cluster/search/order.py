"""The order of hits by their fields: ``year:desc``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oskit.cluster.search.filters import Fields, Learnt
from oskit.errors import UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

SCORE = "_score"


def ordered(
    client: OpenSearch, index: str, given: str | Sequence[str], learnt: Learnt | None = None
) -> list[dict[str, str]]:
    """What ``sort`` of a search takes, so that this index can answer it; empty without an order.

    Args:
        index: The concrete index.
        given: ``field``, ``field:asc`` or ``field:desc``, the first counts most; ``_score``: best first.
        learnt: As of :func:`oskit.cluster.search.filters.compiled`.

    Raises:
        UsageError: It cannot be read, or hits cannot be sorted by that field.
        SearchError: The cluster refuses.
    """
    keys = [_read(each) for each in ([given] if isinstance(given, str) else given)]
    if not keys:
        return []
    fields = Fields(client, index, [name for name, _ in keys if name != SCORE], " to sort by", learnt)
    return [{_sortable(fields, name): direction} for name, direction in keys]


def _read(text: str) -> tuple[str, str]:
    name, colon, direction = text.strip().rpartition(":")
    name, direction = (name, direction) if colon else (direction, "desc" if direction == SCORE else "asc")
    if not name or direction not in ("asc", "desc"):
        raise UsageError(f"hits cannot be sorted by {text!r}", hint="Write FIELD, FIELD:asc or FIELD:desc")
    return name, direction


def _sortable(fields: Fields, name: str) -> str:
    if name == SCORE:
        return name
    kind, exact = fields.type_of(name), fields.exact(name)
    if (nested := fields.nested(name)) is not None:
        raise UsageError(f"hits cannot be sorted by {name!r}, a field of the nested objects {nested!r}")
    if exact is None or name == "_id" or not fields.can_be_sorted(exact):
        raise UsageError(
            f"hits cannot be sorted by {name!r}, which is {kind}",
            hint="Sort by a number, a date or a keyword, or by _score",
        )
    return exact
