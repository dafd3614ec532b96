"""Other programs write into an index: what becomes of its vectors, as `oskit pipeline` says and as it is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import incidents
import pytest
from faulty_proxy import Fault, FaultyProxy
from incidents import Incident
from opensearchpy import OpenSearch
from tiny_models import TinyModels, encoder_of, index, tiny

from oskit.cli.main import main
from oskit.cluster.index.mapping import IndexSettings, read_index
from oskit.cluster.index.pipeline import pipeline_name
from oskit.cluster.index.sparse_fields import vectors_of
from oskit.cluster.ingest.default_pipeline import put_pipeline
from oskit.cluster.ingest.load import ingest
from oskit.cluster.ingest.other_writers import check_writers
from oskit.cluster.search.search import search
from oskit.data.documents import Document
from oskit.errors import IndexingError

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

OLD, NEW = "quick brown fox . jumps", "sparse retrieval . permits"


def ways(client: OpenSearch, name: str) -> dict[str, Callable[[], Any]]:
    """Each way of writing the text NEW, which had been OLD, into the document of the way's name."""
    body = {"title": "building", "text": NEW}
    line = json.dumps({"update": {"_id": "bulk update"}}) + "\n" + json.dumps({"doc": {"text": NEW}}) + "\n"
    script = {"source": f"ctx._source.text = '{NEW}'"}
    by_query = {"query": {"ids": {"values": ["_update_by_query"]}}, "script": script}
    return {
        "index": lambda: client.index(index=name, id="index", body=body),
        "_update of": lambda: client.update(index=name, id="_update of", body={"doc": {"text": NEW}}),
        "_update_by_query": lambda: client.update_by_query(index=name, body=by_query, refresh=True),
        "_reindex": lambda: client.reindex(
            body={
                "source": {"index": f"{name}-source", "query": {"ids": {"values": ["_reindex"]}}},
                "dest": {"index": name},
            }
        ),
        "bulk update": lambda: client.bulk(body=line, index=name),
    }


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
def test_what_check_says_of_each_way_of_writing_is_what_happens(
    client, tiny: TinyModels, index, kind, excluded
):
    mapping = {"_source": {"excludes": ["embedding"]}} if excluded else {}
    settings = IndexSettings(kind, mapping=mapping)
    key = "id" if kind == "sparse_vector" else "token"
    passage = f"building {NEW}"
    (wanted,) = tiny.encoder.document_weights([passage], key=key)

    def scores() -> dict[str, float]:
        client.indices.refresh(index=index)
        clause = {"neural_sparse": {"embedding": {"query_tokens": wanted}}}
        hits = client.search(index=index, body={"query": clause, "size": 50})["hits"]["hits"]
        return {hit["_id"]: hit["_score"] for hit in hits}

    client.indices.create(index=f"{index}-source", body={"mappings": {"enabled": False}})
    (old,) = tiny.encoder.document_weights([f"building {OLD}"], key=key)
    moved = {"title": "building", "text": NEW, "passage": f"building {OLD}"}
    moved |= {} if excluded else {"embedding": old}
    client.index(index=f"{index}-source", id="_reindex", body=moved, refresh=True)
    best = sum(weight * weight for weight in wanted.values())
    for with_pipeline in (False, True):
        if with_pipeline:
            assert put_pipeline(client, index, model_id=tiny.encoder_id).changed
            assert not put_pipeline(client, index, model_id=tiny.encoder_id).changed
        docs = [Document(name, OLD, "building") for name in ways(client, index) if name != "index"]
        ingest(client, index, docs, encoder=tiny.encoder, settings=settings, reencode=True)
        client.delete(index=index, id="index", ignore=404)
        before = scores()
        said = {way.name: way for way in check_writers(client, index).ways}
        for write in ways(client, index).values():
            write()
        after = scores()
        bm25 = {hit.id for hit in search(client, index, "retrieval permits", by="bm25").hits}
        for name in ways(client, index):
            (way,) = [way for full, way in said.items() if full.startswith(name)]
            found = (
                "new"
                if after.get(name) == pytest.approx(best, rel=5e-3)
                else "none"
                if name == "index"
                else "old"
                if after.get(name) == before.get(name)
                else "lost"
            )
            assert way.vector == found, (name, with_pipeline, way, after.get(name), before.get(name), best)
            assert way.passage == (name in bm25), (name, with_pipeline)
        if with_pipeline:
            assert {way.vector for way in said.values() if way.runs_pipelines} == {"new"}
            stored = client.get(index=index, id="index")["_source"]
            assert stored["passage"] == passage and stored["text"] == NEW
            # An empty text has no vector, and does no harm to what comes after it.
            client.index(index=index, id="empty", body={"text": "\N{ZERO WIDTH SPACE}"})
            client.index(index=index, id="index", body={"title": "building", "text": NEW})
            assert scores()["index"] == pytest.approx(best, rel=5e-3) and "empty" not in scores()
    client.indices.put_settings(index=index, body={"index.default_pipeline": None})
    client.ingest.delete_pipeline(id=pipeline_name(index))
    client.indices.delete(index=f"{index}-source")


