"""Answers for the page: hits with what matched, what the search took, and how good it was."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from oskit.cluster.client.failures import cluster_errors
from oskit.errors import OskitError, SearchError, UsageError
from oskit.evaluation.offline.exact_scores import themselves
from oskit.evaluation.offline.metrics import MAIN_MEASURE, judged_queries, quality

if TYPE_CHECKING:
    from oskit.cluster.search.result import Hit, SearchResult
    from oskit.cluster.search.search import Searcher
    from oskit.data.collection import Collection
    from oskit.playground.offer import Offer, Way

LETTERS = 3000
"""Of a text that the page gets; how long it is, is told."""

FIELDS, FIELD_LETTERS = 12, 120

TOKENS = 500
"""Token weights of a text that the page gets, the heaviest; how many there are, is told."""

_TERM = re.compile(r"weight\((?:Synonym\()?[^:()]+:(.+?)\)? in \d+\)")

Tokens = list[tuple[str, float, float, float]]
"""Token, weight in the query, weight in the document, product."""


class Judged:
    """The judged queries of a collection, in its order."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._ids = judged_queries(collection.qrels)
        if not self._ids:
            raise UsageError(
                f"no query of {collection.name} has a relevant document, so there is none to ask"
            )

    def __len__(self) -> int:
        return len(self._ids)

    def to_dict(self, number: int) -> dict[str, Any]:
        """A query by its number, from 0.

        Raises:
            UsageError: There are fewer.
        """
        if not 0 <= number < len(self._ids):
            raise UsageError(
                f"there are {len(self._ids):,} judged queries, and none is number {number + 1:,}"
            )
        query = self._ids[number]
        relevant = sum(grade > 0 for grade in self._collection.qrels[query].values())
        text = self._collection.queries[query]
        return {"number": number, "id": query, "text": text, "relevant": relevant}

    def grades(self, query: str) -> Mapping[str, int]:
        """Relevance of the documents that were judged for a query.

        Raises:
            UsageError: It is not one of the collection's.
        """
        if query not in self._collection.qrels:
            raise UsageError(f"the collection has no judged query {query!r}")
        return self._collection.qrels[query]

    def ndcg(self, query: str, hits: list[Hit]) -> float:
        """nDCG@10 of a ranking."""
        run = {query: {hit.id: hit.score for hit in hits}}
        qrels = {query: self.grades(query)}
        asked = themselves(run, self._collection, qrels)
        return quality(run, qrels, (MAIN_MEASURE,), asked=asked).mean[MAIN_MEASURE]


def answer(
    offer: Offer, judged: Judged | None, query: str, way: Way, size: int, of: str | None
) -> dict[str, Any]:
    """What a way finds for a query.

    The search is sent as the body says and timed, and then once more to explain it: vectors of documents and
    weights of the query are no part of a search, so neither counts in its time.

    Args:
        of: Id of the judged query that this is.

    Raises:
        UsageError: Something is not offered, or does not go together.
        ClusterError: The cluster refuses, or is not there.
    """
    searcher, wanted = offer.searcher(way), {**way.wanted(), "size": size}
    request, why_not = _request(searcher, query, wanted)
    start = time.perf_counter()
    plain = searcher.search(query, **wanted)
    whole = time.perf_counter() - start
    by_words = way.by == "bm25"
    told = plain if by_words else searcher.search(query, explain=True, **wanted)
    terms = bm25_terms(offer, request) if by_words and plain.hits else {}
    grades = judged.grades(of) if judged is not None and of is not None else {}
    hits = [_hit(hit, told, terms.get(hit.id), grades.get(hit.id)) for hit in told.hits]
    result = {
        "hits": hits,
        "total": plain.total,
        "at_least": plain.total_relation == "gte",
        "took_ms": plain.took_ms,
        "whole_ms": round(whole * 1000, 1),
        "warning": told.warning,
        "note": "" if by_words else offer.note(way.encoder),
        "pipeline": plain.search_pipeline,
        "request": request,
        "no_request": why_not,
        "query_weights": _named(told.query_weights or {}, told.tokens),
    }
    if judged is not None and of is not None:
        ndcg, found = judged.ndcg(of, told.hits), [hit["grade"] or 0 for hit in hits[:10]]
        result["judged"] = {"ndcg": ndcg, "relevant": sum(grade > 0 for grade in found)}
    return result


