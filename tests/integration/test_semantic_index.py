"""Indexes with a semantic field: made, searched and verified by oskit, and encoded whoever writes."""

from __future__ import annotations

import json

import pytest
from tiny_models import QUERIES, TinyModels, documents, index, tiny, write_documents

from oskit.archive.token_weights import Prune, prune
from oskit.cli.main import main
from oskit.cluster.index.mapping import IndexSettings, read_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.ingest.other_writers import check_writers
from oskit.cluster.search.search import search
from oskit.data.collection import Collection
from oskit.errors import IndexingError
from oskit.evaluation.live.verify import verify

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("rule", [None, "none", "max_ratio:0.3"])
def test_a_semantic_index_is_made_searched_and_verified(
    client, tiny: TinyModels, index, rule, tmp_path, cluster_url, capsys
):
    docs = documents(20)
    source = write_documents(tmp_path / "corpus.jsonl", docs)
    load = ["ingest", index, str(source), "--index-kind", "semantic", "--model", tiny.encoder_id,
            "--url", cluster_url]  # fmt: skip
    load += ["--prune", rule] if rule else []
    assert main([*load, "--archive", str(tiny.archive)]) == 0
    told = capsys.readouterr()
    assert "rank_features that the cluster encodes" in told.err and (rule or "max_ratio:0.1") in told.err
    info = read_index(client, index)
    kept = {None: "max_ratio:0.1", "none": None}.get(rule, rule)
    assert info is not None and (info.prune, info.nested, info.encode) == (kept, None, "cluster")

    weights = tiny.encoder.document_weights([doc.passage for doc in docs])
    if kept:
        weights = [prune(each, Prune.parse(kept)) for each in weights]
    for query, asked in zip(QUERIES, tiny.encoder.query_weights(QUERIES), strict=True):
        due = {doc.id: sum(asked.get(key, 0) * weight for key, weight in each.items())
               for doc, each in zip(docs, weights, strict=True)}  # fmt: skip
        found = search(client, index, query, size=20)
        assert found.hits and {hit.id: hit.score for hit in found.hits} == pytest.approx(
            {key: score for key, score in due.items() if score > 0}, rel=5e-3
        )
        neural = {"query": {"neural": {"passage": {"query_text": query}}}, "size": 20}
        for hit in client.search(index=index, body=neural)["hits"]["hits"]:
            assert hit["_score"] == pytest.approx(due[hit["_id"]], rel=5e-3)
    judged = Collection(queries={"q": QUERIES[0]}, qrels={"q": {"d0": 1}}, corpus=tuple(docs))
    report = verify(client, index, judged, tiny.encoder, k=5)
    assert report.failures == [] and report.run("BM25")
    assert any(f"only the weights by {kept}" in line for line in report.warnings) == bool(kept)

    assert main([*load, "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] == 20
    for options in (["--prune", "max_ratio:0.5"], ["--index-kind", "rank_features"], ["--encode", "client"],
                    ["--embedding-field", "v"], ["--pipeline-batch-size", "3"]):  # fmt: skip
        assert main([*load, *options, "-q"]) in (2, 7), options
        assert "\n" not in capsys.readouterr().err.strip()


def test_whoever_writes_a_semantic_index_every_way_encodes(client, tiny: TinyModels, index):
    how = {"encode": "cluster", "model_id": tiny.encoder_id, "settings": IndexSettings(semantic=True)}
    ingest(client, index, documents(3), **how)
    found = check_writers(client, index)
    assert found.ok and {way.vector for way in found.ways} == {"new"}
    text = "sparse retrieval . permits"
    (wanted,) = tiny.encoder.document_weights([text])
    for name in ("d0", "d1", "d2"):
        client.index(index=index, id=name, body={"passage": "quick . fox"})
    client.update(index=index, id="d0", body={"doc": {"passage": text}})
    line = json.dumps({"update": {"_id": "d1"}}) + "\n" + json.dumps({"doc": {"passage": text}}) + "\n"
    client.bulk(body=line, index=index)
    client.indices.refresh(index=index)
    script = {"script": {"source": f"ctx._source.passage = '{text}'"}, "query": {"ids": {"values": ["d2"]}}}
    client.update_by_query(index=index, body=script, refresh=True)
    clause = {"neural_sparse": {"passage_semantic_info.embedding": {"query_tokens": wanted}}}
    hits = client.search(index=index, body={"query": clause})["hits"]["hits"]
    best = sum(weight * weight for weight in wanted.values())
    assert {hit["_id"]: hit["_score"] for hit in hits} == pytest.approx(
        dict.fromkeys(("d0", "d1", "d2"), best), rel=5e-3
    )
    gone = client.search(index=index, body={"query": {"neural_sparse": {
        "passage_semantic_info.embedding": {"query_tokens": {"quick": 1.0}}}}})["hits"]["hits"]  # fmt: skip
    assert [hit["_id"] for hit in gone] == [] or "quick" in wanted

    # An index of the one kind is not taken for the other, and takes its place only by --recreate.
    plain = {"encode": "cluster", "model_id": tiny.encoder_id}
    with pytest.raises(IndexingError, match="has the kind semantic, not rank_features"):
        ingest(client, index, documents(3), **plain)
    ingest(client, index, documents(3), **plain, recreate=True)
    with pytest.raises(IndexingError, match="has the kind rank_features, not semantic"):
        ingest(client, index, documents(3), **how)
    assert ingest(client, index, documents(3), **how, recreate=True).indexed == 3
    assert not client.ingest.get_pipeline(id=f"{index}-sparse-encoding", ignore=404)

    # Where _source keeps the vectors, a bulk update adds the new tokens to the old ones, which check tells.
    client.indices.create(index=f"{index}-kept", body={"mappings": {"properties": {
        "body": {"type": "semantic", "model_id": tiny.encoder_id}}}})  # fmt: skip
    try:
        ways = {way.name.split(" of")[0]: way for way in check_writers(client, f"{index}-kept").ways}
        assert ways["bulk update"].vector == "mixed" and "'.'" in ways["_update"].why
        client.index(index=f"{index}-kept", id="1", body={"body": "quick fox"})
        line = json.dumps({"update": {"_id": "1"}}) + "\n" + json.dumps({"doc": {"body": "permit"}}) + "\n"
        client.bulk(body=line, index=f"{index}-kept", refresh=True)
        source = client.get(index=f"{index}-kept", id="1")["_source"]
        assert {"quick", "permit"} <= set(source["body_semantic_info"]["embedding"])
    finally:
        client.indices.delete(index=f"{index}-kept")
