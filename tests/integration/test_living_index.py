"""Loads into indexes that others use: what serves goes on, what does not fit is refused, nothing is lost."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from archives import encoder_archive
from opensearchpy import OpenSearch
from tiny_models import TinyModels, documents, encoder_of, index, tiny, write_documents

from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.token_weights import Prune
from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.index import trials
from oskit.cluster.index.mapping import IndexSettings, SparseVectorParameters, read_index
from oskit.cluster.index.pipeline import pipeline_name
from oskit.cluster.ingest.load import ingest
from oskit.data.documents import Document, Refusal
from oskit.errors import ClusterError, ClusterSettingsError, IndexingError

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

GOOD = [Document("1", "quick fox"), Document("2", "brown dog")]


def state(client: OpenSearch, name: str) -> dict[str, Any]:
    """All that a command that was refused must leave as it was, of every index and pipeline of this name."""
    found = client.indices.get(index=f"{name}*", params={"expand_wildcards": "all"})
    client.indices.refresh(index=f"{name}*")
    pipelines = client.ingest.get_pipeline(params={"ignore": 404})
    counts = {each: client.count(index=each)["count"] for each in found}
    return {
        "indexes": found,
        "counts": counts,
        "pipelines": {k: v for k, v in pipelines.items() if name in k},
    }


@contextmanager
def searches(url: str, name: str) -> Iterator[list[Exception]]:
    """Searches all the while; yields what failed."""
    client, stop, failed = connect(ConnectionSettings(url=url, retry_for=0)), threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                client.search(index=name, body={"query": {"match_all": {}}})
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield failed
    finally:
        stop.set()
        thread.join()


def test_an_alias_is_loaded_while_it_serves(cluster_url, client, tiny: TinyModels, index):
    ingest(client, index, GOOD, encoder=tiny.encoder)
    ingest(client, sibling := f"{index}-old", GOOD[:1], encoder=tiny.encoder)
    alias = f"{index}-live"
    for name, writes in ((index, True), (sibling, False)):
        client.indices.put_alias(index=name, name=alias, body={"is_write_index": writes})
    before = state(client, sibling)
    try:
        with searches(cluster_url, alias) as failed:
            report = ingest(client, alias, documents(), encoder=tiny.encoder)
        assert not failed and report.index == index
        assert client.count(index=index)["count"] == 42
        assert state(client, sibling) == before

        def moving() -> Iterator[Document]:
            yield from GOOD
            client.indices.update_aliases(
                body={"actions": [{"remove": {"index": name, "alias": alias}} for name in (index, sibling)]}
            )

        with pytest.raises(IndexingError, match=r"was moved away while .* Move it back"):
            ingest(client, alias, moving(), encoder=tiny.encoder)
        client.indices.put_alias(index=index, name=alias, body={"index_routing": "1"})
        with pytest.raises(IndexingError, match=r"routing '1'.*Name the index itself"):
            ingest(client, alias, GOOD, encoder=tiny.encoder)
    finally:
        client.indices.delete(index=sibling)


def test_recreating_keeps_the_name_and_what_others_keep_with_it(client, tiny: TinyModels, index):
    ingest(client, index, documents(), encode="cluster", model_id=tiny.encoder_id)
    alias = {"filter": {"term": {"n": 3}}, "is_write_index": True, "is_hidden": True}
    client.indices.put_alias(index=index, name=f"{index}-a", body=alias)
    client.indices.put_settings(index=index, body={"index": {"refresh_interval": "7s"}})
    own = client.indices.get_mapping(index=index)[index]["mappings"]["_meta"]
    mapping = {"_meta": {**own, "theirs": 1}, "properties": {"when": {"type": "date"}}}
    client.indices.put_mapping(index=index, body=mapping)
    told: list[str] = []
    settings = IndexSettings("sparse_vector")
    report = ingest(
        client, index, documents(), encoder=tiny.encoder, settings=settings, recreate=True, notify=told.append
    )
    assert report.indexed == 40 and report.read == 40
    found = state(client, index)
    assert list(found["indexes"]) == [index] and found["counts"] == {index: 40}
    assert found["pipelines"] == {}, "ours, and nobody needs it any more"
    assert found["indexes"][index]["aliases"] == {f"{index}-a": alias}
    assert found["indexes"][index]["mappings"]["_meta"]["theirs"] == 1
    assert "refresh_interval=7s" in told[-1] and "the mapping of when" in told[-1]


def test_a_trial_is_seen_by_no_alias_that_an_index_template_gives(client, tiny: TinyModels, index):
    alias = f"{index}-live"
    template = {"aliases": {alias: {"is_write_index": True}, f"{index}-too": {}}}
    client.indices.put_index_template(
        name=index, body={"index_patterns": [f"{index}*"], "template": template, "priority": 500}
    )
    seen: list[set[str]] = []

    def watched() -> Iterator[Document]:
        for doc in documents(20):
            seen.append(set(client.indices.get_alias(name=f"{index}-live,{index}-too")))
            yield doc

    try:
        ingest(client, index, GOOD, encoder=tiny.encoder)
        ingest(client, index, watched(), encoder=tiny.encoder, recreate=True)
        assert seen and all(names == {index} for names in seen)
        assert client.count(index=alias)["count"] == 20
    finally:
        client.indices.delete_index_template(name=index)


def test_an_index_that_does_not_record_its_passage_field_is_loaded_as_before(client, tiny: TinyModels, index):
    ingest(client, index, GOOD, encoder=tiny.encoder)
    meta = {"oskit": {"kind": "rank_features", "encode": "client"}}
    client.indices.put_mapping(index=index, body={"_meta": meta})
    assert ingest(client, index, documents(), encoder=tiny.encoder).indexed == 40


def test_a_trial_that_could_not_be_made_is_not_told_as_deleted(
    cluster_url, client, tiny: TinyModels, index, tmp_path, capsys
):
    source = str(write_documents(tmp_path / "docs.jsonl", GOOD))
    ingest(client, index, GOOD, encoder=tiny.encoder)
    block = "cluster.blocks.create_index"
    client.cluster.put_settings(body={"persistent": {block: True}})
    try:
        how = ["--archive", str(tiny.archive), "--recreate", "--url", cluster_url]
        assert main(["ingest", index, source, *how]) == 7
        assert "Changed in the cluster" not in capsys.readouterr().err
    finally:
        client.cluster.put_settings(body={"persistent": {block: None}})


Cause = tuple[list[Document | Refusal], str, Callable[[OpenSearch, str], object] | None]

COSTS_NOTHING: dict[str, Cause] = {
    "an empty source": ([], "stays as it is: there are no documents", None),
    "records that are refused here": ([Refusal("f:1", "not JSON")], "stays as it is: all 1 records", None),
    "documents that the cluster refuses": (
        [Document("1", "a", fields={"": 1})],
        "stays as it is: .*empty",
        None,
    ),
    "a read-only index": (
        [*GOOD],
        "index.blocks.write blocks it",
        lambda client, name: client.indices.put_settings(index=name, body={"index.blocks.write": True}),
    ),
    "a closed index": ([*GOOD], "the index is closed", lambda client, name: client.indices.close(index=name)),
    "an alias whose filter the new index cannot have": (
        [*GOOD],
        "failed to parse filter",
        lambda client, name: (
            client.indices.put_mapping(index=name, body={"properties": {"q": {"type": "nested"}}}),
            client.indices.put_alias(
                index=name,
                name=f"{name}-a",
                body={"filter": {"nested": {"path": "q", "query": {"term": {"q.x": 1}}}}},
            ),
        ),
    ),
}


@pytest.mark.parametrize("cause", COSTS_NOTHING)
def test_what_cannot_work_never_costs_an_index(client, tiny: TinyModels, index, cause: str):
    docs, said, change = COSTS_NOTHING[cause]
    how = {"encode": "cluster", "model_id": tiny.encoder_id}
    ingest(client, index, GOOD, **how)
    if change is not None:
        change(client, index)
    look = client.indices.get
    before = look(index=f"{index}*", params={"expand_wildcards": "all"})
    with pytest.raises(ClusterError, match=said):
        ingest(client, index, docs, **how, recreate=True)
    assert look(index=f"{index}*", params={"expand_wildcards": "all"}) == before
    assert pipeline_name(index) in client.ingest.get_pipeline(id=pipeline_name(index))


def test_more_shards_than_the_cluster_may_have_never_cost_an_index(client, tiny: TinyModels, index):
    ingest(client, index, GOOD, encoder=tiny.encoder)
    before = state(client, index)
    limit = "cluster.max_shards_per_node"
    client.cluster.put_settings(body={"transient": {limit: 100}})
    try:
        with pytest.raises(IndexingError, match=r"maximum .*shards open"):
            ingest(
                client, index, GOOD, encoder=tiny.encoder, settings=IndexSettings(shards=300), recreate=True
            )
    finally:
        client.cluster.put_settings(body={"transient": {limit: None}})
    assert state(client, index) == before


def test_a_trial_that_was_killed_is_swept_and_one_at_work_is_not(
    client, tiny: TinyModels, index, monkeypatch
):
    ingest(client, index, GOOD, encoder=tiny.encoder)
    for pid in (2**22 + 1, None):  # no process has the first
        body = {"mappings": {"_meta": {"oskit": {"trial": True, "for": index, "pid": pid, "kind": "x"}}}}
        if pid:
            body["mappings"]["_meta"]["oskit"]["host"] = socket.gethostname()
        client.indices.create(index=f"{index}-oskit-trial-{pid or 'elsewhere'}".lower(), body=body)
    ingest(client, index, GOOD, encoder=tiny.encoder)
    assert sorted(state(client, index)["indexes"]) == [index, f"{index}-oskit-trial-elsewhere"]
    monkeypatch.setattr(trials, "ABANDONED_AFTER_S", -5)
    ingest(client, index, GOOD, encoder=tiny.encoder)
    assert list(state(client, index)["indexes"]) == [index]


def test_two_loads_at_once_make_one_index(cluster_url, client, tiny: TinyModels, index):
    reports: list[Any] = []

    def load(docs: list[Document]) -> None:
        try:
            mine = connect(ConnectionSettings(url=cluster_url))
            reports.append(ingest(mine, index, docs, encode="cluster", model_id=tiny.encoder_id))
        except Exception as error:
            reports.append(error)

    halves = documents(40)[:20], documents(40)[20:]
    threads = [threading.Thread(target=load, args=(docs,)) for docs in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [getattr(report, "indexed", report) for report in reports] == [20, 20]
    assert client.count(index=index)["count"] == 40


def test_a_load_whose_index_is_recreated_meanwhile_says_so(client, tiny: TinyModels, index):
    def stream() -> Iterator[Document]:
        yield from documents(20)
        ingest(client, index, GOOD, encoder=tiny.encoder, recreate=True)

    ingest(client, index, GOOD, encoder=tiny.encoder)
    with pytest.raises(IndexingError, match=r"another load has replaced the index .*--recreate"):
        ingest(client, index, stream(), encoder=tiny.encoder, bulk_documents=5)


def test_a_pipeline_of_others_is_neither_changed_nor_deleted(client, tiny: TinyModels, index):
    name, theirs = (
        pipeline_name(index),
        {"description": "ours", "processors": [{"lowercase": {"field": "x"}}]},
    )
    client.ingest.put_pipeline(id=name, body=theirs)
    try:
        with pytest.raises(IndexingError, match=r"was not made by oskit.*--encode client"):
            ingest(client, index, GOOD, encode="cluster", model_id=tiny.encoder_id)
        assert not client.indices.exists(index=index)
        ingest(client, index, GOOD, encoder=tiny.encoder)
        ingest(client, index, GOOD, encoder=tiny.encoder, recreate=True)
        assert client.ingest.get_pipeline(id=name)[name] == theirs
    finally:
        client.ingest.delete_pipeline(id=name)


@pytest.mark.parametrize("where", ["another pipeline", "an index template", "a component template"])
def test_our_pipeline_stays_where_others_have_come_to_use_it(client, tiny: TinyModels, index, where: str):
    """Deleted, it would have each of their writes refused."""
    name, others = pipeline_name(index), f"{index}-others"
    ingest(client, index, GOOD, encode="cluster", model_id=tiny.encoder_id)
    body = client.ingest.get_pipeline(id=name)[name]
    runs = {"template": {"settings": {"index": {"default_pipeline": name}}}}
    if where == "another pipeline":
        client.ingest.put_pipeline(id=others, body={"processors": [{"pipeline": {"name": name}}]})
    elif where == "an index template":
        client.indices.put_index_template(name=others, body={"index_patterns": [f"{others}*"], **runs})
    else:
        client.cluster.put_component_template(name=others, body=runs)
    try:
        ingest(client, index, GOOD, encoder=tiny.encoder, recreate=True)
        assert client.ingest.get_pipeline(id=name, ignore=404).get(name) == body
    finally:
        client.ingest.delete_pipeline(id=others, ignore=404)
        client.indices.delete_index_template(name=others, ignore=404)
        client.cluster.delete_component_template(name=others, ignore=404)


@pytest.mark.parametrize("change", ["replaced", "changed"])
def test_a_pipeline_that_is_changed_during_a_load_is_told(client, tiny: TinyModels, index, change: str):
    name, how = (
        pipeline_name(index),
        {"encode": "cluster", "model_id": tiny.encoder_id, "pipeline_batch_size": 2},
    )

    def watched() -> Iterator[Document]:
        for number, doc in enumerate(documents(90)):
            if number == 64:
                body = client.ingest.get_pipeline(id=name)[name]
                body["processors"] = body["processors"][:-1] if change == "replaced" else body["processors"]
                if change == "changed":
                    encoder_of(body).update(prune_type="top_k", prune_ratio=1)
                client.ingest.put_pipeline(id=name, body=body)
            yield doc

    with pytest.raises(IndexingError, match=r"somebody has changed the ingest pipeline .* during the load"):
        ingest(client, index, watched(), **how)
    client.ingest.delete_pipeline(id=name)
    assert ingest(client, index, documents(40), **how).indexed == 40


def test_what_others_have_added_to_our_pipeline_stays(client, tiny: TinyModels, index):
    how = {"encode": "cluster", "model_id": tiny.encoder_id}
    ingest(client, index, GOOD, **how)
    name = pipeline_name(index)
    body = client.ingest.get_pipeline(id=name)[name]
    added = {"set": {"field": "seen", "value": True}}
    del encoder_of(body)["tag"]  # as earlier versions made it
    body = {**body, "processors": [*body["processors"], added], "on_failure": [added]}
    client.ingest.put_pipeline(id=name, body=body)
    try:
        for options in ({"pipeline_batch_size": 4}, {"prune": Prune("max_ratio", 0.5), "recreate": True}):
            ingest(client, index, GOOD, **how, **options)
        now = client.ingest.get_pipeline(id=name)[name]
        assert now["processors"][2:] == [added] and now["on_failure"] == [added]
        assert encoder_of(now)["prune_ratio"] == 0.5
        ingest(client, index, GOOD, encoder=tiny.encoder, recreate=True)
        assert client.ingest.get_pipeline(id=name)[name] == now
    finally:
        client.ingest.delete_pipeline(id=name)


def test_what_does_not_fit_the_record_is_refused_with_the_option_to_give(
    client, tiny: TinyModels, index, tmp_path
):
    sparse = IndexSettings("sparse_vector")
    how: dict[str, Any] = {
        "encoder": tiny.inference_free,
        "settings": sparse,
        "prune": Prune("max_ratio", 0.5),
    }
    ingest(client, index, GOOD, **how)
    before = state(client, index)
    other = ArchiveEncoder.open(encoder_archive(tmp_path / "other.zip", seed=8))
    parameters = SparseVectorParameters(approximate_threshold=9)
    for options, said in [
        ({"prune": None}, "were pruned by max_ratio:0.5. Give --prune max_ratio:0.5"),
        ({"prune": Prune("max_ratio", 0.4)}, "Give --prune max_ratio:0.5"),
        ({"settings": IndexSettings()}, "Give --index-kind sparse_vector"),
        ({"settings": IndexSettings("sparse_vector", passage_field="p")}, "Give --passage-field passage"),
        ({"encoder": other}, "vectors are of another encoder"),
        ({"encode": "cluster", "model_id": tiny.encoder_id}, "Give --encode client"),
        ({"settings": IndexSettings("sparse_vector", shards=3)}, "Give --shards 1 or none"),
        ({"settings": IndexSettings("sparse_vector", replicas=1)}, "auto_expand_replicas 0-1"),
        (
            {"settings": IndexSettings("sparse_vector", sparse_vector=parameters)},
            "Give --approximate-threshold 1000000",
        ),
        ({"query_model_id": tiny.encoder_id}, "queries are encoded by another tokenizer"),
        ({"encoder": other, "model_id": tiny.encoder_id}, "vectors are of another encoder"),
    ]:
        with pytest.raises(IndexingError) as caught:
            ingest(client, index, GOOD, **{**how, **options})
        assert said in str(caught.value), options
    assert state(client, index) == before
    right = IndexSettings("sparse_vector", shards=1, sparse_vector=SparseVectorParameters(1_000_000))
    ingest(client, index, GOOD, **{**how, "settings": right})


def test_a_model_and_an_archive_are_checked_against_each_other(client, tiny: TinyModels, index, tmp_path):
    other = ArchiveEncoder.open(encoder_archive(tmp_path / "other.zip", seed=8))
    for encode in ("client", "cluster"):
        with pytest.raises(IndexingError, match="--model and --archive are not the same encoder"):
            ingest(client, index, GOOD, encode=encode, encoder=other, model_id=tiny.encoder_id)
    assert not client.indices.exists(index=index)


class Anonymous:
    """An encoder whose content nobody knows, as of one in torch."""

    def __init__(self, encoder: ArchiveEncoder) -> None:
        self.architecture, self.vocabulary = encoder.architecture, encoder.vocabulary
        self.document_weights, self.document_matrix = encoder.document_weights, encoder.document_matrix


def test_where_no_content_tells_the_documents_do(client, tiny: TinyModels, index, tmp_path):
    ingest(client, index, documents(10), encoder=Anonymous(tiny.encoder), prune=Prune("max_ratio", 0.5))
    other = ArchiveEncoder.open(encoder_archive(tmp_path / "other.zip", seed=8))
    for encoder in (other, Anonymous(other)):
        with pytest.raises(IndexingError, match="vectors are not what this encoder gives"):
            ingest(client, index, GOOD, encoder=encoder, prune=Prune("max_ratio", 0.5))
    ingest(client, index, GOOD, encoder=tiny.encoder, prune=Prune("max_ratio", 0.5))
    info = read_index(client, index)
    assert info is not None and info.encoder.sha256 == tiny.encoder.archive.sha256


@pytest.mark.parametrize("field", ["embedding", "its.\"odd\" {{x}} 'é'"])
def test_a_text_without_tokens_does_not_poison_the_field(client, tiny: TinyModels, index, field: str):
    settings = IndexSettings("sparse_vector", embedding_field=field)
    how: dict[str, Any] = {"encode": "cluster", "model_id": tiny.encoder_id, "settings": settings}
    empty = [Document(f"e{n}", text) for n, text in enumerate(["\u200b", "", " ", "\x01\x02"])]
    for _ in range(2):
        report = ingest(
            client, index, [*empty, *documents(10), *empty[:0]], **how, pipeline_batch_size=3, workers=1
        )
        assert (report.indexed, report.refused) == (14, 0)
    vector = {"neural_sparse": {field: {"query_tokens": {str(n): 1.0 for n in range(5, 200)}}}}
    assert client.search(index=index, body={"query": vector, "size": 0})["hits"]["total"]["value"] == 9


def test_a_document_that_others_update_is_still_found(client, tiny: TinyModels, index):
    ingest(client, index, GOOD, encoder=tiny.encoder)
    client.update(index=index, id="1", body={"doc": {"seen": 1}}, params={"refresh": "true"})
    client.update_by_query(index=index, params={"refresh": "true"})
    ingest(client, f"{index}-copy", [], encoder=tiny.encoder)
    client.reindex(
        body={"source": {"index": index}, "dest": {"index": f"{index}-copy"}}, params={"refresh": "true"}
    )
    try:
        for name in (index, f"{index}-copy"):
            hits = client.search(index=name, body={"query": {"match": {"passage": "fox"}}})["hits"]["hits"]
            assert [hit["_id"] for hit in hits] == ["1"] and hits[0]["_source"]["embedding"]
    finally:
        client.indices.delete(index=f"{index}-copy")


@pytest.mark.parametrize("meta", ["text", ["list"], {"no": "kind"}, {"kind": "later"}])
def test_metadata_that_is_not_ours_is_left_alone(client, tiny: TinyModels, index, meta: object):
    fields = {"embedding": {"type": "rank_features"}}
    client.indices.create(index=index, body={"mappings": {"_meta": {"oskit": meta}, "properties": fields}})
    before = state(client, index)
    with pytest.raises(IndexingError, match=r"was not made by oskit|this oskit does not know") as caught:
        ingest(client, index, GOOD, encoder=tiny.encoder)
    assert "--recreate" not in str(caught.value), "which would be refused"
    assert state(client, index) == before


def test_a_blocked_index_is_refused_before_anything_changes(client, tiny: TinyModels, index):
    ingest(client, index, GOOD, encoder=tiny.encoder)
    client.indices.put_settings(index=index, body={"index.blocks.read_only": True})
    with pytest.raises(ClusterSettingsError, match=r"index\.blocks\.read_only blocks it. Lift that first"):
        ingest(client, index, GOOD, encoder=tiny.encoder, model_id=tiny.encoder_id)
    client.indices.put_settings(index=index, body={"index.blocks.read_only": None})


def test_a_dry_run_tells_the_calls_and_makes_none(
    cluster_url, client, tiny: TinyModels, index, tmp_path, capsys
):
    source = str(write_documents(tmp_path / "docs.jsonl", documents()))
    command = ["ingest", index, source, "--url", cluster_url, "--model", tiny.encoder_id, "--json"]

    def dry(*options: str) -> list[tuple[str, str]]:
        before = state(client, index)
        assert main([*command, "--dry-run", *options]) == 0
        assert state(client, index) == before
        calls = json.loads(capsys.readouterr().out)["calls"]
        return [(call["method"], call["path"].split("?")[0]) for call in calls]

    new = [("PUT", index), ("PUT", f"_ingest/pipeline/{pipeline_name(index)}"), ("POST", f"{index}/_bulk")]
    assert dry() == new
    assert main(command) == 0
    capsys.readouterr()
    assert dry() == [new[2]]
    client.indices.put_alias(index=index, name=f"{index}-live")
    command[1] = f"{index}-live"
    assert dry() == [new[2]], "an alias is resolved"
    command[1] = index
    again = dry("--recreate")
    kept = f"{index}-oskit-kept"
    assert [call for call in again if "trial" not in call[1]] == [
        ("PUT", f"{index}/_settings"),
        ("PUT", f"{index}/_clone/{kept}"),
        ("DELETE", index),
        new[0],
        ("DELETE", kept),
        new[2],
    ]
    assert again[0][0] == "PUT" and again[-3:-1] == [
        ("DELETE", again[0][1]),
        ("DELETE", f"_ingest/pipeline/{again[0][1]}-sparse-encoding"),
    ]
    assert main(["ingest", index, source, "--dry-run", "--archive", str(tiny.archive)]) == 0
    assert "The cluster was not asked" in capsys.readouterr().err
