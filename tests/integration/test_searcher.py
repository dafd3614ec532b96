"""One `Searcher` for many queries answers as `search` does, looks things up once, and notices changes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from archives import encoder_archive
from opensearchpy import OpenSearch
from tiny_models import QUERIES, TinyModels, documents, tiny

from oskit.archive.archive import open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.cluster.index.mapping import IndexSettings, SparseVectorParameters, delete_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.retire import delete_model, undeploy_model
from oskit.cluster.search.search import Searcher, search
from oskit.errors import SearchError

__all__ = ["tiny"]

pytestmark = pytest.mark.integration

KINDS = ("rank_features", "sparse_vector")


@contextmanager
def counted(client: OpenSearch, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The requests that are sent inside."""
    sent: list[str] = []
    send = client.transport.perform_request

    def perform(method, url, *args, **kwargs):
        sent.append(f"{method} {url}")
        return send(method, url, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(client.transport, "perform_request", perform)
        yield sent


@pytest.fixture(scope="module")
def indexes(client: OpenSearch, tiny: TinyModels) -> Iterator[dict[str, str]]:
    """An index of each kind, with an alias that hides a half."""
    names = {kind: f"ingtest-searcher-{uuid.uuid4().hex[:8]}" for kind in KINDS}
    for kind, name in names.items():
        parameters = SparseVectorParameters(approximate_threshold=5 if kind == "sparse_vector" else None)
        ingest(client, name, documents(), encoder=tiny.encoder,
               settings=IndexSettings(kind, sparse_vector=parameters))  # fmt: skip
        even = {"filter": {"terms": {"n": list(range(0, 40, 2))}}}
        client.indices.put_alias(index=name, name=f"{name}-even", body=even)
    yield names
    for name in names.values():
        delete_index(client, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["model", "tokens", "bm25", "explained", "alias"])
def test_many_queries_at_once_and_by_threads_are_answered_as_one_by_one(client, tiny, indexes, kind, way):
    how = {"bm25": {"by": "bm25"}, "model": {"model_id": tiny.encoder_id}}.get(way, {"encoder": tiny.encoder})
    wanted = {"explain": True, "size": 7} if way == "explained" else {"size": 7}
    name = indexes[kind] + ("-even" if way == "alias" else "")
    queries = [*QUERIES, "", "fox fox", "\ud800"] * 9  # more than go into one request
    due = {query: search(client, name, query, **how, **wanted).hits for query in set(queries)}
    searcher = Searcher(client, name, **how)
    many = searcher.search_many(queries, **wanted)
    assert [result.hits for result in many] == [due[query] for query in queries]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda query: searcher.search(query, **wanted), queries))
    assert [result.hits for result in threaded] == [due[query] for query in queries]


def test_a_query_that_is_refused_costs_the_others_nothing(client, tiny, indexes):
    searcher = Searcher(client, indexes["sparse_vector"], by="tokens", encoder=tiny.encoder)
    queries = [QUERIES[0], {"99999999999": 1.0}, QUERIES[1]]
    one, bad, other = searcher.search_many(queries, return_errors=True)
    assert one.hits == searcher.search(QUERIES[0]).hits and other.hits
    assert isinstance(bad, SearchError) and "holds ids below 65,536" in str(bad)
    with pytest.raises(SearchError, match="holds ids below"):
        searcher.search_many(queries)


def test_what_is_looked_up_is_looked_up_once(client, tiny, indexes, monkeypatch):
    name = indexes["rank_features"]
    for searcher, due in (
        (Searcher(client, name, model_id=tiny.encoder_id), 2),
        (Searcher(client, name, model_id=tiny.encoder_id, trust_s=60), 1),
    ):
        for _ in range(2):
            searcher.search("fox")
        with counted(client, monkeypatch) as sent:
            for query in QUERIES:
                searcher.search(query)
        assert len(sent) == due * len(QUERIES), sent
        with counted(client, monkeypatch) as sent:
            searcher.search_many(QUERIES * 20)
        assert len(sent) == due * 2, sent


