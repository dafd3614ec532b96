"""Searching and verifying in a cluster that others use: aliases, others' fields, models that come and go."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from archives import encoder_archive
from opensearchpy import OpenSearch, helpers
from tiny_models import QUERIES, TinyModels, documents, tiny

from oskit.archive.archive import open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.token_weights import DelegatingEncoder
from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.index.mapping import IndexSettings, SparseVectorParameters, delete_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.retire import delete_model, undeploy_model
from oskit.cluster.search.search import search
from oskit.data.collection import Collection
from oskit.errors import ClusterError, IndexingError, SearchError, UsageError
from oskit.evaluation.live.verify import verify

__all__ = ["tiny"]

pytestmark = pytest.mark.integration

KINDS = ("rank_features", "sparse_vector")
EVEN = {"terms": {"n": list(range(0, 40, 2))}}
LOCAL_MODELS = "plugins.ml_commons.local_model.enabled"


@pytest.fixture(scope="module")
def indexes(client: OpenSearch, tiny: TinyModels) -> Iterator[dict[str, str]]:
    """An index of each kind, one searched approximately, each with an alias that hides a half."""
    names = {kind: f"ingtest-living-{uuid.uuid4().hex[:8]}" for kind in KINDS}
    for kind, name in names.items():
        parameters = SparseVectorParameters(approximate_threshold=5 if kind == "sparse_vector" else None)
        settings = IndexSettings(kind, shards=2, sparse_vector=parameters)
        ingest(client, name, documents(), encoder=tiny.encoder, settings=settings)
        client.indices.put_alias(index=name, name=f"{name}-all")
        client.indices.put_alias(index=name, name=f"{name}-even", body={"filter": EVEN})
    yield names
    for name in names.values():
        delete_index(client, name)


@contextmanager
def made_index(client: OpenSearch, properties: dict[str, Any], *documents: dict[str, Any], **settings: Any):
    """An index that others made."""
    name = f"ingtest-others-{uuid.uuid4().hex[:8]}"
    client.indices.create(index=name, body={"settings": settings, "mappings": {"properties": properties}})
    try:
        for number, body in enumerate(documents):
            client.index(index=name, id=str(number), body=body)
        client.indices.refresh(index=name)
        yield name
    finally:
        client.indices.delete(index=name)


@contextmanager
def local_models_paused(client: OpenSearch, seconds: float):
    """As ``--pause-models`` does for a moment."""

    def put(value: bool | None) -> None:
        client.cluster.put_settings(body={"transient": {LOCAL_MODELS: value}})

    put(False)
    back = threading.Timer(seconds, put, (None,))
    back.start()
    try:
        yield
    finally:
        back.join()
        put(None)


WAYS = ["model", "tokens", "analyzer", "bm25", "two-phase"]


@pytest.mark.parametrize(
    ("kind", "way"),
    [pair for pair in itertools.product(KINDS, WAYS) if pair != ("sparse_vector", "analyzer")],
)
def test_an_alias_is_the_index_less_what_it_hides(client, tiny: TinyModels, indexes, kind, way):
    if kind == "sparse_vector" and way == "two-phase":
        for name in (indexes[kind], f"{indexes[kind]}-all"):
            with pytest.raises(UsageError, match="two-phase search works on rank_features"):
                search(client, name, "fox", encoder=tiny.encoder, two_phase=True)
        return
    options: dict[str, Any] = {
        "model": {"model_id": tiny.encoder_id, "explain": True},
        "tokens": {"encoder": tiny.encoder},
        "analyzer": {"analyzer": "bert-uncased"},
        "bm25": {"by": "bm25"},
        "two-phase": {"encoder": tiny.encoder, "two_phase": True},
    }[way]
    if kind == "sparse_vector" and way != "bm25":
        options["method_parameters"] = {"top_n": 50, "heap_factor": 100.0}
    query = "quick brown building permit"
    whole = search(client, indexes[kind], query, size=40, **options)
    same = search(client, f"{indexes[kind]}-all", query, size=40, **options)
    assert [(hit.id, hit.score) for hit in same.hits] == [(hit.id, hit.score) for hit in whole.hits]
    assert same.index == f"{indexes[kind]}-all"
    seen = {hit.id: hit.score for hit in whole.hits if hit.source["n"] % 2 == 0}
    half = search(client, f"{indexes[kind]}-even", query, size=40, **options)
    assert 0 < len(half.hits) < len(whole.hits)
    found = {hit.id: hit.score for hit in half.hits}
    if kind == "rank_features":
        assert found == pytest.approx(seen) and half.total == len(seen)
    else:  # either side may skip one
        assert len(found.keys() ^ seen.keys()) < 3
        assert all(hit.source["n"] % 2 == 0 for hit in half.hits) and all(found.values())
    # Few hits of many: an approximate search would otherwise filter the best few of all.
    few = search(client, f"{indexes[kind]}-even", query, size=3, **options)
    assert [hit.score for hit in few.hits] == pytest.approx([hit.score for hit in half.hits[:3]])


def test_names_of_several_indexes_and_none(client, tiny: TinyModels, indexes):
    one, other = indexes.values()
    both = f"{one}-both"
    client.indices.put_alias(index=f"{one},{other}", name=both)
    with pytest.raises(IndexingError, match=r"an alias of 2 indexes.*Name the index itself"):
        search(client, both, "fox", encoder=tiny.encoder)
    client.indices.delete_alias(index=f"{one},{other}", name=both)
    routed = f"{one}-routed"
    client.indices.put_alias(index=one, name=routed, body={"search_routing": "a"})
    all_of_it = search(client, one, QUERIES[0], encoder=tiny.encoder, size=40)
    shard = client.search_shards(index=one, params={"routing": "a"})["shards"][0][0]["shard"]
    there = client.search(
        index=one, body={"size": 40, "_source": False}, params={"preference": f"_shards:{shard}"}
    )
    on_shard = {hit["_id"] for hit in there["hits"]["hits"]}
    found = search(client, routed, QUERIES[0], encoder=tiny.encoder, size=40)
    assert {hit.id for hit in found.hits} == {hit.id for hit in all_of_it.hits} & on_shard
    assert found.total < all_of_it.total


@pytest.mark.incident(
    during="`search` through an alias",
    what="the alias moves, and the index behind it is deleted in the same call",
    then="the name is looked up again: no search fails or mixes the two",
)
def test_searches_through_an_alias_go_on_while_it_moves(client, incident):
    """Blue and green: the index behind the alias is deleted in the call that moves it."""
    alias, names = f"ingtest-live-{uuid.uuid4().hex[:8]}", []
    done = threading.Event()

    def another() -> str:
        names.append(f"{alias}-{len(names)}")
        properties = {"v": {"type": "rank_features"}}
        client.indices.create(index=names[-1], body={"mappings": {"properties": properties}})
        client.index(index=names[-1], id="1", body={"v": {"fox": 2.0}}, params={"refresh": "true"})
        return names[-1]

    def move() -> None:
        for _ in range(6):
            old, new = names[-1], another()
            actions = [{"remove_index": {"index": old}}, {"add": {"index": new, "alias": alias}}]
            client.indices.update_aliases(body={"actions": actions})
        done.set()

    client.indices.put_alias(index=another(), name=alias)
    mover = threading.Thread(target=move)
    mover.start()
    scores = []
    try:
        while not done.is_set():
            scores.append(search(client, alias, {"fox": 1.5}).hits[0].score)
    finally:
        mover.join()
        client.indices.delete(index=names[-1])
    assert set(scores) == {3.0} and len(scores) > 6
    incident.said("", "")  # a wait for a new index, perhaps


def test_fields_of_others(client, tiny: TinyModels):
    features, chunks = {"type": "rank_features"}, [{"v": {"fox": 1.0, "dog": 3.0}}, {"v": {"fox": 2.0}}]
    both = {"a": {"properties": {"b": features}}, "chunks": {"type": "nested", "properties": {"v": features}}}
    documents = {"a": {"b": {"fox": 2.0}, "c": 1}}, {"a.b": {"fox": 4.0}}, {"chunks": chunks}
    with made_index(client, both, *documents) as name:
        with pytest.raises(IndexingError, match=r"sparse vectors in 2 fields: a\.b, chunks\.v\. .*--field"):
            search(client, name, {"fox": 1.0})
        with pytest.raises(IndexingError, match=r"no sparse vectors in 'a'. It has: a\.b, chunks\.v"):
            search(client, name, {"fox": 1.0}, field="a")
        found = search(client, name, {"fox": 1.5}, field="a.b", explain=True)
        assert [(hit.id, hit.score, hit.matched["fox"].product) for hit in found.hits] == [
            ("1", 6.0, 6.0),
            ("0", 3.0, 3.0),
        ]
        assert found.hits[1].source == {"a": {"c": 1}}
        (hit,) = search(client, name, {"fox": 1.0, "dog": 1.0}, field="chunks.v", explain=True).hits
        assert hit.score == 4.0  # the best chunk, not the sum or the mean
        assert {token: match.product for token, match in hit.matched.items()} == {"dog": 3.0, "fox": 1.0}
        assert hit.source == {"chunks": [{}, {}]}
        with pytest.raises(UsageError, match="two-phase search does not look into the nested"):
            search(client, name, {"fox": 1.0}, field="chunks.v", two_phase=True)


def test_ids_as_keys_are_noticed_in_an_index_of_others(client, tiny: TinyModels):
    (weights,) = tiny.encoder.document_weights(["quick brown fox"], key="id")
    features = {"type": "rank_features"}
    with made_index(client, {"o": {"properties": {"v": features}}}, {"o": {"v": weights}}) as name:
        (query,) = tiny.encoder.query_weights(["quick"], key="id")
        due = sum(query.get(key, 0) * weight for key, weight in weights.items())
        for options in ({"encoder": tiny.encoder}, {"model_id": tiny.encoder_id}):
            assert search(client, name, "quick", **options).hits[0].score == pytest.approx(due, rel=2**-8)
        # An analyzer gives texts, which it would look for without a word.
        with pytest.raises(UsageError, match=r"keyed by token ids.*--archive"):
            search(client, name, "quick", analyzer="bert-uncased")
        assert search(client, name, "quick", analyzer="bert-uncased", encoder=tiny.encoder).hits
        with pytest.raises(SearchError, match="keyed by token ids"):
            search(client, name, {"quick": 1.0})


def test_a_semantic_field_is_searched_by_its_own_model(client, tiny: TinyModels):
    semantic = {
        "type": "semantic",
        "model_id": tiny.encoder_id,
        "sparse_encoding_config": {"prune_type": "none"},
    }
    with made_index(client, {"body": semantic}, {"body": "quick brown fox"}) as name:
        (hit,) = search(client, name, "quick").hits
        (query,) = tiny.encoder.query_weights(["quick"])
        (weights,) = tiny.encoder.document_weights(["quick brown fox"])
        due = sum(query.get(key, 0) * weight for key, weight in weights.items())
        assert hit.score == pytest.approx(due, rel=2**-7)
        assert hit.text == "quick brown fox"
        assert search(client, name, "fox", by="bm25").total == 1
    del semantic["sparse_encoding_config"]  # prunes by a tenth
    docs = [doc for doc in documents(8) if doc.text]
    collection = Collection(queries={"q": QUERIES[0]}, qrels={"q": {"d0": 1}}, corpus=tuple(docs))
    with made_index(client, {"body": semantic}) as name:
        for doc in docs:
            client.index(index=name, id=doc.id, body={"body": doc.passage})
        report = verify(client, name, collection, tiny.encoder, k=5)
        assert report.failures == [] and report.run("BM25")
        assert any("only the weights by max_ratio:0.1" in line for line in report.warnings)


def test_a_closed_index_is_called_so(client):
    with made_index(client, {"v": {"type": "rank_features"}}) as name:
        client.indices.close(index=name)
        with pytest.raises(ClusterError, match="the index is closed"):
            search(client, name, {"fox": 1.0})


def test_what_is_fetched_is_what_is_shown(client, indexes):
    """Not the vector, and the passage only of a document that has nothing else."""
    name = indexes["rank_features"]
    bare = {"embedding": {"fox": 60.0}, "passage": "only a passage"}
    client.index(index=name, id="bare", body=bare, params={"refresh": "true"})
    try:
        first, second, *_ = search(client, name, {"fox": 1.0}).hits
    finally:
        client.delete(index=name, id="bare", params={"refresh": "true"})
    assert (first.id, second.source.keys()) == ("bare", {"text", "title", "n"} & second.source.keys())


def test_a_count_that_stopped_is_called_so(client, cluster_url, capsys):
    with made_index(client, {"v": {"type": "rank_features"}}) as name:
        helpers.bulk(client, ({"_index": name, "v": {"fox": 1.0}} for _ in range(10_002)), chunk_size=5000)
        client.indices.refresh(index=name)
        result = search(client, name, {"fox": 1.0}, size=1)
        assert (result.total, result.total_relation) == (10_000, "gte")
        command = ["search", name, "fox", "--analyzer", "bert-uncased", "-n", "1", "--url", cluster_url]
        assert main(command) == 0
        assert "at least 10,000 documents matched" in capsys.readouterr().out
        assert main([*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["total_relation"] == "gte"


def test_what_opensearch_does_not_take_of_a_query(client, tiny: TinyModels):
    class Heavy(DelegatingEncoder[ArchiveEncoder]):
        """Gives queries 1,500 tokens, the first of them far too heavy."""

        def query_weights(self, texts, *, key="token"):
            return [{"fox": 128.0, **{f"t{number}": 1.0 + number / 1e4 for number in range(1499)}}]

    with made_index(client, {"v": {"type": "rank_features"}}, {"v": {"fox": 2.0, "t0": 9.0}}) as name:
        result = search(client, name, "fox", encoder=Heavy(tiny.encoder))
        assert result.hits[0].score == 128.0  # 64 times 2
        assert result.warning is not None and "1,024 heaviest" in result.warning
        assert "multiplied by 0.5" in result.warning
        for query in ({"fox": -1.0}, {"fox": float("nan")}):
            with pytest.raises(SearchError, match=r"'fox' weighs .*above 0 and up to 64"):
                search(client, name, query)


def test_a_search_pipeline_that_takes_part_is_told(client, tiny: TinyModels, cluster_url, capsys):
    pipeline = f"ingtest-{uuid.uuid4().hex[:8]}"
    enricher = {"neural_query_enricher": {"default_model_id": tiny.encoder_id}}
    client.http.put(f"/_search/pipeline/{pipeline}", body={"request_processors": [enricher]})
    settings = {"index.search.default_pipeline": pipeline}
    try:
        with made_index(client, {"v": {"type": "rank_features"}}, {"v": {"fox": 2.0}}, **settings) as name:
            # OpenSearch refuses an analyzer beside the pipeline's model; its weights are what was asked for.
            command = ["search", name, "fox", "--analyzer", "bert-uncased", "--url", cluster_url]
            assert main(command) == 0
            assert f"through the search pipeline {pipeline}" in capsys.readouterr().out
            assert main([*command, "--two-phase"]) == 0
            assert f"take the place of the index's search pipeline '{pipeline}'" in capsys.readouterr().err
    finally:
        client.http.delete(f"/_search/pipeline/{pipeline}")


@pytest.mark.incident(
    during="`search` and `verify`, by model",
    what="local models are paused (`local_model.enabled: false`)",
    then="it says so once and waits, as long as `--retry-for`",
)
def test_a_model_that_is_paused_is_waited_for(client, cluster_url, tiny: TinyModels, indexes, incident):
    """By search, and by verify in the middle of its questions, as long as any request is tried again."""
    notes: list[str] = []
    asked = {"model_id": tiny.encoder_id, "notify": notes.append}
    with local_models_paused(client, 1):
        assert search(client, indexes["rank_features"], QUERIES[0], **asked).hits
    assert len(notes) == 1 and "waiting for it" in notes[0]
    hasty = connect(ConnectionSettings(url=cluster_url, retry_for=0.5))
    with local_models_paused(client, 1.2), pytest.raises(ClusterError) as told:
        search(hasty, indexes["rank_features"], QUERIES[0], model_id=tiny.encoder_id)
    incident.said([*notes, told.value], "waiting for it", r"for 0.5 s.*local_model.enabled")
    docs = documents()
    queries = {f"q{number}": text for number, text in enumerate(QUERIES)}
    collection = Collection(queries=queries, qrels={name: {"d0": 1} for name in queries}, corpus=tuple(docs))
    paused, steps = contextlib.ExitStack(), list[str]()

    def on_step(what: str) -> None:
        steps.append(what)
        if what.startswith("asking 4"):
            paused.enter_context(local_models_paused(client, 1.5))

    with paused:
        report = verify(client, indexes["rank_features"], collection, tiny.encoder, by="model",
                        model_id=tiny.encoder_id, k=10, on_step=on_step)  # fmt: skip
    assert report.failures == []
    assert [what for what in steps if "waiting for it" in what]
    assert max(report.wall) < 1000, "the waiting is not the query's"


def test_which_model_is_missing_is_said(client, tiny: TinyModels, tmp_path):
    archive = encoder_archive(tmp_path / f"ingtest-own-{uuid.uuid4().hex[:8]}.zip", seed=9)
    own, other = ArchiveEncoder.open(archive), encoder_archive(tmp_path / "other.zip", seed=3)
    model = deploy_archive(client, open_archive(archive))
    name = f"ingtest-missing-{uuid.uuid4().hex[:8]}"
    try:
        ingest(client, name, documents(3), encode="cluster", model_id=model.model_id)
        assert search(client, name, "fox", encoder=own, model_id=model.model_id).warning is None
        with pytest.raises(SearchError, match=r"is another encoder than .*other\.zip.* weighs"):
            search(client, name, "fox", encoder=ArchiveEncoder.open(other), model_id=model.model_id)
        undeploy_model(client, model.model_id, own=True)
        with pytest.raises(
            SearchError, match=rf"{model.model_id}.*is not deployed: UNDEPLOYED.*oskit deploy"
        ):
            search(client, name, "fox")
        delete_model(client, model.model_id, own=True)
        with pytest.raises(SearchError, match=rf"the model {model.model_id}.*was deleted"):
            search(client, name, "fox")
        model = deploy_archive(client, open_archive(archive))
        assert search(client, name, "fox").warning is None, "another of the same content"
        with pytest.raises(UsageError, match="a model does not encode the query by tokens"):
            search(client, name, "fox", by="tokens", encoder=own, model_id=model.model_id)
    finally:
        delete_index(client, name)
        delete_model(client, model.model_id, own=True)
