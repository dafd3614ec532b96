"""Indexes that others made are adopted: a note in _meta, and search and verify need no options."""

from __future__ import annotations

import json
from typing import Any

import pytest
from archives import encoder_archive
from tiny_models import QUERIES, TinyModels, documents, index, tiny

from oskit.cli.main import main
from oskit.cluster.index.mapping import read_index
from oskit.cluster.ingest.default_pipeline import put_pipeline
from oskit.cluster.ingest.load import ingest
from oskit.cluster.search import adopt
from oskit.cluster.search.search import search
from oskit.data.text_fields import TextFields
from oskit.errors import IndexingError

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector", "ids in rank_features"])
def test_an_adopted_index_is_searched_and_verified_without_options(
    client, tiny: TinyModels, index, kind, tmp_path, cluster_url, capsys
):
    key = "token" if kind == "rank_features" else "id"
    vector = {"type": "sparse_vector", "method": {"name": "seismic"}} if kind == "sparse_vector" else {
        "type": "rank_features"}  # fmt: skip
    fields = {"head": {"type": "text"}, "body": {"type": "text"}, "n": {"type": "integer"},
              "sku": {"type": "keyword"}, "enc": {"properties": {"v": vector}}}  # fmt: skip
    mapping = {"dynamic": "strict", "_meta": {"team": "shop"}, "properties": fields}
    settings = {"index": {"sparse": True}} if kind == "sparse_vector" else {}
    client.indices.create(index=index, body={"mappings": mapping, "settings": settings})
    docs = [doc for doc in documents(30) if doc.text]
    weights = tiny.encoder.document_weights([doc.passage for doc in docs], key=key)
    for doc, weight in zip(docs, weights, strict=True):
        source = {"body": doc.text, **({"head": doc.title} if doc.title else {}), "enc": {"v": weight}}
        client.index(index=index, id=doc.id, body=source)
    client.indices.refresh(index=index)
    client.indices.put_alias(index=index, name=f"{index}-live")
    before = client.indices.get_mapping(index=index)

    def adopts(*options: str) -> int:
        return main(["index", "adopt", f"{index}-live", *options, "--url", cluster_url])

    def refused(*options: str) -> str:
        capsys.readouterr()
        assert adopts(*options, "-q") in (2, 7)
        said = capsys.readouterr().err.strip()
        assert "\n" not in said and client.indices.get_mapping(index=index) == before
        return said

    texts = ["--text-field", "body", "--title-field", "head"]
    other = encoder_archive(tmp_path / "other.zip", seed=8)
    assert "not what this encoder gives" in refused(*texts, "--archive", str(other))
    assert "no sparse vectors in 'body'" in refused("--embedding-field", "body")
    assert "is not in its mapping" in refused("--text-field", "text")
    assert "of the type keyword" in refused("--text-field", "sku")
    assert "was not adopted" in refused("--undo")
    assert adopts(*texts, "--archive", str(tiny.archive), "--model", tiny.encoder_id) == 0
    assert "vectors of 5 documents are the encoder's" in capsys.readouterr().out

    mapping = client.indices.get_mapping(index=index)[index]["mappings"]
    note = mapping["_meta"].pop("oskit")
    assert mapping == before[index]["mappings"], "nothing else of it is touched"
    assert (note["field"], note["key"], note["text_fields"]) == ("enc.v", key, "head,body")
    exact = tiny.encoder.query_weights(QUERIES, key=key)
    for query, wanted in zip(QUERIES, exact, strict=True):
        scores = {doc.id: sum(wanted.get(token, 0) * weight for token, weight in own.items())
                  for doc, own in zip(docs, weights, strict=True)}  # fmt: skip
        hits = search(client, index, query).hits
        assert {hit.id: hit.score for hit in hits} == pytest.approx(
            {hit.id: scores[hit.id] for hit in hits}, rel=5e-3
        )
        assert hits and hits[0].text
    assert search(client, index, "quick fox", by="bm25").hits

    collection = tmp_path / "collection"
    (collection / "qrels").mkdir(parents=True)
    lines = [{"_id": doc.id, "title": doc.title, "text": doc.text} for doc in docs]
    (collection / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = [{"_id": f"q{n}", "text": text} for n, text in enumerate(QUERIES)]
    (collection / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    judged = "".join(f"q{n}\t{docs[n].id}\t1\n" for n in range(len(QUERIES)))
    (collection / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    assert (
        main(
            [
                "verify",
                str(collection),
                "--index",
                index,
                "--archive",
                str(tiny.archive),
                "--url",
                cluster_url,
            ]
        )
        == 0
    )

    # It stays somebody else's: no load, no --recreate. But what its owner writes may be encoded.
    for options in ({}, {"recreate": True}):
        with pytest.raises(IndexingError, match="not made by oskit"):
            ingest(client, index, docs, encoder=tiny.encoder, **options)
    if kind != "ids in rank_features":  # the processor writes token texts into rank_features
        put_pipeline(client, index)
        client.index(index=index, id="new", body={"head": "permit", "body": "quick . fox"}, refresh=True)
        source = client.get(index=index, id="new")["_source"]
        (wanted,) = tiny.encoder.document_weights(["permit quick . fox"], key=key)
        assert source == {
            "head": "permit",
            "body": "quick . fox",
            "enc": {"v": pytest.approx(wanted, abs=1e-5)},
        }
        client.indices.put_settings(index=index, body={"index.default_pipeline": None})
    else:
        with pytest.raises(IndexingError, match="keyed by token ids"):
            put_pipeline(client, index)
    assert adopts(*texts, "--archive", str(tiny.archive), "--model", tiny.encoder_id) == 0
    assert "was so before" in capsys.readouterr().out
    assert main(["index", "show", index, "--json", "--url", cluster_url]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == "by others"
    assert adopts("--undo") == 0
    assert client.indices.get_mapping(index=index) == before
    info = read_index(client, index)
    assert info is not None and info.text_fields is None


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"_meta": {"oskit": "theirs"}, "properties": {"v": {"type": "rank_features"}}}, "somebody else's"),
        ({"_meta": {"oskit": {"a": 1}}, "properties": {"v": {"type": "rank_features"}}}, "somebody else's"),
        ({"properties": {"v": {"type": "rank_features", "positive_score_impact": False}}}, "count against"),
        ({"properties": {"v": {"type": "rank_features"}, "w": {"type": "rank_features"}}}, "in 2 fields"),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted_is_left_as_it_is(client, index, cluster_url, capsys, mapping, said):
    client.indices.create(index=index, body={"mappings": mapping})
    before = client.indices.get_mapping(index=index)
    assert main(["index", "adopt", index, "--url", cluster_url]) == 7
    assert said in capsys.readouterr().err and client.indices.get_mapping(index=index) == before


def test_oskits_own_index_is_not_adopted(client, tiny: TinyModels, index, cluster_url):
    ingest(client, index, documents(2), encoder=tiny.encoder)
    for options in ([], ["--undo"]):
        assert main(["index", "adopt", index, *options, "--url", cluster_url]) == 7


def test_of_two_adoptions_at_once_one_counts_whole(client, index, monkeypatch):
    fields = {"head": {"type": "text"}, "body": {"type": "text"}, "v": {"type": "rank_features"}}
    client.indices.create(index=index, body={"mappings": {"_meta": {"team": "shop"}, "properties": fields}})
    write, wanted = adopt.replace_own_meta, []

    def later(*of: Any) -> None:
        monkeypatch.setattr(adopt, "replace_own_meta", write)  # another comes in between, and is done first
        fields = TextFields.parse("head,body")
        wanted.append(adopt.adopt_index(client, index, text_fields=fields, title_field="head").entries)
        write(*of)

    monkeypatch.setattr(adopt, "replace_own_meta", later)
    done = adopt.adopt_index(client, index, text_fields=TextFields.parse("body"))
    meta = client.indices.get_mapping(index=index)[index]["mappings"]["_meta"]
    assert meta == {"team": "shop", "oskit": done.entries} and "title_field" not in done.entries
    assert wanted[0]["title_field"] == "head"
