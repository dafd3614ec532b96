"""Hybrid searches on the real cluster are what is fused here from the lists of their sides."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from archives import WORDS
from opensearchpy import OpenSearch
from tiny_models import QUERIES, TinyModels, documents, index, tiny

from oskit.cluster.index.mapping import IndexSettings, SparseVectorParameters, delete_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.search.hybrid import Hybrid
from oskit.cluster.search.search import Searcher, search
from oskit.data.chunks import Chunking
from oskit.data.documents import Document
from oskit.errors import UsageError

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

KINDS = ("rank_features", "sparse_vector")
DEPTH = 12
BOTH = Hybrid.parse("bm25=0.3,sparse=0.7", depth=DEPTH)


@pytest.fixture(scope="module")
def indexes(client: OpenSearch, tiny: TinyModels) -> Iterator[dict[str, str]]:
    """An index of each kind, one of several shards, with an alias that hides a half."""
    names = {kind: f"ingtest-hybrid-{uuid.uuid4().hex[:8]}" for kind in KINDS}
    for kind, name in names.items():
        approximate = SparseVectorParameters(approximate_threshold=5 if kind == "sparse_vector" else None)
        settings = IndexSettings(kind, shards=3 if kind == "rank_features" else 1, sparse_vector=approximate)
        ingest(client, name, documents(80), encoder=tiny.encoder, settings=settings)
        even = {"filter": {"terms": {"n": list(range(0, 80, 2))}}}
        client.indices.put_alias(index=name, name=f"{name}-even", body=even)
    yield names
    for name in names.values():
        delete_index(client, name)


def bits(scores: dict[str, float]) -> list[tuple[str, float]]:
    return [(document, float(np.float32(score))) for document, score in scores.items()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alias", "filter"), [("", None), ("-even", "n>=30")])
@pytest.mark.parametrize(
    ("way", "fusion"),
    [("model", "min_max"), ("model", "rrf:60"), ("tokens", "z_score"), ("tokens", "l2:harmonic"),
     ("tokens", "min_max:geometric"), ("analyzer", "min_max")],
)  # fmt: skip
def test_the_clusters_hits_are_those_fused_here_bit_for_bit(
    client, tiny, indexes, kind, alias, filter, way, fusion
):
    how = {"model": {"model_id": tiny.encoder_id}, "tokens": {"encoder": tiny.encoder},
           "analyzer": {"by": "analyzer", "encoder": tiny.encoder}}[way]  # fmt: skip
    hybrid = Hybrid.parse("bm25=0.3,sparse=0.7", fusion=fusion, depth=DEPTH)
    searcher = Searcher(client, indexes[kind] + alias, **how)
    queries = [*QUERIES, "fox fox", "zzz", ""]
    lists = searcher.candidates(queries, hybrid, filter=filter)
    for size in (3, DEPTH):  # the scores do not depend on it
        found = searcher.search_many(queries, hybrid=hybrid, size=size, filter=filter)
        for result, candidates in zip(found, lists, strict=True):
            due = candidates.fuse(hybrid.fusion, hybrid.weights, size)
            assert bits({hit.id: hit.score for hit in result.hits}) == bits(due)
            assert not alias or all(hit.source["n"] in range(30, 80, 2) for hit in result.hits)
    assert any(result.hits for result in found)
    paged = searcher.search(QUERIES[0], hybrid=hybrid, size=2, offset=1, filter=filter)
    assert [hit.id for hit in paged.hits] == [hit.id for hit in found[0].hits[1:3]]
    behind = searcher.search_many(queries, hybrid=hybrid, size=2, offset=3, filter="n=40,42")
    assert [result.hits for result in behind] == [[]] * len(queries)


@pytest.mark.parametrize("kind", KINDS)
def test_each_sides_list_is_that_of_its_own_search(client, tiny, indexes, kind):
    """Above nothing, and as deep as told, also where an approximate search would stop at ten."""
    for name in (indexes[kind], f"{indexes[kind]}-even"):
        searcher = Searcher(client, name, encoder=tiny.encoder)
        if kind == "rank_features":
            client.indices.refresh(index=name)
        for query, candidates in zip(QUERIES, searcher.candidates(QUERIES, BOTH), strict=True):
            for number, by in enumerate(("bm25", "tokens")):
                alone = search(client, name, query, by=by, encoder=tiny.encoder if by == "tokens" else None,
                               size=80)  # fmt: skip
                listed = candidates.scores[candidates.lists[number], number]
                assert all(score > 0 for score in listed)
                best = {hit.id: float(np.float32(hit.score)) for hit in alone.hits}
                of_side = {candidates.ids[place]: score for place, score in
                           zip(candidates.lists[number], listed, strict=True)}  # fmt: skip
                assert {key: best[key] for key in of_side} == pytest.approx(of_side)
                assert sorted(of_side.values(), reverse=True)[:DEPTH] == pytest.approx(
                    [hit.score for hit in alone.hits[:DEPTH]]
                )


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_many_chunks_are_fused_by_their_best_one_and_show_it(client, tiny, index, kind):
    draw = random.Random(3)
    long = [Document(f"d{n}", ". ".join(" ".join(draw.choices(WORDS, k=9)) for _ in range(8)), "", {"n": n})
            for n in range(30)]  # fmt: skip
    approximate = SparseVectorParameters(approximate_threshold=5 if kind == "sparse_vector" else None)
    settings = IndexSettings(kind, sparse_vector=approximate, chunking=Chunking(32, 8))
    ingest(client, index, long, encoder=tiny.encoder, settings=settings)
    searcher = Searcher(client, index, encoder=tiny.encoder)
    for only in (None, "n>=10"):
        lists = searcher.candidates(QUERIES, BOTH, filter=only)
        found = searcher.search_many(QUERIES, hybrid=BOTH, filter=only, explain=True)
        for query, result, candidates in zip(QUERIES, found, lists, strict=True):
            assert bits({hit.id: hit.score for hit in result.hits}) == bits(
                candidates.fuse(BOTH.fusion, BOTH.weights, 10)
            )
            alone = searcher.search(query, size=DEPTH, filter=only)
            best = [candidates.ids[place] for place in candidates.lists[1]]
            # An approximate search finds what the grouping of vectors lets it; a merge groups anew.
            assert best and (kind == "sparse_vector" or best == [hit.id for hit in alone.hits])
            for hit in result.hits:
                assert not only or hit.source["n"] >= 10
                if hit.sides["sparse"].rank is not None:
                    assert hit.passage.text in hit.source["text"]


def test_an_explained_hit_tells_what_each_side_adds(client, tiny, indexes):
    (query,) = QUERIES[:1]
    found = search(client, indexes["rank_features"], query, encoder=tiny.encoder, hybrid=BOTH, explain=True)
    assert found.hybrid == {"weights": {"bm25": 0.3, "sparse": 0.7}, "fusion": "min_max",
                            "pagination_depth": DEPTH}  # fmt: skip
    for hit in found.hits:
        bm25, sparse = hit.sides["bm25"], hit.sides["sparse"]
        assert hit.score == pytest.approx(0.3 * bm25.normalized + 0.7 * sparse.normalized, rel=1e-5)
        assert sum(side.share for side in hit.sides.values()) == pytest.approx(1)
        if sparse.rank is not None:
            assert sum(match.product for match in hit.matched.values()) == pytest.approx(
                sparse.score, rel=4e-3
            )


@contextmanager
def with_pipeline(client: OpenSearch, index: str) -> Iterator[str]:
    name = f"ingtest-{uuid.uuid4().hex[:8]}"
    client.transport.perform_request("PUT", f"/_search/pipeline/{name}", body={
        "request_processors": [{"filter_query": {"query": {"match_none": {}}}}]})  # fmt: skip
    client.indices.put_settings(index=index, body={"index.search.default_pipeline": name})
    try:
        yield name
    finally:
        client.indices.put_settings(index=index, body={"index.search.default_pipeline": None})
        client.transport.perform_request("DELETE", f"/_search/pipeline/{name}")


def test_the_indexs_own_pipeline_takes_no_part_and_that_is_told(client, tiny, indexes):
    name = indexes["rank_features"]
    before = search(client, name, QUERIES[0], encoder=tiny.encoder, hybrid=BOTH)
    with with_pipeline(client, name) as pipeline:
        found = search(client, name, QUERIES[0], encoder=tiny.encoder, hybrid=BOTH, explain=True)
        assert pipeline in str(found.warning) and found.search_pipeline is None
        assert [hit.score for hit in found.hits] == [hit.score for hit in before.hits]
        assert any(hit.sides["sparse"].rank for hit in found.hits)


def test_dense_vectors_are_a_side_and_fields_that_would_find_nothing_are_refused(client, tiny, index):
    """An index of somebody else's, without passages."""
    client.indices.create(index=index, body={"settings": {"index.knn": True}, "mappings": {"properties": {
        "headline": {"type": "text"}, "lang": {"type": "keyword"}, "weights": {"type": "rank_features"},
        "vec": {"type": "knn_vector", "dimension": 2, "method": {
            "name": "hnsw", "engine": "lucene", "space_type": "innerproduct"}}}}})  # fmt: skip
    rows = [{"headline": "fox dog" if n % 3 else "cat", "lang": "en", "vec": [1.0, n / 10],
             "weights": {"fox": 1.0 + n}} for n in range(12)]  # fmt: skip
    for number, row in enumerate(rows):
        client.index(index=index, id=f"d{number}", body=row, params={"refresh": "true"})
    searcher = Searcher(client, index, by="tokens", encoder=tiny.encoder)
    three = Hybrid.parse(
        "bm25:headline=1,sparse=1,dense=2", depth=5, embed=lambda texts: [[0.0, 1.0]] * len(texts)
    )
    assert "0.25" in str(three.told)
    (candidates,) = searcher.candidates(["fox"], three)
    assert [candidates.ids[place] for place in candidates.lists[2]] == ["d11", "d10", "d9", "d8", "d7"]
    result = searcher.search("fox", hybrid=three, size=5)
    assert bits({hit.id: hit.score for hit in result.hits}) == bits(
        candidates.fuse(three.fusion, three.weights, 5)
    )
    for sides, told in (("bm25=1,sparse=1", "not known.*headline"), ("bm25:lang=1,sparse=1", "is keyword"),
                        ("bm25:nothing=1,sparse=1", "does not exist")):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            searcher.search("fox", hybrid=Hybrid.parse(sides))


def test_what_does_nothing_or_goes_wrong_in_silence_is_refused(client, tiny, indexes):
    searcher = Searcher(client, indexes["rank_features"], encoder=tiny.encoder)
    for wanted, told in (({"two_phase": True}, "two phases"), ({"size": DEPTH + 1}, "are fused"),
                         ({"sort": "n"}, "sorted")):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            searcher.search("fox", hybrid=BOTH, **wanted)
    with pytest.raises(UsageError, match="text"):
        searcher.search({"fox": 1.0}, hybrid=BOTH)
    with pytest.raises(UsageError, match="exclude each other"):
        dense = Hybrid.parse("sparse=1,dense=1", embed=lambda texts: [[1.0]] * len(texts))
        Searcher(client, indexes["sparse_vector"], encoder=tiny.encoder).search("fox", hybrid=dense)