@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
def test_an_application_that_writes_through_the_pipeline_of_a_load_is_found(
    client, tiny: TinyModels, index, kind
):
    how = {"encode": "cluster", "model_id": tiny.encoder_id, "settings": IndexSettings(kind)}
    docs = [Document("1", " brown\N{NO-BREAK SPACE}", "fox", text_field="body", title_field="head"),
            Document("2", "\x01 x ", "", {"n": 1}, "body", "head")]  # fmt: skip
    ingest(client, index, docs, **how)
    for doc in docs:
        assert client.get(index=index, id=doc.id)["_source"]["passage"] == doc.passage, "to the letter"
    name = pipeline_name(index)
    client.index(index=index, id="3", body={"head": "permit", "body": OLD, "n": 2}, params={"pipeline": name})
    client.index(index=index, id="4", body={"body": 7.5}, params={"pipeline": name}, refresh=True)
    key = "id" if kind == "sparse_vector" else "token"
    for identity, passage in (("3", f"permit {OLD}"), ("4", "7.5")):
        source = client.get(index=index, id=identity)["_source"]
        (wanted,) = tiny.encoder.document_weights([passage], key=key)
        assert source["passage"] == passage
        assert vectors_of(source, "embedding") == [pytest.approx(wanted, abs=1e-5)]
    assert search(client, index, "permit", model_id=tiny.encoder_id).hits[0].id == "3"
    assert ingest(client, index, docs, **how).unchanged == 2


