"""What others give an index is joined to what oskit needs, or refused where they differ."""

from __future__ import annotations

import json

import pytest

from oskit.cluster.index.given import difference, joined, read_mapping, read_settings, unmapped
from oskit.cluster.index.mapping import IndexInfo, IndexSettings, index_body
from oskit.data.documents import FieldNames, document_from_record
from oskit.data.text_fields import TextFields
from oskit.errors import OskitError, UsageError


def body(kind="rank_features", **given):
    return index_body(IndexInfo("i", kind, "token"), IndexSettings(kind, **given))


def test_ours_and_theirs_stand_side_by_side():
    made = body(
        "sparse_vector",
        settings={"index": {"refresh_interval": "9s", "number_of_shards": 3}, "index.sparse": "true"},
        mapping={"dynamic": "strict", "date_detection": True, "_meta": {"owner": "them"}},
        mappings={
            "price": {"type": "float"},
            "passage": {"analyzer": "german", "similarity": "boolean"},
            "embedding": {"type": "sparse_vector", "method": {"parameters": {"n_postings": 50}}},
        },
    )
    index, mapping = made["settings"]["index"], made["mappings"]
    assert (index["refresh_interval"], index["number_of_shards"], index["auto_expand_replicas"]) == (
        "9s",
        3,
        "0-1",
    )
    assert (mapping["dynamic"], mapping["date_detection"], set(mapping["_meta"])) == (
        "strict",
        True,
        {"owner", "oskit"},
    )
    fields = mapping["properties"]
    assert fields["price"] == {"type": "float"}
    assert fields["passage"] == {"type": "text", "analyzer": "german", "similarity": "boolean"}
    assert fields["embedding"]["method"] == {"name": "seismic", "parameters": {"n_postings": 50}}


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        ("rank_features", {"mappings": {"embedding": {"type": "keyword"}}}, r"embedding\.type"),
        ("rank_features", {"mappings": {"passage": {"type": "keyword"}}}, r"passage\.type"),
        ("rank_features", {"mappings": {"embedding": {"positive_score_impact": False}}}, "against"),
        ("sparse_vector", {"settings": {"index.sparse": False}}, "sparse: false"),
        ("rank_features", {"settings": {"number_of_shards": 2}, "shards": 3}, "number_of_shards"),
        ("rank_features", {"mappings": {"passage": {"analyzer": "la"}}, "analyzer": "german"}, "analyzer"),
        ("rank_features", {"mappings": {"a": {"type": "keyword"}}, "text_fields": "a^2,b"}, r"a\.type"),
        ("rank_features", {"mappings": {"v.w": {"type": "text"}}, "embedding_field": "v.w"}, r"v\.proper"),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused_before_anything_happens(kind, given, named):
    with pytest.raises(UsageError, match=named):
        IndexSettings(kind, **given)


@pytest.mark.parametrize(
    ("read", "content", "said"),
    [
        (read_settings, "{", "not JSON"),
        (read_settings, "[1]", "no JSON object"),
        (read_settings, {"index": {"blocks": {"write": True}}}, "blocks.write"),
        (read_settings, {"settings": {}, "mappings": {"properties": {}}}, "mappings too"),
        (read_mapping, {"price": {"type": "float"}}, "'price' is nothing that a mapping has"),
        (read_mapping, {"_meta": {"oskit": {}}}, "_meta.oskit"),
        (read_mapping, {"mappings": {"_source": {"enabled": False}}}, "without _source"),
        (read_mapping, {"_routing": {"required": True}}, "no _routing"),
    ],
)
def test_files_that_hold_something_else(tmp_path, read, content, said):
    path = tmp_path / "given.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(OskitError, match=said) as refused:
        read(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(OskitError, match="cannot read"):
        read(tmp_path / "none.json")


def test_what_the_cluster_writes_otherwise_is_the_same():
    there = {"a": {"type": "keyword"}, "n": "1", "on": "true"}
    given = {"a": {"type": "keyword", "index": True}, "n": 1, "on": True}
    assert difference(given, there, absent=False) is None
    assert difference(given, there, absent=True) == ("a.index", None, True)
    assert difference({"a": {"type": "text"}}, there, absent=False) == ("a.type", "keyword", "text")
    assert joined({"n": 1}, {"n": "1"}, "them") == {"n": 1}


@pytest.mark.parametrize(
    ("given", "bm25", "passage", "title"),
    [
        ("title^2,body", "title^2,body", "T B", "T"),
        ("body,title^2", "body,title^2", "B T", ""),
        ("title,body,more^0.5", "title,body,more^0.5", "T B 7", "T"),
        ("body,more,gone", "body,more,gone", "B 7", ""),
        ("body", None, "T B", "T"),
    ],
)  # fmt: skip
def test_several_fields_are_encoded_as_one_text_in_their_order(given, bm25, passage, title):
    fields = TextFields.parse(given)
    record = {"title": "T", "body": "B", "more": 7, "_id": "1"}
    found = document_from_record(record, FieldNames.of(None, fields.names, "title", None), "f:1")
    assert (fields.for_bm25, found.passage, found.title) == (bm25, passage, title)
    assert found.source() == {"title": "T", "body": "B", "more": 7}, "each stays in its own field"


@pytest.mark.parametrize("given", ["", "a,", "a,a^2", "a^2", "a^0,b", "a^x,b"])
def test_text_fields_that_cannot_be_meant(given):
    with pytest.raises(UsageError):
        TextFields.parse(given)


STRICT = {
    "dynamic": "strict",
    "properties": {
        "a": {"type": "text"},
        "o": {"properties": {"x": {"type": "long"}}},
        "free": {"type": "object", "dynamic": "true"},
        "off": {"type": "object", "enabled": False},
        "n": {"type": "nested", "properties": {"y": {"type": "keyword"}}},
        "f": {"type": "flat_object"},
    },
}


@pytest.mark.parametrize(
    "source, lacks",
    [
        ({"a": 1, "o": {"x": 1}, "o.x": 2, "free": {"q": 1}, "off": {"q": 1}, "f": {"q": 1}}, None),
        ({"b": None}, "b"),
        ({"o.z": 1}, "o.z"),
        ({"n": [{"y": 1}, {"z": 1}]}, "n.z"),
    ],
)
def test_a_strict_mapping_lacks_a_field(source, lacks):
    assert unmapped(STRICT, source) == lacks
    assert unmapped({**STRICT, "dynamic": False}, source) is None
