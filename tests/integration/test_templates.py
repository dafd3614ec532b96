"""Index templates and data streams: what they bring stays and is told, what clashes is refused before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opensearchpy import OpenSearch
from tiny_models import TinyModels, documents, index, tiny

from oskit.cli.main import main
from oskit.cluster.index.mapping import IndexSettings
from oskit.cluster.ingest.load import ingest
from oskit.cluster.search.search import search
from oskit.data.documents import Document
from oskit.errors import OskitError

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


def test_a_data_stream_is_searched_and_not_loaded(
    client, tiny: TinyModels, index, template, cluster_url, capsys
):
    mappings = {"properties": {"embedding": {"type": "rank_features"}, "text": {"type": "text"}}}
    template({}, mappings, data_stream={})
    stream = f"{index}-stream"
    with pytest.raises(OskitError, match="is for data streams"):
        ingest(client, stream, documents(2), encoder=tiny.encoder)
    client.transport.perform_request("PUT", f"/_data_stream/{stream}")
    with pytest.raises(OskitError, match="is a data stream, which takes a document once"):
        ingest(client, stream, documents(2), encoder=tiny.encoder)
    texts = ["quick brown fox", "building permit"]
    for text, weights in zip(texts, tiny.encoder.document_weights(texts), strict=True):
        body = {"@timestamp": "2026-01-01", "text": text, "embedding": weights}
        client.index(index=stream, body=body, op_type="create", refresh=True)
    assert search(client, stream, "permit", encoder=tiny.encoder).hits[0].source["text"] == texts[1]
    assert main(["index", "adopt", stream, "--text-field", "text", "--archive", str(tiny.archive),
                 "--url", cluster_url]) == 0  # fmt: skip
    assert "vectors of 2 documents" in capsys.readouterr().out
    client.indices.rollover(alias=stream)
    with pytest.raises(OskitError, match="a data stream of 2 indexes"):
        search(client, stream, "permit", encoder=tiny.encoder)
    assert search(client, f".ds-{stream}-000001", "permit", encoder=tiny.encoder).hits


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