def test_nothing_of_others_is_overwritten_and_a_failure_leaves_all_as_it_was(
    client, tiny: TinyModels, index, cluster_url, capsys
):
    ingest(client, index, [Document("1", OLD)], encoder=tiny.encoder)
    name, theirs = pipeline_name(index), f"{index}-theirs"
    sees = {"processors": [{"set": {"field": "seen", "value": 1}}]}
    client.ingest.put_pipeline(id=theirs, body={"processors": [{"pipeline": {"name": name}}]})
    client.indices.put_settings(index=index, body={"index.default_pipeline": theirs})

    def state() -> tuple[Any, Any]:
        settings = client.indices.get_settings(index=index)[index]["settings"]["index"]
        return settings.get("default_pipeline"), client.ingest.get_pipeline(id=name, ignore=404).get(name)

    def refused(*options: str) -> str:
        before = state()
        assert main(["pipeline", "put", index, "--url", cluster_url, "-q", *options]) == 7
        said = capsys.readouterr().err.strip()
        assert "\n" not in said and state() == before
        return said

    try:
        assert "oskit's calls it first" in refused()
        done = put_pipeline(client, index, model_id=tiny.encoder_id, replace_others=True)
        assert (done.replaced, done.calls) == (theirs, None), "not in a circle"
        client.indices.put_settings(index=index, body={"index.default_pipeline": theirs})
        client.ingest.put_pipeline(id=theirs, body=sees)
        assert "is a tokenizer" in refused("--model", tiny.tokenizer_id)
        client.ingest.put_pipeline(id=name, body={"processors": []})
        client.indices.put_settings(index=index, body={"index.default_pipeline": None})
        assert "was not made by oskit" in refused("--model", tiny.encoder_id)
        client.ingest.delete_pipeline(id=name)
        # A step that somebody adds, and that breaks it, is met by the trial.
        put_pipeline(client, index, model_id=tiny.encoder_id)
        body = client.ingest.get_pipeline(id=name)[name]
        body["processors"].append({"remove": {"field": "embedding"}})
        client.ingest.put_pipeline(id=name, body=body)
        client.indices.put_settings(index=index, body={"index.default_pipeline": theirs})
        assert "does not do what it should" in refused(
            "--model", tiny.encoder_id, "--replace", "--batch-size", "3"
        )
        body["processors"].pop()
        client.ingest.put_pipeline(id=name, body=body)
        done = put_pipeline(client, index, model_id=tiny.encoder_id, replace_others=True)
        assert (done.replaced, done.calls, state()[0]) == (theirs, theirs, name)
        assert encoder_of(state()[1])["model_id"] == tiny.encoder_id
        assert main(["pipeline", "show", index, "--url", cluster_url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["pipelines"][name] == state()[1]
        # What theirs does goes on, and stays when ours is put again.
        body = state()[1]
        assert not put_pipeline(client, index).changed and state() == (name, body)
        client.index(index=index, id="both", body={"text": NEW})
        assert {"seen", "embedding"} < client.get(index=index, id="both")["_source"].keys()
        capsys.readouterr()
        assert main(["pipeline", "check", index, "--url", cluster_url]) == 0
        assert "new document: the vector is that of the new text\n" in capsys.readouterr().out
        # A load goes by its own way, but through theirs, and leaves the default pipeline where it is.
        more = [Document("1", OLD), Document("2", NEW)]
        done = ingest(client, index, more, encoder=tiny.encoder)
        assert (done.indexed, done.unchanged, state()) == (2, 1, (name, body))
        assert client.get(index=index, id="2")["_source"]["seen"] == 1
        info = read_index(client, index)
        assert info is not None and info.encode == "client"
    finally:
        client.indices.put_settings(index=index, body={"index.default_pipeline": None})
        for pipeline in (name, theirs):
            client.ingest.delete_pipeline(id=pipeline, ignore=404)
    with pytest.raises(IndexingError, match="there is no index"):
        check_writers(client, f"{index}-none")


@pytest.mark.parametrize(
    ("step", "name"),
    [
        incidents.fault(
            step, name, during=f"`oskit pipeline put`, {step}",
            what=f"`oskit` is {'killed' if name == 'SIGKILL' else 'asked to end'} ({name})",
            then="what is written is stored as before; the same command again makes it the default one",
        )
        for step in ("before the pipeline is written", "before it is the default one")
        for name in ("SIGKILL", "SIGTERM")
        if name == "SIGKILL" or "default" in step
    ],
)  # fmt: skip
def test_a_pipeline_put_that_is_killed_changes_nothing_for_writers(
    client, tiny: TinyModels, index, cluster_url, step, name, incident: Incident
):
    ingest(client, index, [Document("1", OLD)], encoder=tiny.encoder)
    pattern = r"PUT /.*_settings" if "default" in step else r"PUT /_ingest/pipeline"
    put = ["pipeline", "put", index, "--model", tiny.encoder_id]
    with FaultyProxy(cluster_url, Fault(pattern, "hang")) as proxy:
        process = subprocess.Popen(
            [sys.executable, "-m", "oskit", *put, "--url", proxy.url], stderr=subprocess.PIPE, text=True
        )
        proxy.wait_for(pattern, wait_s=60)
        incident.begins()
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if name == "SIGKILL" else 143), said
    left = client.ingest.get_pipeline(id=pipeline_name(index), ignore=404)
    assert bool(left) == (name == "SIGKILL" and "default" in step), "what was asked to end takes it back"
    client.index(index=index, id="2", body={"text": NEW})
    assert "embedding" not in client.get(index=index, id="2")["_source"]
    assert put_pipeline(client, index, model_id=tiny.encoder_id).changed
    incident.is_over()
    client.index(index=index, id="2", body={"text": NEW})
    (wanted,) = tiny.encoder.document_weights([NEW])
    assert client.get(index=index, id="2")["_source"]["embedding"] == pytest.approx(wanted, abs=1e-5)
    incident.said(said, *(["asked to end|[Ii]nterrupted"] if name == "SIGTERM" else []))
    client.indices.put_settings(index=index, body={"index.default_pipeline": None})
    client.ingest.delete_pipeline(id=pipeline_name(index))