@pytest.mark.incident(
    during="a `Searcher` that goes on asking",
    what="the alias moves to an index of another kind, which is then deleted",
    then="the next query is answered by what the name stands for; that it stands for nothing is said",
)
def test_an_alias_that_moves_is_noticed(client, tiny, indexes, incident):
    alias = f"ingtest-moving-{uuid.uuid4().hex[:8]}"
    last = f"{alias}-last"
    searcher = Searcher(client, alias, encoder=tiny.encoder)
    with pytest.raises(SearchError, match="there is no index"):
        searcher.search("fox")
    ingest(client, last, documents(3), encoder=tiny.encoder)
    before = None
    for kind in (*KINDS, *KINDS):
        actions = [{"add": {"index": indexes[kind], "alias": alias}}]
        actions += [{"remove": {"index": before, "alias": alias}}] if before else []
        client.indices.update_aliases(body={"actions": actions})
        before = indexes[kind]
        one, many = searcher.search(QUERIES[0]), searcher.search_many(QUERIES[:1])[0]
        assert one.hits == many.hits == search(client, before, QUERIES[0], encoder=tiny.encoder).hits
        assert one.key == ("id" if kind == "sparse_vector" else "token")
    # The same index, but only half of it is to be seen.
    half = {"index": before, "alias": alias, "filter": {"terms": {"n": list(range(0, 40, 2))}}}
    client.indices.update_aliases(body={"actions": [{"add": half}]})
    assert all(hit.source["n"] % 2 == 0 for hit in searcher.search(QUERIES[0], size=40).hits)
    gone = [{"remove": {"index": before, "alias": alias}}, {"add": {"index": last, "alias": alias}}]
    client.indices.update_aliases(body={"actions": gone})
    assert {hit.id for hit in searcher.search(QUERIES[0]).hits} <= {"d0", "d1", "d2"}
    delete_index(client, last)
    with pytest.raises(SearchError) as told:
        searcher.search_many(QUERIES)
    incident.said(told.value, "there is no index")


def test_an_index_that_is_made_anew_is_noticed(client, tiny):
    name = f"ingtest-anew-{uuid.uuid4().hex[:8]}"
    searcher = Searcher(client, name, encoder=tiny.encoder, trust_s=60)
    try:
        for kind in KINDS:
            ingest(client, name, documents(), encoder=tiny.encoder, settings=IndexSettings(kind),
                   recreate=True)  # fmt: skip
            due = search(client, name, QUERIES[0], encoder=tiny.encoder).hits
            assert searcher.search(QUERIES[0]).hits == due  # even where it is believed: the query is refused
    finally:
        delete_index(client, name)


def test_a_model_that_is_deployed_under_another_id_is_found(client, tiny, tmp_path):
    archive = encoder_archive(tmp_path / f"ingtest-again-{uuid.uuid4().hex[:8]}.zip", seed=5)
    name, made = f"ingtest-again-{uuid.uuid4().hex[:8]}", []
    try:
        made.append(deploy_archive(client, open_archive(archive)).model_id)
        ingest(client, name, documents(8), encoder=ArchiveEncoder.open(archive), model_id=made[0])
        searcher = Searcher(client, name)
        first = searcher.search(QUERIES[0])
        assert first.by == "model" and searcher.search(QUERIES[0]).hits == first.hits
        undeploy_model(client, made[0], own=True)
        delete_model(client, made[0], own=True)
        with pytest.raises(SearchError, match="was deleted"):
            searcher.search(QUERIES[0])
        made.append(deploy_archive(client, open_archive(archive)).model_id)
        assert searcher.search(QUERIES[0]).hits == first.hits
        assert searcher.search_many(QUERIES[:1])[0].hits == first.hits
    finally:
        delete_index(client, name)
        delete_model(client, made[-1], own=True)