def _request(searcher: Searcher, query: str, wanted: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """What the search sends; or why nothing is sent, which the search itself judges."""
    try:
        request = searcher.request(query, **wanted)
    except UsageError as error:
        return None, str(error)
    del request["warning"]
    return request, ""


def _hit(hit: Hit, result: SearchResult, terms: Tokens | None, grade: int | None) -> dict[str, Any]:
    matched = terms or [
        (result.tokens.get(key, key), match.query, match.document, match.product)
        for key, match in hit.matched.items()
    ]
    text = hit.passage.text if hit.passage is not None else hit.text
    return {
        "id": hit.id,
        "score": hit.score,
        "title": hit.title[:LETTERS],
        "text": text[:LETTERS],
        "letters": len(text),
        "start": hit.passage.start if hit.passage is not None else None,
        "passage": hit.passage is not None,
        "fields": list(_fields(hit)),
        "matched": matched,
        "sum": sum(product for *_, product in matched),
        "sides": {
            name: {"rank": side.rank, "score": side.score, "normalized": side.normalized, "share": side.share}
            for name, side in hit.sides.items()
        },
        "grade": grade,
    }


def _fields(hit: Hit) -> Iterator[tuple[str, str]]:
    """The document's other fields, short."""
    shown = 0
    for name, value in hit.source.items():
        if value in (hit.title, hit.text) or shown == FIELDS:
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        yield name, text if len(text) <= FIELD_LETTERS else f"{text[:FIELD_LETTERS]}…"
        shown += 1


def _named(weights: Mapping[str, float], tokens: Mapping[str, str]) -> dict[str, Any]:
    """Token weights for the page: the heaviest, and how many there are."""
    heaviest = sorted(weights.items(), key=lambda item: -item[1])
    shown = [(tokens.get(key, key), weight) for key, weight in heaviest[:TOKENS]]
    return {"tokens": shown, "count": len(heaviest)}


def text_weights(offer: Offer, text: str, kind: Any, index: str, encoder: str) -> dict[str, Any]:
    """Token weights of a text, for the page.

    Raises:
        OskitError: As :meth:`Offer.weights` does.
    """
    start = time.perf_counter()
    found = _named(offer.weights(text, kind, index, encoder), {})
    return {**found, "note": offer.note(encoder), "whole_ms": round((time.perf_counter() - start) * 1000, 1)}


def bm25_terms(offer: Offer, request: Mapping[str, Any] | None) -> dict[str, Tokens]:
    """The words of each hit that matched by BM25: idf (with boosts) x saturated frequency, by Lucene.

    Raises:
        SearchError: The cluster refuses.
    """
    if request is None:
        return {}
    body, path = {**request["body"], "explain": True, "_source": False}, urlsplit(request["path"])
    with cluster_errors("explain the search", SearchError):
        found = offer.client.transport.perform_request(
            request["method"], path.path, params=dict(parse_qsl(path.query)), body=body
        )
    return {hit["_id"]: _terms(hit.get("_explanation") or {}) for hit in found["hits"]["hits"]}


def _terms(explanation: Mapping[str, Any]) -> Tokens:
    found: dict[str, list[float]] = {}
    for term, product, parts in _weights(explanation):
        frequency = parts.get("tf", 1.0)
        query = product / frequency if frequency else 0.0
        found.setdefault(term, [query, frequency, 0.0])[2] += product
    tokens = [(term, query, frequency, product) for term, (query, frequency, product) in found.items()]
    return sorted(tokens, key=lambda token: -token[3])


def _weights(node: Mapping[str, Any]) -> Iterator[tuple[str, float, dict[str, float]]]:
    """Each term that was scored: its part of the score, and the factors of that."""
    if (term := _TERM.match(node["description"])) is not None:
        factors = {
            part["description"].partition(",")[0]: float(part["value"])
            for score in node["details"]
            for part in score["details"]
        }
        yield term.group(1), float(node["value"]), factors
        return
    for part in node.get("details", ()):
        yield from _weights(part)


def error_told(error: Exception) -> dict[str, str]:
    """An error in one line, and what to do."""
    if isinstance(error, OskitError):
        return {"error": error.message, "hint": error.hint or ""}
    return {"error": f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}", "hint": ""}
