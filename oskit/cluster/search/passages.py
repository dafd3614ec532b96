"""Documents of many passages: which of them matched best, and how deep to look for enough documents.

The score of such a document is that of its best passage (MaxP: Dai and Callan 2019, "Deeper Text
Understanding for IR with Contextual Neural Language Modeling").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.mapping import approximate_from
from oskit.cluster.index.sparse_fields import vectors_of
from oskit.cluster.search.answers import complete_search
from oskit.cluster.search.clauses import ABOVE_NOTHING
from oskit.cluster.search.scope import EXACT_UP_TO
from oskit.errors import SearchError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.mapping import IndexInfo

DEEPER = 8
"""How many times as many passages are looked at, where the best were of too few documents."""


@dataclass(frozen=True)
class Passage:
    """The part of a document that matched best.

    Attributes:
        text: Its text, without the document's title, which was encoded with it.
        start: Where it begins in the document's text, in characters; None in an index that does not tell.
    """

    text: str
    start: int | None = None


def best_passage(info: IndexInfo, *, with_vector: bool) -> dict[str, Any] | None:
    """``inner_hits`` of a nested clause that give the best passage of each hit; None for one vector each.

    Where oskit did not make the index, nothing is asked of ``_source``: if the objects hold but the vector,
    and that is left out of ``_source``, OpenSearch 3.6 fails. The place in the document is told all the same.
    """
    if info.nested is None:
        return None
    if info.chunking is None:
        return {"size": 1, "_source": False}
    names = ["text", "start", *([info.embedding_name] if with_vector else [])]
    return {"size": 1, "_source": [f"{info.nested}.{name}" for name in names]}


def read_passage(
    hit: Mapping[str, Any], info: IndexInfo, title: str, whole: object
) -> tuple[Passage | None, list[dict[str, float]]]:
    """The best passage of a hit, and its vector, as far as they were asked for.

    Args:
        title: The document's, which stands before each passage, maybe but its beginning.
        whole: The document's text, if it is known.
    """
    inner = ((hit.get("inner_hits") or {}).get(info.nested) or {}).get("hits", {}).get("hits")
    if not inner:
        return None, []
    found = inner[0].get("_source")
    if found is None:  # by its place
        there, place = (hit.get("_source") or {}).get(str(info.nested)), inner[0]["_nested"]["offset"]
        found = there[place] if isinstance(there, list) and place < len(there) else {}
    text, start = found.get("text"), found.get("start")
    passage = None
    if isinstance(text, str):
        at = start if isinstance(start, int) else None
        passage = Passage(_without_title(text, title, whole, at), at)
    return passage, vectors_of(found, info.embedding_name)


def _without_title(text: str, title: str, whole: object, start: int | None) -> str:
    """What the document's text has of a passage; where that is unknown, what its title is not before."""
    if isinstance(whole, str) and start is not None:
        for behind in range(min(len(title) + 1, len(text)) + 1):
            if whole.startswith(text[behind:], start):
                return text[behind:]
    return text.removeprefix(f"{title.strip()} ")


@dataclass(frozen=True)
class PassageCount:
    """How many passages an index has.

    Attributes:
        documents: Of the index.
        passages: Nested objects of them all.
        approximate: Whether there may be a segment that is searched approximately.
    """

    documents: int
    passages: int
    approximate: bool = True

    @classmethod
    def of(cls, client: OpenSearch, info: IndexInfo, index: str | None = None) -> PassageCount | None:
        """Of an index that may be searched approximately; None where it does not matter.

        Args:
            index: What is searched, where that are several made alike.

        Raises:
            SearchError: The cluster refuses.
        """
        if info.nested is None or info.kind != "sparse_vector":
            return None
        body = {"size": 0, "track_total_hits": True, "aggs": {"passages": {"nested": {"path": info.nested}}}}
        answer = complete_search(client, index or info.name, body, search_pipeline="_none")
        documents = answer["hits"]["total"]["value"]
        passages = answer["aggregations"]["passages"]["doc_count"]
        with cluster_errors(f"read the index {info.name!r}", SearchError):
            mapping = client.indices.get_mapping(index=info.name)[info.name]["mappings"]
        threshold = approximate_from(mapping.get("properties") or {}, info.embedding_field)
        return cls(documents, passages, documents + passages >= threshold)

    def k(self, documents: int) -> int:
        """The ``k`` of an approximate search that shall find so many documents: it counts passages."""
        return documents * max(1, ceil(self.passages / max(1, self.documents)))

    def deepened(
        self,
        ask: Callable[[dict[str, Any]], dict[str, Any]],
        body: dict[str, Any],
        answer: dict[str, Any],
        wanted: int,
        *,
        is_tuned: bool,
    ) -> tuple[dict[str, Any], str | None]:
        """The answer, or that to a search that finds more, and what is to be told if hits may be missing.

        The best passages may all be of few documents, which a larger ``k`` helps; and whatever ``k`` is, an
        approximate search passes over what its clusters do not promise. A small index is then scored as a
        whole, which a filter that lets all through does.

        Args:
            wanted: Documents, as far as the index has so many.
            is_tuned: Whether somebody chose how widely is searched.
        """
        body = copy.deepcopy(body)
        methods = list(_methods(body)) if self.approximate else []
        if not methods or len(answer["hits"]["hits"]) >= wanted:
            return answer, None
        if self.passages <= EXACT_UP_TO and not is_tuned:
            for method in methods:
                method |= {"k": max(method["k"], self.passages), "filter": {"match_all": {}}}
            return ask({**body, "min_score": ABOVE_NOTHING}), None
        while any(method["k"] < self.passages for method in methods):
            for method in methods:
                method["k"] *= DEEPER
            answer = ask(body)
            if len(answer["hits"]["hits"]) >= wanted:
                return answer, None
        return answer, "searched approximately, hits may be missing: a larger heap_factor or top_n finds more"


def _methods(body: Any) -> Iterator[dict[str, Any]]:
    """Parameters with a ``k`` that no filter was the reason for, wherever in a request they stand."""
    if isinstance(body, list):
        for each in body:
            yield from _methods(each)
    elif isinstance(body, dict):
        for name, value in body.items():
            if name == "method_parameters" and "k" in value:
                yield from () if "filter" in value else (value,)
            else:
                yield from _methods(value)
