"""Index templates and data streams: what they bring stays and is told, what clashes is refused before."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from opensearchpy import OpenSearch
from tiny_models import TinyModels, documents, index, tiny

from oskit.archive.token_weights import Prune
from oskit.cli.main import main
from oskit.cluster.index.given import expanded
from oskit.cluster.index.mapping import IndexSettings, own_fields, read_index
from oskit.cluster.ingest.actions import ItemMaker
from oskit.cluster.ingest.bulk import BulkSender
from oskit.cluster.ingest.default_pipeline import put_pipeline
from oskit.cluster.ingest.load import IngestReport, ingest
from oskit.cluster.search.hybrid import Hybrid
from oskit.cluster.search.search import search
from oskit.data.documents import Document
from oskit.errors import OskitError
from oskit.evaluation.live.index_facts import read_facts

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration


@pytest.fixture
def template(client: OpenSearch, index) -> Iterator[Any]:
    """Puts a template for the index, of the new kind or of the old."""

    def put(settings: Any = None, mappings: Any = None, *, old: bool = False, **more: Any) -> None:
        body = {"settings": settings or {}, "mappings": mappings or {}, "aliases": {f"{index}-all": {}}}
        if old:
            client.indices.put_template(name=index, body={"index_patterns": [f"{index}*"], **body})
        else:
            body = {"index_patterns": [f"{index}*"], "priority": 500, "template": body, **more}
            client.indices.put_index_template(name=index, body=body)

    yield put
    client.transport.perform_request("DELETE", f"/_data_stream/{index}-stream", params={"ignore": 404})
    client.indices.delete_index_template(name=index, ignore=404)
    client.indices.delete_template(name=index, ignore=404)
    client.ingest.delete_pipeline(id=f"{index}-seen", ignore=404)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("mode", ["client", "cluster"])
def test_what_a_template_brings_stays_and_its_pipeline_runs(
    client, tiny: TinyModels, index, template, mode, old
):
    told: list[str] = []
    how = {"encode": mode, "model_id": tiny.encoder_id} if mode == "cluster" else {"encoder": tiny.encoder}
    settings = {"number_of_shards": 2, "refresh_interval": "7s", "default_pipeline": f"{index}-seen"}
    mappings = {
        "date_detection": True,
        "_meta": {"team": "shop"},
        "properties": {"passage": {"type": "text", "analyzer": "english"}, "extra": {"type": "keyword"}},
    }
    template(settings, mappings, old=old)
    with pytest.raises(OskitError, match=f"{index}-seen', which is not there"):
        ingest(client, index, documents(3), **how)
    assert not client.indices.exists(index=index)
    client.ingest.put_pipeline(
        id=f"{index}-seen", body={"processors": [{"set": {"field": "seen", "value": 1}}]}
    )
    for recreate in (False, True):
        report = ingest(client, index, documents(8), **how, recreate=recreate, notify=told.append)
        assert report.indexed == 8
        made = client.indices.get(index=index, params={"flat_settings": "true"})[index]
        assert made["settings"]["index.number_of_shards"] == "2"
        assert made["settings"]["index.refresh_interval"] == "7s"
        assert (
            set(made["mappings"]["_meta"]) == {"team", "oskit"} and made["mappings"]["date_detection"] is True
        )
        fields = made["mappings"]["properties"]
        assert (fields["passage"]["analyzer"], fields["extra"]["type"]) == ("english", "keyword")
        assert set(made["aliases"]) == {f"{index}-all"}
        hits = client.search(index=index, body={"size": 50})["hits"]["hits"]
        assert len(hits) == 8 and all(hit["_source"]["seen"] == 1 for hit in hits)
        for doc in documents(8):
            (wanted,) = tiny.encoder.document_weights([doc.passage])
            (source,) = [hit["_source"] for hit in hits if hit["_id"] == doc.id]
            assert source.get("embedding", {}) == pytest.approx(wanted, abs=1e-5)
    assert any("refresh_interval=7s" in line and "extra" in line for line in told)
    assert any("is run on the documents, too" in line for line in told)
    assert ingest(client, index, documents(8), **how).unchanged == 8


@pytest.mark.parametrize(
    ("kind", "settings", "mappings", "said"),
    [
        ("rank_features", {}, {"properties": {"embedding": {"type": "keyword"}}}, r"embedding\.type"),
        ("sparse_vector", {"index.sparse": False}, {}, "sparse"),
        ("rank_features", {}, {"_routing": {"required": True}}, "no _routing"),
        ("rank_features", {}, {"_meta": {"oskit": {"kind": "x"}}}, r"_meta\.oskit"),
        ("rank_features", {"index.blocks.write": True}, {}, r"blocks\.write"),
    ],
)  # fmt: skip
def test_a_clash_is_refused_before_anything_happens(
    client, tiny: TinyModels, index, template, kind, settings, mappings, said
):
    template(settings, mappings)
    with pytest.raises(OskitError, match=f"the index template '{index}'.*{said}"):
        ingest(client, index, documents(3), encoder=tiny.encoder, settings=IndexSettings(kind))
    assert not client.indices.exists(index=index)


@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
def test_a_data_stream_takes_a_document_once_and_is_searched_in_all_its_indexes(
    client, tiny: TinyModels, index, template, kind
):
    stream, settings = f"{index}-stream", IndexSettings(kind)
    docs = [replace(doc, fields={**doc.fields, "@timestamp": "2026-01-01"}) for doc in documents(12)]

    def load(some: list[Document], **more: Any) -> IngestReport:
        return ingest(client, stream, some, encoder=tiny.encoder, settings=settings, **more)

    template(data_stream={})
    with pytest.raises(OskitError, match="is for data streams"):
        load(docs)
    client.indices.create_data_stream(name=stream)
    with pytest.raises(OskitError, match=r"template .* has not what a load needs") as refused:
        load(docs)
    found = re.search(r"template \((.*)\), and begin", str(refused.value.hint))
    assert found is not None
    template(**json.loads(found[1]), data_stream={})
    with pytest.raises(OskitError, match=r"the index .*000001 has not what a load needs"):
        load(docs)
    client.indices.rollover(alias=stream)
    assert load(docs[:8]).indexed == 8
    # The same is known, also behind a rollover; another document of the same id is refused.
    client.indices.rollover(alias=stream)
    other, late = replace(docs[0], text="another text"), replace(docs[8], fields={})
    report = load([*docs[1:], other, late])
    assert (report.indexed, report.unchanged, report.refused) == (11, 7, 2)
    reasons = " ".join(report.reasons)
    assert "takes none in its place" in reasons and "it has no '@timestamp'" in reasons
    client.indices.refresh(index=stream)
    assert client.count(index=stream)["count"] == 12
    for option, value in (("recreate", True), ("reencode", True), ("delete_missing", 1.0)):
        with pytest.raises(OskitError, match="data stream"):
            load(docs, **{option: value})
    with pytest.raises(OskitError, match="by its index template"):
        ingest(client, stream, docs, encode="cluster", model_id=tiny.encoder_id, settings=settings)
    with pytest.raises(OskitError, match="its vectors were not pruned"):
        load(docs, prune=Prune.parse("max_ratio:0.5"))
    # Exact scores over all of its indexes, however the query is encoded, filtered and explained.
    query = "quick permit retrieval"
    (weights,) = tiny.encoder.query_weights([query], key="id" if kind == "sparse_vector" else "token")
    key = "id" if kind == "sparse_vector" else "token"
    vectors = tiny.encoder.document_weights([doc.passage for doc in docs], key=key)
    scores = {
        doc.id: score
        for doc, vector in zip(docs, vectors, strict=True)
        if (score := sum(weight * vector.get(token, 0) for token, weight in weights.items())) > 0
    }
    for how in ({"encoder": tiny.encoder}, {"model_id": tiny.encoder_id}):
        result = search(client, stream, query, size=50, explain=True, **how)
        assert {hit.id: hit.score for hit in result.hits} == pytest.approx(scores, rel=5e-3)
        assert "not searched, as they have no such vectors: .ds-" in str(result.warning)
    some = search(client, stream, query, size=50, encoder=tiny.encoder, filter="n>=6")
    assert {hit.id for hit in some.hits} == {
        doc.id for doc in docs if doc.fields.get("n", 0) >= 6
    } & scores.keys()
    hybrid = Hybrid.parse("bm25=0.4,sparse=0.6", depth=20)
    fused = search(client, stream, query, encoder=tiny.encoder, hybrid=hybrid, explain=True)
    for hit in fused.hits:
        assert sum(side.normalized * w for side, w in zip(hit.sides.values(), (0.4, 0.6), strict=True)) == (
            pytest.approx(hit.score, rel=5e-3)
        )
    assert search(client, stream, query, by="bm25").hits
    with pytest.raises(OskitError, match="a data stream of 3 indexes"):
        read_facts(client, stream)
    # What was sent twice, as where an answer is lost, is there once, and no refusal.
    info = read_index(client, f".ds-{stream}-000003")
    assert info is not None and info.encode == "client"
    more = [Document("e1", "fox", fields={"@timestamp": 1}), Document("e2", "fox", fields={"@timestamp": 2})]
    for mark, taken in (("first", 2), ("first", 2), ("other", 0)):
        maker = ItemMaker(info, tiny.encoder, None, lambda _, mark=mark: mark, creates=True)
        outcome = BulkSender(client, stream).send(maker.make(more))
        assert (outcome.indexed, len(outcome.refused)) == (taken, 2 - taken)
    assert client.count(index=stream)["count"] == 14


def test_a_data_stream_of_others_is_adopted_and_not_loaded(
    client, tiny: TinyModels, index, template, cluster_url, capsys
):
    fields = expanded(own_fields(IndexSettings()))
    template({}, {"properties": {**fields, "text": {"type": "text"}}}, data_stream={})
    stream = f"{index}-stream"
    client.indices.create_data_stream(name=stream)
    texts = ["quick brown fox", "building permit"]
    for text, weights in zip(texts, tiny.encoder.document_weights(texts), strict=True):
        body = {"@timestamp": "2026-01-01", "text": text, "embedding": weights}
        client.index(index=stream, body=body, op_type="create", refresh=True)
    assert search(client, stream, "permit", encoder=tiny.encoder).hits[0].source["text"] == texts[1]
    with pytest.raises(OskitError, match="was not made by oskit"):
        ingest(client, stream, documents(2), encoder=tiny.encoder)
    assert main(["index", "adopt", stream, "--text-field", "text", "--archive", str(tiny.archive),
                 "--url", cluster_url]) == 0  # fmt: skip
    assert "vectors of 2 documents" in capsys.readouterr().out
    client.indices.rollover(alias=stream)
    assert search(client, stream, "permit", encoder=tiny.encoder).hits[0].source["text"] == texts[1]
    with pytest.raises(OskitError, match="its index template: give that a default_pipeline"):
        put_pipeline(client, stream, model_id=tiny.encoder_id)


def test_a_default_pipeline_of_an_index_runs_too_unless_it_encodes(client, tiny: TinyModels, index, template):
    ingest(client, index, documents(2), encoder=tiny.encoder)
    told: list[str] = []
    client.ingest.put_pipeline(
        id=f"{index}-seen", body={"processors": [{"set": {"field": "seen", "value": 1}}]}
    )
    client.indices.put_settings(index=index, body={"index.default_pipeline": f"{index}-seen"})
    ingest(client, index, [Document("x", "fox .")], encoder=tiny.encoder)
    assert client.get(index=index, id="x")["_source"]["seen"] == 1
    encodes = {"sparse_encoding": {"model_id": tiny.encoder_id, "field_map": {"text": "embedding"}}}
    client.ingest.put_pipeline(id=f"{index}-seen", body={"processors": [encodes]})
    ingest(client, index, [Document("y", "fox .")], encoder=tiny.encoder, notify=told.append)
    assert "makes vectors itself, so it is not run" in told[-1]
    assert "." in client.get(index=index, id="y")["_source"]["embedding"]
