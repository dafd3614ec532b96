"""Which documents of the corpus an index lacks, and which it has besides."""

from __future__ import annotations

from collections.abc import Collection as Collect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from opensearchpy.helpers import scan

from oskit.archive.tokenization import spread
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.passages import texts_of
from oskit.cluster.index.sparse_fields import value_at
from oskit.cluster.search.answers import complete_search
from oskit.data.values import clean_text
from oskit.errors import SearchError
from oskit.evaluation.live.index_facts import count_documents

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.data.collection import Collection
    from oskit.evaluation.live.index_facts import IndexFacts
    from oskit.evaluation.offline.metrics import Qrels

LISTED = 200
"""Ids of each kind that are listed; all are counted."""

COMPARED = 100
"""Relevant documents whose texts are compared."""

_BATCH = 1000
_LOOKED_THROUGH = 100_000
"""Documents of the index that are looked through for some that the corpus lacks."""


@dataclass(frozen=True)
class Presence:
    """How many documents of the corpus the index lacks, and of the index the corpus; the first ids of both.

    A second copy of an id, on another shard, is one that the corpus lacks.
    """

    missing: int = 0
    missing_ids: list[str] = field(default_factory=list)
    extra: int = 0
    extra_ids: list[str] = field(default_factory=list)


def look_for(client: OpenSearch, facts: IndexFacts, document_ids: Sequence[str]) -> Presence:
    """Look for every document of the corpus, on whichever shard it is.

    Raises:
        SearchError: The cluster refuses.
    """
    missing: list[str] = []
    copies, twice = 0, list[str]()
    for ids, total, hits in _looked_up(client, facts, document_ids):
        copies += total
        present: set[str] = set()
        for hit in hits:
            if hit in present:
                twice.append(hit)
            present.add(hit)
        missing += [name for name in ids if name not in present]
    extra = max(0, count_documents(client, facts.name) - copies) + len(twice)
    strangers = _strangers(client, facts, set(document_ids), extra - len(twice))
    return Presence(len(missing), missing[:LISTED], extra, [*twice, *strangers][:LISTED])


@dataclass(frozen=True)
class JudgedDocuments:
    """The documents that are relevant by judgements, as an index has them.

    Attributes:
        relevant: How many there are.
        missing: Those that the index lacks.
        compared: Of how many of the others the text was compared with that of the corpus.
        changed: Those of them that have another one.
    """

    relevant: int
    missing: list[str]
    compared: int = 0
    changed: Sequence[str] = ()

    @property
    def told(self) -> list[str]:
        """A line each on what is wrong with them."""
        lacks = (
            f"the index lacks {len(self.missing):,} of the {self.relevant:,} documents that are judged "
            f"relevant, such as {self.missing[0]!r}"
            if self.missing
            else ""
        )
        others = (
            f"of {self.compared:,} relevant documents that were compared {len(self.changed):,} have another "
            f"text in the index than in the corpus, such as {self.changed[0]!r}"
            if self.changed
            else ""
        )
        return [line for line in (lacks, others) if line]


def look_for_judged(
    client: OpenSearch, facts: IndexFacts, qrels: Qrels, collection: Collection
) -> JudgedDocuments:
    """Look for every document that is relevant for a query, and at the texts of some of them.

    Raises:
        SearchError: The cluster refuses.
        DataError: The corpus cannot be read.
    """
    relevant = {name: None for judged in qrels.values() for name, grade in judged.items() if grade > 0}
    found = {hit for _, _, hits in _looked_up(client, facts, list(relevant)) for hit in hits}
    there = sorted(found)
    some = {there[place] for place in spread(len(there), min(COMPARED, facts.max_hits))}
    compared, changed = _compared(client, facts, some, collection)
    missing = [name for name in relevant if name not in found]
    return JudgedDocuments(len(relevant), missing, compared, changed)


def _compared(
    client: OpenSearch, facts: IndexFacts, ids: Collect[str], collection: Collection
) -> tuple[int, list[str]]:
    """Of how many of these documents both texts are known, and which of them differ."""
    fields = [*texts_of(facts.info)[1], *filter(None, [facts.info.passage_field])]
    body = {"size": len(ids), "_source": fields, "query": {"ids": {"values": list(ids)}}}
    hits = complete_search(client, facts.name, body, search_pipeline="_none")["hits"]["hits"] if ids else []
    stored: dict[str, list[str]] = {}
    for hit in hits:
        values = (value_at(hit.get("_source") or {}, name) for name in fields)
        if texts := [_plain(value) for value in values if isinstance(value, str)]:
            stored[hit["_id"]] = texts
    due = (document for document in collection.documents() if document.id in stored)
    compared = list(islice(due, len(stored)))
    return len(compared), [
        document.id
        for document in compared
        if not any(_plain(document.text) in text for text in stored[document.id])
    ]


def _plain(text: str) -> str:
    return " ".join(clean_text(text).split())


def _looked_up(
    client: OpenSearch, facts: IndexFacts, document_ids: Sequence[str]
) -> Iterator[tuple[Sequence[str], int, list[str]]]:
    """Some ids at a time: how many documents have them, and the ids of those."""
    size = min(_BATCH, facts.max_hits)
    for start in range(0, len(document_ids), size):
        ids = document_ids[start : start + size]
        # Not by _mget: that looks on one shard only, where a routing may have put none of them.
        body = {"size": size, "_source": False, "track_total_hits": True, "query": {"ids": {"values": ids}}}
        found = complete_search(client, facts.name, body, search_pipeline="_none")["hits"]
        yield ids, found["total"]["value"], [hit["_id"] for hit in found["hits"]]


def _strangers(client: OpenSearch, facts: IndexFacts, known: set[str], count: int) -> list[str]:
    if not count:
        return []
    size = min(_BATCH, facts.max_hits)
    with cluster_errors(f"read the index {facts.name!r}", SearchError):
        hits = scan(client, index=facts.name, query={"_source": False}, size=size)
        looked = islice(hits, _LOOKED_THROUGH)
        strangers = (hit["_id"] for hit in looked if hit["_id"] not in known)
        found = list(islice(strangers, min(count, LISTED)))
        hits.close()
    return found
