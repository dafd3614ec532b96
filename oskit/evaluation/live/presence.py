"""Which documents of the corpus an index lacks, and which it has besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from opensearchpy.helpers import scan

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.search.answers import complete_search
from oskit.errors import SearchError
from oskit.evaluation.live.index_facts import count_documents

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.evaluation.live.index_facts import IndexFacts

LISTED = 200
"""Ids of each kind that are listed; all are counted."""

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
    copies, twice, size = 0, list[str](), min(_BATCH, facts.max_hits)
    for start in range(0, len(document_ids), size):
        ids = document_ids[start : start + size]
        # Not by _mget: that looks on one shard only, where a routing may have put none of them.
        body = {"size": size, "_source": False, "track_total_hits": True, "query": {"ids": {"values": ids}}}
        found = complete_search(client, facts.name, body, search_pipeline="_none")["hits"]
        copies += found["total"]["value"]
        present: set[str] = set()
        for hit in found["hits"]:
            if hit["_id"] in present:
                twice.append(hit["_id"])
            present.add(hit["_id"])
        missing += [name for name in ids if name not in present]
    extra = max(0, count_documents(client, facts.name) - copies) + len(twice)
    strangers = _strangers(client, facts, set(document_ids), extra - len(twice))
    return Presence(len(missing), missing[:LISTED], extra, [*twice, *strangers][:LISTED])


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
