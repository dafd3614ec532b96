"""Filters, pages and orders on a real index of each kind, beside scores and conditions computed here.

The vectors are random, so that nothing of them follows from the fields that are filtered by.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opensearchpy import OpenSearch

from oskit.cluster.search.search import Searcher, search
from oskit.errors import UsageError

pytestmark = pytest.mark.integration

ROUNDING = 2**-8
"""Weights are stored with 9 significant bits: at most this part of a score may be missing."""

STEP = 0.1
"""Weights of an approximate search are in 255 steps, up to 3 of documents and up to 16 of queries."""

DOCUMENTS = 400
QUERY = {"3": 1.5, "7": 2.0, "11": 0.75}
LANGS = ("de", "en", "nl")

KINDS: dict[str, dict[str, Any]] = {
    "rank_features": {"type": "rank_features"},
    "sparse_vector": {"type": "sparse_vector", "method": {"name": "seismic", "parameters": {}}},
    "approximate": {
        "type": "sparse_vector",
        "method": {"name": "seismic", "parameters": {"approximate_threshold": 50}},
    },
}
FLAT = tuple(KINDS)
NESTED = tuple(f"nested {kind}" for kind in KINDS)
PROPERTIES: dict[str, Any] = {
    "lang": {"type": "keyword"},
    "year": {"type": "integer"},
    "day": {"type": "date"},
    "open": {"type": "boolean"},
    "title": {"type": "text", "fields": {"keyword": {"type": "keyword"}}},
    "text": {"type": "text"},
    "meta": {"properties": {"page": {"type": "integer"}}},
    "tags": {"type": "flat_object"},
}


def collection() -> dict[str, dict[str, Any]]:
    """Documents by id; ``vectors`` are the chunks of each, the first of them its vector where it has one."""
    chance = random.Random(3)
    made = {}
    for number in range(DOCUMENTS):
        made[str(number)] = {
            "lang": "rare" if number % 40 == 0 else chance.choice(LANGS),
            "year": 1990 + number % 37,
            "day": f"2024-{1 + number % 12:02}-{1 + number % 28:02}",
            "open": number % 3 == 0,
            "title": f"Title {number % 10}",
            "text": "permit to build" if number % 5 == 0 else "permit to fish",
            "meta": {"page": number % 7},
            "tags": {"owner": "me" if number % 2 else "you"},
            **({"late": 1} if number == 8 else {}),
            "vectors": [
                {str(token): round(chance.uniform(0.1, 3), 2) for token in chance.sample(range(40), 8)}
                for _ in range(3)
            ],
        }
    return made


DOCS = collection()


@pytest.fixture(scope="module")
def indexes(client: OpenSearch) -> Iterator[dict[str, str]]:
    names = {kind: f"ingtest-filtered-{uuid.uuid4().hex[:8]}" for kind in (*FLAT, *NESTED)}
    for kind, name in names.items():
        field = KINDS[kind.removeprefix("nested ")]
        nested = kind in NESTED
        vectors = {"chunks": {"type": "nested", "properties": {"v": field, "t": {"type": "keyword"}}}}
        settings = {"sparse": True} if field["type"] == "sparse_vector" else {}
        client.indices.create(
            index=name,
            body={
                "settings": {"index": {"number_of_shards": 2, "number_of_replicas": 0, **settings}},
                "mappings": {
                    "dynamic": False,
                    "properties": {**PROPERTIES, **(vectors if nested else {"v": field})},
                },
            },
        )
        lines: list[Any] = []
        for doc_id, doc in DOCS.items():
            own = {key: value for key, value in doc.items() if key != "vectors"}
            own |= (
                {"chunks": [{"v": v, "t": "x"} for v in doc["vectors"]]}
                if nested
                else {"v": doc["vectors"][0]}
            )
            lines += [{"index": {"_id": doc_id}}, own]
        assert not client.bulk(index=name, body=lines, params={"refresh": "true"})["errors"]
    yield names
    client.indices.delete(index=",".join(names.values()))


def exact(keeps: Callable[[dict[str, Any]], bool], *, nested: bool = False) -> dict[str, float]:
    """Scores of all documents that a condition keeps and that share a token with the query."""
    scores = {
        doc_id: max(
            sum(weight * vector.get(token, 0.0) for token, weight in QUERY.items())
            for vector in doc["vectors"][: None if nested else 1]
        )
        for doc_id, doc in DOCS.items()
        if keeps(doc)
    }
    return {doc_id: score for doc_id, score in scores.items() if score > 0}


def close(scores: dict[str, float], kind: str) -> Any:
    return pytest.approx(scores, rel=ROUNDING, abs=STEP if "approximate" in kind else 0)


def check(found: Any, expected: dict[str, float], kind: str) -> None:
    """All that is expected, and nothing else, with exact scores, the best first."""
    assert {hit.id: hit.score for hit in found.hits} == close(expected, kind)
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)


FILTERS: list[tuple[Any, Callable[[dict[str, Any]], bool]]] = [
    ("lang=rare", lambda doc: doc["lang"] == "rare"),
    ("lang=rare,nobody", lambda doc: doc["lang"] == "rare"),
    ("lang!=de,en,nl", lambda doc: doc["lang"] == "rare"),
    (["year>=2000", "year<2003", "open=true"], lambda doc: 2000 <= doc["year"] < 2003 and doc["open"]),
    ("day=2024-02-14", lambda doc: doc["day"] == "2024-02-14"),
    ("day>2024-12-20", lambda doc: doc["day"] > "2024-12-20"),
    ("meta.page=6", lambda doc: doc["meta"]["page"] == 6),
    (["tags.owner=me", "lang=de"], lambda doc: doc["tags"]["owner"] == "me" and doc["lang"] == "de"),
    ("title=Title 3", lambda doc: doc["title"] == "Title 3"),
    (["text=build permit", "lang=nl"], lambda doc: "build" in doc["text"] and doc["lang"] == "nl"),
    ('{"prefix": {"lang": "ra"}}', lambda doc: doc["lang"] == "rare"),
    ({"range": {"lang": {"gte": "nm"}}}, lambda doc: doc["lang"] == "rare"),
    ("_id=3,40,80,120", lambda doc: doc in [DOCS[key] for key in ("3", "40", "80", "120")]),
    ({"ids": {"values": ["3", "40"]}}, lambda doc: doc in [DOCS["3"], DOCS["40"]]),
    ("lang=none of them", lambda doc: False),
]


@pytest.mark.parametrize("kind", [*FLAT, *NESTED])
def test_a_filter_keeps_what_it_says_with_exact_scores_and_nothing_of_score_0(client, indexes, kind):
    """Also approximately, where a filter is applied to the best k alone, and where it cannot be rewritten."""
    for given, keeps in FILTERS:
        found = search(client, indexes[kind], QUERY, by="tokens", filter=given, size=DOCUMENTS)
        check(found, exact(keeps, nested=kind in NESTED), kind)
    best = dict(sorted(exact(FILTERS[0][1], nested=kind in NESTED).items(), key=lambda item: -item[1])[:3])
    check(search(client, indexes[kind], QUERY, filter="lang=rare", size=3, sort="_score"), best, kind)


@pytest.mark.parametrize("kind", [*FLAT, *NESTED])
def test_what_an_alias_hides_stays_hidden_beside_a_filter(client, indexes, kind):
    """The alias's own filter is of the kind that an approximate search fails on."""
    alias = f"{indexes[kind]}-alias"
    body = {"filter": {"bool": {"must": [{"terms": {"lang": ["rare", "de"]}}]}}}
    client.indices.put_alias(index=indexes[kind], name=alias, body=body)
    queries = [QUERY, {"3": 1e-30}, QUERY]
    found = Searcher(client, alias).search_many(queries, filter="open=true", size=DOCUMENTS)
    expected = exact(lambda doc: doc["lang"] in ("rare", "de") and doc["open"], nested=kind in NESTED)
    check(found[0], expected, kind)
    check(found[2], expected, kind)
    shown = exact(lambda doc: doc["lang"] in ("rare", "de"), nested=kind in NESTED)
    check(search(client, alias, QUERY, size=DOCUMENTS), shown, kind)


