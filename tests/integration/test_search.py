"""Searching a real index in every way: the cluster's scores are the encoder's dot products."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import uuid
from collections.abc import Iterator

import numpy as np
import pytest
from archives import encoder_archive, write_manifest
from opensearchpy import OpenSearch
from tiny_models import QUERIES, TinyModels, documents, tiny

from oskit.archive.encoder import ArchiveEncoder
from oskit.cli.main import main
from oskit.cluster.index.mapping import IndexInfo, IndexSettings, delete_index, index_body
from oskit.cluster.index.recreate import create
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.retire import undeploy_model
from oskit.cluster.search.search import search
from oskit.errors import ClusterError, ModelError, SearchError, UsageError

__all__ = ["tiny"]

pytestmark = pytest.mark.integration

KINDS = ("rank_features", "sparse_vector")
ROUNDING = 2**-8
"""Weights are stored with 9 significant bits: at most this part of a score may be missing."""


@pytest.fixture(scope="module")
def indexes(client: OpenSearch, tiny: TinyModels) -> Iterator[dict[str, str]]:
    """An index of each kind with the same documents, encoded by an inference-free encoder."""
    names = {kind: f"ingtest-search-{uuid.uuid4().hex[:8]}" for kind in KINDS}
    for kind, name in names.items():
        ingest(client, name, documents(), encoder=tiny.inference_free, settings=IndexSettings(kind))
    yield names
    for name in names.values():
        delete_index(client, name)


def exact(tiny: TinyModels, query: str, *, symmetric: bool) -> dict[str, float]:
    """Dot products of the query with every document that shares a token with it."""
    docs = documents()
    encoder = tiny.encoder if symmetric else tiny.inference_free
    matrix = encoder.document_matrix([doc.passage for doc in docs])
    scores = np.asarray((matrix @ encoder.query_matrix([query]).T).todense()).ravel()
    return {doc.id: float(score) for doc, score in zip(docs, scores, strict=True) if score > 0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["model", "tokenizer", "tokens", "tokens-symmetric"])
@pytest.mark.parametrize("query", QUERIES)
def test_scores_are_the_exact_dot_products(client, tiny: TinyModels, indexes, kind, way, query):
    symmetric = way in ("model", "tokens-symmetric")
    options = {
        "model": {"by": "model", "model_id": tiny.encoder_id},
        "tokenizer": {"by": "tokenizer", "model_id": tiny.tokenizer_id},
        "tokens": {"encoder": tiny.inference_free},
        "tokens-symmetric": {"encoder": tiny.encoder},
    }[way]
    result = search(client, indexes[kind], query, size=40, **options)
    expected = exact(tiny, query, symmetric=symmetric)
    found = {hit.id: hit.score for hit in result.hits}
    assert found == pytest.approx(expected, rel=ROUNDING)
    assert len(found) > 3
    assert result.total == len(found)
    assert "embedding" not in result.hits[0].source


@pytest.mark.parametrize(
    ("kind", "way"),
    [*itertools.product(KINDS, ["model", "tokenizer", "tokens"]), ("rank_features", "analyzer")],
)
def test_explained_products_sum_up_to_the_score(client, tiny: TinyModels, indexes, kind, way):
    options = {
        "model": {"model_id": tiny.encoder_id},
        "tokenizer": {"by": "tokenizer"},
        "tokens": {"encoder": tiny.inference_free},
        "analyzer": {"analyzer": "bert-uncased"},
    }[way]
    result = search(client, indexes[kind], "quick brown building", explain=True, **options)
    assert result.by == way
    assert len(result.hits) > 3
    for hit in result.hits:
        assert hit.matched
        assert sum(match.product for match in hit.matched.values()) == pytest.approx(hit.score, rel=ROUNDING)
        assert "embedding" not in hit.source


def test_a_model_that_is_not_in_memory_yet_is_waited_for(client, tiny: TinyModels, indexes):
    """As after the restart of a node; there the cluster deploys its models again by itself."""
    undeploy_model(client, tiny.encoder_id, own=True)
    changed = {"body": {"doc": {"model_state": "DEPLOYED"}}, "params": {"refresh": "true"}}
    client.update(index=".plugins-ml-model", id=tiny.encoder_id, **changed)
    deploy = ("POST", f"/_plugins/_ml/models/{tiny.encoder_id}/_deploy")
    again = threading.Timer(1, client.transport.perform_request, deploy)
    again.start()
    notes: list[str] = []
    try:
        options = {"model_id": tiny.encoder_id, "notify": notes.append}
        result = search(client, indexes["rank_features"], QUERIES[0], **options)
    finally:
        again.join()
    assert result.hits
    assert len(notes) == 1 and "waiting for it" in notes[0]
    search(client, indexes["rank_features"], QUERIES[0], **options)
    assert len(notes) == 1


def test_the_analyzers_weights_are_read_from_its_payloads(client, indexes):
    result = search(client, indexes["rank_features"], "quick fox", analyzer="bert-uncased", explain=True)
    weights = result.query_weights
    assert weights is not None and set(weights) == {"quick", "fox"}
    assert all(1 < weight < 20 for weight in weights.values())


def test_an_analyzer_finds_token_ids_but_does_not_tell_them(client, tiny: TinyModels):
    name = f"ingtest-analyzer-{uuid.uuid4().hex[:8]}"
    create(client, name, index_body(IndexInfo(name, "sparse_vector", "id"), IndexSettings("sparse_vector")))
    try:
        fox = "4419"  # in the vocabulary of bert-uncased
        client.index(index=name, id="1", body={"embedding": {fox: 2.0}}, params={"refresh": "true"})
        (hit,) = search(client, name, "a fox", analyzer="bert-uncased").hits
        assert hit.score > 2
        with pytest.raises(UsageError, match=r"keyed by token ids, which an analyzer does not tell"):
            search(client, name, "fox", analyzer="bert-uncased", explain=True)
    finally:
        delete_index(client, name)


def test_without_options_the_index_tells_how(client, tiny: TinyModels, indexes):
    result = search(client, indexes["rank_features"], "building permit")
    assert result.by == "model"
    expected = exact(tiny, "building permit", symmetric=False)
    assert {hit.id: hit.score for hit in result.hits} == pytest.approx(
        {hit.id: expected[hit.id] for hit in result.hits}, rel=ROUNDING
    )


def test_bm25_searches_the_same_passages(client, indexes):
    result = search(client, indexes["sparse_vector"], "permit", by="bm25", size=40)
    expected = {doc.id for doc in documents() if "permit" in doc.passage.split()}
    assert {hit.id for hit in result.hits} == expected


def test_two_phases_give_the_same_order(client, tiny: TinyModels, indexes):
    name = indexes["rank_features"]
    one = search(client, name, QUERIES[1], encoder=tiny.encoder)
    two = search(client, name, QUERIES[1], encoder=tiny.encoder, two_phase=True)
    assert [hit.score for hit in two.hits] == pytest.approx([hit.score for hit in one.hits], rel=1e-4)
    with pytest.raises(UsageError, match="two-phase search works on rank_features"):
        search(client, indexes["sparse_vector"], "fox", encoder=tiny.encoder, two_phase=True)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_queries_are_safe(client, tiny: TinyModels, indexes, kind):
    for query in [
        "",
        "  ",
        "\x00",
        "\ud800",
        '"\\{}[] fox',
        "\N{GRINNING FACE}",
        "fox " * 3000,
        "[CLS] [SEP]",
    ]:
        for options in ({"model_id": tiny.encoder_id}, {"by": "tokenizer"}, {"encoder": tiny.encoder}):
            result = search(client, indexes[kind], query, **options)
            assert bool(result.hits) == ("fox" in query), (query[:10], options)


def test_more_hits_than_the_default_of_sparse_vector(client, tiny: TinyModels, indexes):
    query = " ".join(QUERIES)
    counts = {
        kind: len(search(client, indexes[kind], query, encoder=tiny.encoder, size=35).hits) for kind in KINDS
    }
    assert counts == {"rank_features": 35, "sparse_vector": 35}
    result = search(client, indexes["sparse_vector"], query, encoder=tiny.encoder,
                    method_parameters={"top_n": 5, "heap_factor": 2.0})  # fmt: skip
    assert len(result.hits) == 10
    with pytest.raises(UsageError, match="method parameters are for sparse_vector"):
        search(client, indexes["rank_features"], query, encoder=tiny.encoder, method_parameters={"top_n": 5})


def test_an_index_by_ids_in_rank_features_is_searched_by_model_too(client, tiny: TinyModels):
    """As for encoders with several tokens of the same text, where texts would lose weights."""
    name = f"ingtest-ids-{uuid.uuid4().hex[:8]}"
    create(client, name, index_body(IndexInfo(name, "rank_features", "id", encode="client"), IndexSettings()))
    try:
        (weights,) = tiny.encoder.document_weights(["quick brown fox"], key="id")
        client.index(index=name, id="1", body={"embedding": weights}, params={"refresh": "true"})
        result = search(client, name, "quick", model_id=tiny.encoder_id, explain=True)
        (query,) = tiny.encoder.query_weights(["quick"], key="id")
        assert result.hits[0].score == pytest.approx(
            sum(query.get(key, 0) * weight for key, weight in weights.items()), rel=ROUNDING
        )
        assert all(token.isdecimal() for token in result.hits[0].matched)
    finally:
        delete_index(client, name)


def test_an_index_of_others_is_searched_by_its_mapping(client, tiny: TinyModels):
    name = f"ingtest-foreign-{uuid.uuid4().hex[:8]}"
    client.indices.create(index=name, body={"mappings": {"properties": {"v": {"type": "rank_features"}}}})
    try:
        client.index(index=name, id="1", body={"v": {"fox": 2.0}}, params={"refresh": "true"})
        assert search(client, name, {"fox": 1.5}).hits[0].score == 3.0
        with pytest.raises(SearchError, match="--model"):
            search(client, name, "fox")
        with pytest.raises(UsageError, match="no passages for BM25"):
            search(client, name, "fox", by="bm25")
    finally:
        delete_index(client, name)


def test_errors_say_what_to_do(client, tiny: TinyModels, indexes):
    name = indexes["rank_features"]
    for error, message, options in [
        (SearchError, r"bert-uncased or mbert-uncased", {"analyzer": "nonsense"}),
        (ModelError, r"no model 'ingtest-nothing'", {"model_id": "ingtest-nothing"}),
        (
            SearchError,
            r"is no tokenizer but SPARSE_ENCODING",
            {"by": "tokenizer", "model_id": tiny.encoder_id},
        ),
        (UsageError, r"at least 1, not 0", {"size": 0}),
        (UsageError, r"--archive DIR", {"by": "tokens"}),
    ]:
        with pytest.raises(error, match=message):
            search(client, name, "fox", **options)
    with pytest.raises(SearchError, match=r"no index 'ingtest-none'.*oskit ingest ingtest-none"):
        search(client, "ingtest-none", "fox")
    with pytest.raises(ClusterError, match=r"up to 64"):
        search(client, name, {"fox": 65.0})
    with pytest.raises(ClusterError, match=r"more tokens than a query may have"):
        search(client, name, {f"t{number}": 1.0 for number in range(1100)})


def test_a_recorded_model_of_another_format_is_no_other_encoder(client, tiny: TinyModels, indexes):
    name = indexes["rank_features"]
    before = client.indices.get_mapping(index=name)[name]["mappings"]["_meta"]
    recorded = {**before["oskit"], "encoder_sha256": "0" * 64, "model_id": tiny.encoder_id}
    client.indices.put_mapping(index=name, body={"_meta": {"oskit": recorded}})
    try:
        assert search(client, name, "fox", model_id=tiny.encoder_id).warning is None
    finally:
        client.indices.put_mapping(index=name, body={"_meta": before})


def test_a_query_by_another_encoder_is_told(client, tiny: TinyModels, indexes, tmp_path):
    other = ArchiveEncoder.open(encoder_archive(tmp_path / "other.zip", seed=3))
    result = search(client, indexes["rank_features"], "fox", encoder=other)
    assert result.warning is not None and "another archive" in result.warning
    for options in (
        {"encoder": tiny.encoder},
        {"model_id": tiny.encoder_id},
        {"model_id": tiny.tokenizer_id},
    ):
        assert search(client, indexes["rank_features"], "fox", **options).warning is None


def test_the_command(cluster_url, tiny: TinyModels, indexes, capsys, tmp_path):
    arguments = ["search", indexes["rank_features"], "quick fox", "--url", cluster_url]
    assert main([*arguments, "--explain"]) == 0
    said = capsys.readouterr().out
    assert "  1. " in said and "fox" in said and " * " in said
    assert main([*arguments, "--archive", str(tiny.archive), "--json", "-n", "2"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["by"] == "tokens" and len(answer["hits"]) == 2
    assert main([*arguments, "--by", "bm25"]) == 0
    capsys.readouterr()
    assert main(["search", "ingtest-none", "fox", "--url", cluster_url]) == 7
    assert "oskit ingest" in capsys.readouterr().err
    arguments[1] = indexes["sparse_vector"]
    assert main([*arguments, "--archive", str(tiny.archive), "--explain"]) == 0
    told = capsys.readouterr()
    assert "fox " in told.out, "ids are shown as tokens where an encoder is given"
    assert "directions" not in told.err
    dense = shutil.copy(tiny.archive, tmp_path / "dense.zip")
    write_manifest(dense, vocabulary={"size": 200, "key_format": "token", "directions": True})
    assert main([*arguments, "--archive", str(dense), "--explain"]) == 0
    assert "names of directions" in capsys.readouterr().err
