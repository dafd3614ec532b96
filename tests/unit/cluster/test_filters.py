"""Filters as people write them, and the clauses that an index with certain fields can answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from oskit.cluster.search.filters import Condition, Learnt, compiled, parse
from oskit.errors import UsageError

FIELDS = {
    "lang": "keyword",
    "year": "integer",
    "when": "date",
    "title": "text",
    "body": "text",
    "body.keyword": "keyword",
    "embedding": "rank_features",
    "meta": "object",
    "meta.page": "integer",
    "passages": "nested",
    "passages.text": "text",
    "labels": "flat_object",
    "labels.x": "flat_object",
    "_id": "_id",
}
DEAD = {"rank_features", "object", "nested"}


def client() -> Any:
    """Answers as ``_field_caps`` does for an index with the fields above."""

    def field_caps(index: str, body: None, params: dict[str, str]) -> dict[str, Any]:
        assert params["fields"], "specified fields can't be null or empty"
        asked = params["fields"].split(",")
        return {
            "fields": {
                name: {kind: {"type": kind, "searchable": kind not in DEAD, "aggregatable": False}}
                for name, kind in FIELDS.items()
                if name in asked or "*" in asked or f"{name.rpartition('.')[0]}.*" in asked
            }
        }

    valid = SimpleNamespace(validate_query=lambda **_: {"valid": True})
    return SimpleNamespace(field_caps=field_caps, indices=valid)


def not_(clause: Any) -> Any:
    return {"bool": {"must_not": [clause]}}


@pytest.mark.parametrize(
    ("given", "clause"),
    [
        ("lang=de", {"term": {"lang": "de"}}),
        (" lang == de ", {"term": {"lang": "de"}}),
        ("lang=de,nl", {"terms": {"lang": ["de", "nl"]}}),
        ('lang="a, b", c', {"terms": {"lang": ["a, b", "c"]}}),
        ('lang=""', {"term": {"lang": ""}}),
        ("lang=a=b", {"term": {"lang": "a=b"}}),
        ("lang!=de", not_({"term": {"lang": "de"}})),
        ("lang!=de,nl", not_({"terms": {"lang": ["de", "nl"]}})),
        ("lang=*", {"exists": {"field": "lang"}}),
        ('lang="*"', {"term": {"lang": "*"}}),
        ('lang="a ""b"", c"', {"term": {"lang": 'a "b", c'}}),
        ('lang=5" wide', {"term": {"lang": '5" wide'}}),
        ("lang!=*", not_({"exists": {"field": "lang"}})),
        ("meta=*", {"exists": {"field": "meta"}}),
        ("year>=2020", {"range": {"year": {"gte": "2020"}}}),
        ("year<2020", {"range": {"year": {"lt": "2020"}}}),
        ("when>now-7d/d", {"range": {"when": {"gt": "now-7d/d"}}}),
        ("meta.page<=3", {"range": {"meta.page": {"lte": "3"}}}),
        ("labels.x=1", {"term": {"labels.x": "1"}}),
        ("_id=1,2", {"terms": {"_id": ["1", "2"]}}),
        ("body=Two words", {"term": {"body.keyword": "Two words"}}),
        ('{"prefix": {"lang": "d"}}', {"prefix": {"lang": "d"}}),
        ({"match": {"title": "x"}}, {"match": {"title": "x"}}),
        ({"ids": {"values": ["1"]}}, {"ids": {"values": ["1"]}}),
        (
            ["lang=de", {"term": {"year": 1}}],
            {"bool": {"filter": [{"term": {"lang": "de"}}, {"term": {"year": 1}}]}},
        ),
    ],
)
def test_what_people_write_is_what_opensearch_is_asked(given: Any, clause: Any):
    made = compiled(client(), "articles", given)
    assert made is not None and made.clause == clause and made.told is None


@pytest.mark.parametrize(
    ("given", "clause", "told"),
    [
        (
            "title=two words",
            {"match": {"title": {"query": "two words", "operator": "and"}}},
            "holds all of the words",
        ),
        ("lang>=k", {"range": {"lang": {"gte": "k"}}}, "letter by letter"),
        ("body=" + "x" * 300, {"term": {"body.keyword": "x" * 300}}, "ignore_above"),
    ],
)
def test_what_is_not_quite_what_was_written_is_told(given: str, clause: Any, told: str):
    made = compiled(client(), "articles", given)
    assert made is not None and made.clause == clause and told in (made.told or "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lang", "not of the form field=value"),
        ("=de", "not of the form field=value"),
        ("lang=", "has no value"),
        ("year>=1,2", "compares with 2 values"),
        ("{", "is no JSON"),
        ("{}", "no query of OpenSearch"),
        ('{"term": {"lang": "de"}, "range": {}}', "no query of OpenSearch"),
        ('{"term": "de"}', "no query of OpenSearch"),
        ("lang=a\nb", "several lines"),
        ('lang="a', "quotation mark without its other one"),
        ('lang="a" or "b"', "quotation mark without its other one"),
        ("language=de", r"no field 'language'.*find nothing"),
        ('{"bool": {"must_not": [{"terms": {"language": ["de"]}}]}}', "no field 'language'"),
        ({"bool": {"filter": {"exists": {"field": "language"}}}}, "no field 'language'"),
        ("embedding=*", "is rank_features"),
        ("meta=3", "is object"),
        ("passages.text=a", "nested objects 'passages'"),
        ("title>=a", "have no order"),
    ],
)
def test_what_would_find_nothing_or_cannot_be_answered_is_said(given: Any, said: str):
    with pytest.raises(UsageError, match=said):
        compiled(client(), "articles", given)


def test_no_filter_asks_nobody():
    assert compiled(SimpleNamespace(), "articles", None) is None
    assert compiled(SimpleNamespace(), "articles", []) is None
    assert parse("lang=de") == [Condition("lang", "=", ("de",))]


def test_what_stays_true_of_a_field_is_asked_once():
    asked: list[str] = []
    real, counting = client(), client()

    def field_caps(**how: Any) -> Any:
        asked.append("fields")
        return real.field_caps(**how)

    def validate_query(**_: Any) -> Any:
        asked.append("value")
        return {"valid": True}

    counting.field_caps, counting.indices.validate_query = field_caps, validate_query
    learnt = Learnt()

    def requests(given: Any) -> list[str]:
        asked.clear()
        first = compiled(counting, "i", given, learnt)
        assert first == compiled(real, "i", given)
        return list(asked)

    assert requests("when>=2026-01-01") == ["fields", "value"]
    assert requests("when>=2026-01-01") == []
    assert requests("when>=2026-01-02") == ["value"]
    assert requests(["lang=de", "when>=2026-01-01"]) == ["fields"]
    assert requests(["lang=nl", "when>=2026-01-01"]) == []
    assert requests("title=fox") == requests("title=fox") == ["fields"], "it may get a keyword beside it"
    for _ in range(2):
        with pytest.raises(UsageError, match="no field 'later'"):
            requests("later=1")
        assert asked == ["fields", "fields"], "it may come"
