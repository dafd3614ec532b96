"""Indexes with settings, mappings and analyzers of one's own, and with several fields of text."""

from __future__ import annotations

import json

import pytest
from tiny_models import TinyModels, index, tiny

from oskit.cli.main import main
from oskit.cluster.index.mapping import read_index
from oskit.cluster.search.search import search

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

RECORDS = [
    {"_id": "1", "title": "quick", "body": "the brown fox", "price": "7"},
    {"_id": "2", "title": "permit", "body": "a quick building permit", "price": "8"},
    {"_id": "3", "body": "sparse retrieval", "price": "9"},
]


@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
def test_own_settings_mappings_analyzer_and_text_fields(
    client, tiny: TinyModels, index, kind, tmp_path, cluster_url, capsys
):
    def file(name: str, content: object) -> str:
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    plural = {"analysis": {"analyzer": {"plural": {"tokenizer": "standard", "filter": ["porter_stem"]}}}}
    settings = file("settings.json", {"index": {"refresh_interval": "9s", "number_of_shards": 2}, **plural})
    price = {"price": {"type": "integer", "index": True}}
    mappings = {"dynamic": "strict", "dynamic_templates": [], "properties": price}
    load = ["ingest", index, str(corpus), "--archive", str(tiny.archive), "--index-kind", kind,
            "--url", cluster_url, "-q"]  # fmt: skip
    given = ["--settings", settings, "--mappings", file("mappings.json", mappings), "--analyzer", "plural",
             "--text-field", "title^3,body"]  # fmt: skip

    def refused(*options: str) -> str:
        assert main([*load, *options]) in (2, 7)
        said = capsys.readouterr().err.strip()
        assert said.startswith("Error: ") and "\n" not in said
        return said

    # Nothing happens where something contradicts what oskit needs, or is not there.
    wrong = file("wrong.json", {"properties": {"embedding": {"type": "keyword"}}})
    assert "embedding.type" in refused("--mappings", wrong)
    assert "no analyzer 'klingon'" in refused("--analyzer", "klingon")
    strict = file("strict.json", {"dynamic": "strict", "properties": {"rice": {"type": "integer"}}})
    for more in ([], ["--dry-run"]):
        told = refused("--mappings", strict, "--text-field", "title,body", *more)
        assert "corpus.jsonl:1 would be refused" in told and "no field 'price'" in told
    assert not client.indices.exists(index=index)

    assert main([*load, *given]) == 0
    made = client.indices.get(index=index, params={"flat_settings": "true"})[index]
    assert made["settings"]["index.refresh_interval"] == "9s"
    assert made["settings"]["index.number_of_shards"] == "2"
    fields = made["mappings"]["properties"]
    assert (fields["price"]["type"], fields["embedding"]["type"]) == ("integer", kind)
    assert [fields[name]["analyzer"] for name in ("passage", "title", "body")] == ["plural"] * 3

    # What is encoded: the texts joined in their order, as exact weights show.
    found = {hit["_id"]: hit["_source"] for hit in client.search(index=index, body={})["hits"]["hits"]}
    texts = [" ".join(filter(None, (record.get("title"), record["body"]))) for record in RECORDS]
    expected = tiny.encoder.document_weights(texts, key="id" if kind == "sparse_vector" else "token")
    for record, text, weights in zip(RECORDS, texts, expected, strict=True):
        source = found[str(record["_id"])]
        assert (source["body"], source["passage"]) == (record["body"], text)
        assert source["embedding"] == pytest.approx(weights, abs=1e-5)

    # BM25 adds up the fields, each with its boost.
    def score(field: str, boost: float) -> dict[str, float]:
        query = {"query": {"match": {field: {"query": "quick permits", "boost": boost}}}}
        return {hit["_id"]: hit["_score"] for hit in client.search(index=index, body=query)["hits"]["hits"]}

    title, body = score("title", 3), score("body", 1)
    wanted = {key: title.get(key, 0) + body.get(key, 0) for key in title | body}
    hits = search(client, index, "quick permits", by="bm25").hits
    assert {hit.id: hit.score for hit in hits} == pytest.approx(wanted, rel=1e-5)
    assert set(wanted) == {"1", "2"}, "by its stem"
    info = read_index(client, index)
    assert info is not None and info.text_fields == "title^3,body"

    # The same command again has no other effect; another setting, mapping or analyzer is refused.
    before = client.indices.get(index=index)
    assert main([*load, *given]) == 0
    assert main([*load, "--text-field", "title^3,body"]) == 0
    assert client.indices.get(index=index) == before
    other = file("other.json", {"refresh_interval": "8s"})
    assert "refresh_interval 9s, not 8s" in refused("--settings", other, *given[4:])
    float_ = file("float.json", {"properties": {"price": {"type": "float"}}})
    assert "price" in refused("--mappings", float_, *given[4:])
    assert "in title^3,body, not in tilte,body" in refused("--text-field", "tilte,body")
    assert "Give --text-field title^3,body" in refused("--text-field", "body")
    assert "plural" in refused("--analyzer", "german", *given[6:])
    assert client.indices.get(index=index) == before
    assert main([*load, "--recreate", "--settings", other, "--text-field", "body,title"]) == 0
    after = client.indices.get(index=index, params={"flat_settings": "true"})[index]
    assert after["settings"]["index.refresh_interval"] == "8s"
    assert "analyzer" not in after["mappings"]["properties"]["passage"]
