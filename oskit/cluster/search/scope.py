"""Which documents a search is for, by its filter and by its alias, as an approximate search can keep to it.

An approximate search (``sparse_vector``) drops what a filter hides after it has taken the best ``k``, unless
it knows the filter (``method_parameters.filter``) and ``k`` is as large as what that lets through: then it
scores exactly that. Two things about such a filter, both seen on OpenSearch 3.6:

* It is never rewritten, so that ``terms`` on keywords, prefixes and all else that Lucene first makes a set of
  terms of fail the search ("does not implement createWeight"); :func:`plain` says them in other words.
* Within ``nested`` it sees the nested objects, which have no field of their document but ``_seq_no``.

What neither helps with, and is not too much, is named by its sequence numbers (of which an update gives a
document another: one that is written in the middle of a search may be missing from it, once).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.search.answers import complete_search
from oskit.cluster.search.filters import TEXT, Fields, Given, compiled, fields_in
from oskit.errors import SearchError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.search.clauses import Clause
    from oskit.cluster.search.place import Place

EXACT_UP_TO = 10_000
"""Documents that a filter lets through, up to which an approximate search scores them all in any case."""

OVERSAMPLED = 10
"""How many times the hits wanted the best ``k`` hold, where only a filter's share of them is kept."""

MAX_TERMS = 500
"""Values that are put as so many queries, of which Lucene takes 1,024."""


@dataclass(frozen=True)
class _Inside:
    """A filter for within an approximate search, and how many vectors it lets through at most."""

    clause: Clause
    vectors: int


class Scope:
    """The documents that searches of one place are for; looked up once for all of them.

    Args:
        client: Asked as far as the way of searching needs it.
        place: Where is searched.
        given: Filters of the search, if any.

    Raises:
        UsageError: A filter cannot be read, or cannot be answered by this index.
        SearchError: The cluster refuses.
    """

    def __init__(self, client: OpenSearch, place: Place, given: Given | Sequence[Given] | None) -> None:
        self._client, self._place = client, place
        own = compiled(client, place.target.index, given, place.learnt)
        self.told = own.told if own else None
        self._types = dict(own.types) if own else {}
        clauses = [each for each in (own and own.clause, place.target.filter) if each]
        self.clause: Clause | None = clauses[0] if clauses else None
        if len(clauses) > 1:
            self.clause = {"bool": {"filter": clauses}}

    def method(
        self, reach: int, given: Mapping[str, Any], *, sorts: bool = False
    ) -> tuple[dict[str, Any], str | None]:
        """Parameters of an approximate search, and what is to be told if hits may be missing.

        Args:
            reach: Hits that are wanted.
            given: Parameters that somebody chose; a ``k`` may be raised.
            sorts: Whether another order than that of the scores is wanted, so that the best do not suffice.
        """
        reach = max(reach, EXACT_UP_TO) if sorts else reach
        passages = self._place.passages
        k = int(given.get("k") or (passages.k(reach) if passages else reach))
        if self.clause is None:
            told = f"sorted are the best {k:,} of each segment that is searched approximately, not all hits"
            return {**given, "k": k}, told if sorts and self._documents > k else None
        inside, some = self._inside, max(k, EXACT_UP_TO)
        if inside is None or inside.vectors > some:
            share = self._matching / max(self._documents, 1)
            some = max(some, ceil(OVERSAMPLED * k / share))
        if inside is not None and inside.vectors <= some:
            return {**given, "k": max(k, inside.vectors), "filter": inside.clause}, None
        told = (
            f"the filter lets {self._matching:,} documents through, and was applied to the best {some:,}: of "
            "a segment that is searched approximately hits may be missing"
        )
        return {**given, "k": some}, told

    @cached_property
    def _matching(self) -> int:
        return self._count(self.clause)

    @cached_property
    def _documents(self) -> int:
        return self._count(None)

    def _count(self, clause: Clause | None) -> int:
        target = self._place.target
        with cluster_errors(f"search the index {target.asked!r}", SearchError):
            answer = self._client.count(index=target.index, body={"query": clause} if clause else None)
        return int(answer["count"])

    @property
    def _countable(self) -> int:
        return min(EXACT_UP_TO, self._place.max_hits)

    @cached_property
    def _inside(self) -> _Inside | None:
        """The filter for within; None if there is no way to say it."""
        if self.clause is None:
            return None
        index, nested = self._place.target.index, self._place.info.nested
        if not nested:
            if unknown := sorted(set(fields_in(self.clause)) - set(self._types)):  # an alias's
                self._types |= Fields(self._client, index, unknown, learnt=self._place.learnt).types
            if (said := plain(self.clause, self._types)) is not None:
                return _Inside(said, self._matching)
        return self._by_number(nested) if self._matching <= self._countable else None

    def _by_number(self, nested: str | None) -> _Inside:
        """By sequence numbers: those of other shards may be among them, and are filtered out afterwards."""
        found = self._search({"query": self.clause, "size": self._countable, "sort": ["_seq_no"]})
        numbers = sorted({int(hit["sort"][0]) for hit in found["hits"]["hits"]})
        clause: Clause = {"terms": {"_seq_no": numbers}} if numbers else {"match_none": {}}
        if not nested or not numbers:
            return _Inside(clause, len(numbers))
        objects = {"objects": {"nested": {"path": nested}}}
        counted = self._search({"query": clause, "size": 0, "aggs": objects})
        return _Inside(clause, int(counted["aggregations"]["objects"]["doc_count"]))

    def _search(self, body: dict[str, Any]) -> dict[str, Any]:
        index = self._place.target.index
        return complete_search(self._client, index, {"_source": False, **body}, search_pipeline="_none")


_REWRITTEN = (*TEXT, "keyword", "wildcard", "flat_object", "_id")
"""Types whose ranges Lucene rewrites."""


def plain(clause: Clause, types: Mapping[str, str]) -> Clause | None:
    """A filter by queries that need no rewriting alone; None if it cannot be said by them.

    Args:
        clause: A query.
        types: Of the fields in it, as far as there are such fields.
    """
    if len(clause) != 1:
        return None
    ((name, body),) = clause.items()
    if name in ("match_all", "match_none"):
        return clause
    if not isinstance(body, dict):
        return None
    if name == "bool":
        return _plain_bool(body, types)
    if name == "constant_score":
        return plain(body.get("filter") or {}, types)
    if name == "exists":
        return clause if types.get(str(body.get("field"))) not in ("flat_object", "_id") else None
    asked = {field: what for field, what in body.items() if field not in ("boost", "_name")}
    if len(asked) != 1:
        return None
    ((field, what),) = asked.items()
    if types.get(field) == "_id":
        return None
    if name == "term":
        return None if isinstance(what, dict) and what.get("case_insensitive") else clause
    if name == "terms" and isinstance(what, list) and len(what) <= MAX_TERMS and len(asked) == len(body):
        if not what:
            return {"match_none": {}}
        return {"bool": {"should": [{"term": {field: each}} for each in what], "minimum_should_match": 1}}
    if name == "range" and types.get(field) not in _REWRITTEN:
        return clause
    if name == "match" and (not isinstance(what, dict) or set(what) <= {"query", "operator"}):
        return clause
    return None


def _plain_bool(body: Mapping[str, Any], types: Mapping[str, str]) -> Clause | None:
    made: dict[str, Any] = {}
    for name, clauses in body.items():
        if name not in ("must", "should", "filter", "must_not"):
            made[name] = clauses
            continue
        said = [plain(each, types) for each in (clauses if isinstance(clauses, list) else [clauses])]
        if None in said:
            return None
        made[name] = said
    return {"bool": made}