def test_two_phases_keep_their_scores_with_a_filter_and_behind_the_first_page(client, indexes):
    name = indexes["rank_features"]
    expected = exact(lambda doc: doc["lang"] == "de")
    options = {"filter": "lang=de", "two_phase": True}
    found = search(client, name, QUERY, size=DOCUMENTS, **options)
    check(found, {hit.id: expected[hit.id] for hit in found.hits}, "rank_features")
    assert len(found.hits) > 30  # the others share light tokens alone, which the first phase leaves out
    page = search(client, name, QUERY, size=2, offset=20, **options)
    assert [(hit.id, hit.score) for hit in page.hits] == [(hit.id, hit.score) for hit in found.hits[20:22]]


@pytest.mark.parametrize("kind", [*FLAT, *NESTED])
def test_pages_add_up_and_orders_are_kept(client, indexes, kind):
    name, expected = indexes[kind], exact(lambda doc: doc["open"], nested=kind in NESTED)
    pages = [
        search(client, name, QUERY, filter="open=true", size=7, offset=start, fields=["year", "meta.*"])
        for start in range(0, len(expected) + 7, 7)
    ]
    found = {hit.id: hit.score for page in pages for hit in page.hits}
    assert found == close(expected, kind)
    assert sum(len(page.hits) for page in pages) == len(expected)
    assert all(set(hit.source) == {"year", "meta"} for page in pages for hit in page.hits)

    by_year = search(client, name, QUERY, filter="open=true", sort=["year:desc", "title"], size=DOCUMENTS)
    assert {hit.id: hit.score for hit in by_year.hits} == close(expected, kind)
    keys = [(-hit.source["year"], hit.source["title"]) for hit in by_year.hits]
    assert keys == sorted(keys)

    least = sorted(expected.values())[len(expected) // 2]
    above = search(client, name, QUERY, filter="open=true", min_score=least, size=DOCUMENTS)
    assert min(hit.score for hit in above.hits) >= least
    assert {key for key, score in expected.items() if score > least + STEP} <= {hit.id for hit in above.hits}


@pytest.mark.parametrize("kind", FLAT)
def test_explained_hits_and_bm25_take_filters_and_fields_too(client, indexes, kind):
    found = search(client, indexes[kind], QUERY, filter="lang=rare", fields=["lang"], explain=True)
    assert found.hits
    for hit in found.hits:
        assert hit.source == {"lang": "rare"}
        products = sum(match.product for match in hit.matched.values())
        assert products == pytest.approx(hit.score, rel=ROUNDING, abs=STEP)


def test_more_matches_than_are_scored_exactly_are_told(client, indexes, monkeypatch):
    monkeypatch.setattr("oskit.cluster.search.scope.EXACT_UP_TO", 20)
    monkeypatch.setattr("oskit.cluster.search.scope.OVERSAMPLED", 2)
    name = indexes["approximate"]
    found = search(client, name, QUERY, filter="lang=de", size=5)
    assert "hits may be missing" in str(found.warning)
    assert len(found.hits) == 5
    assert all(hit.source["lang"] == "de" for hit in found.hits)
    assert search(client, name, QUERY, filter="lang=rare", size=5).warning is None


@pytest.mark.parametrize("kind", FLAT)
def test_only_what_was_scored_as_a_whole_is_counted_as_all(client, indexes, kind):
    due = len(exact(lambda _: True))
    found = search(client, indexes[kind], QUERY, size=DOCUMENTS)
    if kind == "approximate":  # which may pass documents over, however few it finds
        assert found.total <= due and found.total_relation == "gte"
    else:
        assert (found.total, found.total_relation) == (due, "eq")
    found = search(client, indexes[kind], QUERY, size=DOCUMENTS, filter="lang=rare")
    assert (found.total, found.total_relation) == (len(exact(FILTERS[0][1])), "eq")


def test_what_cannot_be_answered_is_refused(client, indexes):
    name = indexes["rank_features"]
    for message, options in [
        (r"no field 'language'.*find nothing", {"filter": "language=de"}),
        (r"no field 'late'", {"filter": "late=1"}),
        (r"'v' is rank_features", {"filter": "v=*"}),
        (r"neither sorts nor knows a least score", {"two_phase": True, "sort": "year"}),
        (r"neither sorts nor knows a least score", {"two_phase": True, "min_score": 1.0}),
        (
            r"its best 2,000 hits \(in two phases\), and 2,001 are",
            {"two_phase": True, "size": 1, "offset": 2000},
        ),
        (r"its best 10,000 hits \(index.max_result_window\)", {"size": 10, "offset": 9991}),
        (r"cannot be sorted by 'text', which is text", {"sort": "text"}),
        (r"cannot be sorted by 'v'", {"sort": "v"}),
        (r"no field 'nothing' to sort by", {"sort": "nothing:desc"}),
        (r"cannot be sorted by 'year:down'", {"sort": "year:down"}),
        (r"first hit cannot be number -1", {"offset": -1}),
        (r"least score of a hit cannot be nan", {"min_score": float("nan")}),
    ]:
        with pytest.raises(UsageError, match=message):
            search(client, name, QUERY, **options)
    with pytest.raises(UsageError, match="nested objects 'chunks'"):
        search(client, indexes["nested approximate"], QUERY, filter="chunks.t=x")
    for wrong in ("year=soon", "year>=soon", "year!=1999,soon", "day=abc", "day<2024-13-45", "open=yes",
                  "year=99999999999", "meta.page=x"):  # fmt: skip
        with pytest.raises(UsageError, match=f"the filter {wrong} has a value that the field"):
            search(client, name, QUERY, filter=wrong)
    for right in ("year=1999", "year<2e3", "day>=now-9y/y", "day>=2024-06-01T12:00:00Z", "open=true"):
        assert search(client, name, QUERY, filter=right).hits
    found = search(client, name, QUERY, fields=["lang", "nothing"], sort="title:desc")
    assert found.warning == "no hit has the field 'nothing'"
    found = search(client, name, QUERY, fields=["v", "lang"])
    assert found.warning == "vectors are not shown, and so not 'v'"
    assert all(set(hit.source) == {"lang"} for hit in found.hits)
