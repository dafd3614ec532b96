"""What the index has already is not encoded again, and what the source no longer has is taken out of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from archives import encoder_archive
from opensearchpy import OpenSearch
from scipy.sparse import csr_matrix
from tiny_models import TinyModels, documents, encoder_of, index, indexed, tiny, write_documents

from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.token_weights import DelegatingEncoder, Prune
from oskit.cli.main import main
from oskit.cluster.index.mapping import IndexSettings
from oskit.cluster.index.pipeline import pipeline_name
from oskit.cluster.ingest.load import IngestInterrupted, ingest
from oskit.data.documents import MARK_FIELD, Document, Refusal
from oskit.errors import IndexingError, UsageError

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration


class Counting(DelegatingEncoder[ArchiveEncoder]):
    """The tiny encoder; ``passages`` holds all that it was given."""

    def __init__(self, encoder: ArchiveEncoder) -> None:
        super().__init__(encoder)
        self.archive: Any = encoder.archive
        self.passages: list[str] = []

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        self.passages += texts
        return super().document_matrix(texts)

    def taken(self) -> list[str]:
        """What it was given since the last call, sorted."""
        self.passages, given = [], sorted(self.passages)
        return given


@pytest.fixture
def encoder(tiny: TinyModels) -> Counting:
    return Counting(tiny.encoder)


def passages(docs: Sequence[Document]) -> list[str]:
    return sorted(doc.passage for doc in docs)


def are_exact(client: OpenSearch, name: str, docs: Sequence[Document], encoder: ArchiveEncoder) -> None:
    """The index has these documents, all of them and no others, with the encoder's weights."""
    found = {hit["_id"]: hit["_source"] for hit in indexed(client, name)}
    assert sorted(found) == sorted(doc.id for doc in docs)
    for doc, weights in zip(docs, encoder.document_weights([doc.passage for doc in docs]), strict=True):
        source = found[doc.id]
        assert source["text"] == doc.text and source["passage"] == doc.passage
        assert source.get("embedding", {}) == pytest.approx(weights, abs=1e-5)


def test_a_nightly_load_encodes_what_is_new_or_changed(client, tiny: TinyModels, index, encoder: Counting):
    docs = documents(200)
    alias, done = f"{index}-live", []
    ingest(client, index, docs, encoder=encoder)
    client.indices.put_alias(index=index, name=alias)
    assert encoder.taken() == passages(docs)

    report = ingest(client, alias, docs, encoder=encoder, progress=done.append)
    assert (report.read, report.indexed, report.unchanged, report.encoded) == (200, 200, 200, 0)
    assert encoder.taken() == [] and sum(done) == 200

    changed = [
        replace(docs[7], text=f"{docs[7].text} fox"),
        replace(docs[8], fields={"n": 8, "price": 3}),  # what is encoded is the same
        replace(docs[9], title="", text=docs[9].passage),  # the same passage, made of other fields
        Document("new", "quick brown fox"),
    ]
    tonight = [*docs[:7], *changed[:3], *docs[10:], changed[3]]
    report = ingest(client, alias, tonight, encoder=encoder, workers=1)
    assert (report.indexed, report.unchanged, report.encoded) == (201, 197, 4)
    assert encoder.taken() == passages(changed)
    are_exact(client, index, tonight, tiny.encoder)
    assert ingest(client, index, tonight, encoder=encoder).encoded == 0

    report = ingest(client, index, tonight, encoder=encoder, reencode=True)
    assert (report.unchanged, report.encoded) == (0, 201)
    assert ingest(client, index, tonight, encoder=encoder).unchanged == 201, "and marks are right after that"


@pytest.mark.parametrize("mode", ["client", "cluster"])
def test_a_load_that_is_cut_off_goes_on_where_it_was(client, tiny: TinyModels, index, mode: str):
    docs = documents(200)
    how: dict[str, Any] = {"encode": mode, "encoder": Counting(tiny.encoder), "reencode": False}
    how |= {"model_id": tiny.encoder_id if mode == "cluster" else None, "bulk_documents": 10, "workers": 1}

    def cut_off() -> Iterator[Document]:
        yield from docs[:100]
        while client.count(index=index)["count"] == 0:  # reading is ahead of sending
            client.indices.refresh(index=index)
        raise KeyboardInterrupt

    with pytest.raises(IngestInterrupted) as caught:
        ingest(client, index, cut_off(), **how)
    done = caught.value.report.indexed
    assert 0 < done <= 100
    report = ingest(client, index, docs, **how)
    assert (report.indexed, report.unchanged) == (200, done)
    are_exact(client, index, docs, tiny.encoder)


OTHERS: dict[str, Any] = {
    "an update of the text": lambda client, name: client.update(
        index=name, id="d1", body={"doc": {"text": "theirs"}}
    ),
    "a bulk update, not seen by searches yet": lambda client, name: client.bulk(
        index=name, body=[{"update": {"_id": "d1"}}, {"doc": {"passage": "theirs", "text": "theirs"}}]
    ),
    "an update by query": lambda client, name: client.update_by_query(
        index=name, params={"refresh": "true"},
        body={"query": {"ids": {"values": ["d1"]}}, "script": {"source": "ctx._source.remove('embedding')"}},
    ),
    "another document with the mark of this one": lambda client, name: client.index(
        index=name, id="d1", body=client.get(index=name, id="d1")["_source"] | {"text": "theirs"}
    ),
    "another document's mark": lambda client, name: client.index(
        index=name, id="d1", body=client.get(index=name, id="d2")["_source"]
    ),
    "a deletion": lambda client, name: client.delete(index=name, id="d1"),
}  # fmt: skip


@pytest.mark.parametrize("change", OTHERS)
def test_what_others_do_to_a_document_is_noticed(client, tiny: TinyModels, index, encoder, change: str):
    docs = documents(12)
    ingest(client, index, docs, encoder=encoder)
    OTHERS[change](client, index)
    encoder.taken()
    report = ingest(client, index, docs, encoder=encoder)
    assert encoder.taken() == [docs[1].passage] and (report.unchanged, report.encoded) == (11, 1)
    are_exact(client, index, docs, tiny.encoder)


@pytest.mark.parametrize("path", ["embedding", "passage"])
def test_a_copy_without_what_source_leaves_out_is_not_known(
    client, tiny: TinyModels, index, encoder: Counting, path: str
):
    docs, settings = documents(12), IndexSettings(mapping={"_source": {"excludes": [path]}})
    copy = f"{index}-copy"
    query = {"query": {"neural_sparse": {"embedding": {"query_tokens": {"quick": 1.0}}}}}
    if path == "passage":
        query = {"query": {"match": {"passage": "quick"}}}
    found = {}
    try:
        for name in (index, copy):
            ingest(client, name, docs if name == index else [], encoder=encoder, settings=settings)
            assert ingest(client, index, docs, encoder=encoder, settings=settings).unchanged == 12
        client.reindex(body={"source": {"index": index}, "dest": {"index": copy}})
        assert ingest(client, copy, docs, encoder=encoder, settings=settings).encoded == 12
        found = {name: client.count(index=name, body=query)["count"] for name in (index, copy)}
    finally:
        client.indices.delete(index=copy)
    assert found[copy] == found[index] > 0


def test_a_copy_of_the_index_is_known_and_another_encoder_or_pruning_is_not(
    client, tiny: TinyModels, index, encoder: Counting, tmp_path: Path
):
    docs, other = documents(12), ArchiveEncoder.open(encoder_archive(tmp_path / "other.zip", seed=8))
    ingest(client, index, docs, encoder=encoder)
    copy = f"{index}-copy"
    ingest(client, copy, [], encoder=encoder)
    try:
        client.reindex(body={"source": {"index": index}, "dest": {"index": copy}})
        assert ingest(client, copy, docs, encoder=encoder).unchanged == 12
    finally:
        client.indices.delete(index=copy)
    for options in ({"encoder": other}, {"encoder": other, "prune": Prune("max_ratio", 0.5)}):
        report = ingest(client, index, docs, **options, recreate=True)
        assert (report.unchanged, report.encoded) == (0, 12)
        assert ingest(client, index, docs, **options).unchanged == 12


def test_an_index_of_an_earlier_version_learns_to_remember(client, tiny: TinyModels, index, encoder):
    docs = documents(12)
    ingest(client, index, [], encoder=encoder)
    body = client.indices.get(index=index)[index]
    client.indices.delete(index=index)
    mapping = {**body["mappings"], "dynamic": "strict"}
    del mapping["properties"][MARK_FIELD]
    mapping["properties"] |= {"title": {"type": "text"}, "text": {"type": "text"}, "n": {"type": "long"}}
    client.indices.create(index=index, body={"mappings": mapping, "settings": {"index.max_result_window": 5}})
    for doc in docs[:6]:
        client.index(index=index, id=doc.id, body={**doc.source(), "passage": doc.passage})
    assert ingest(client, index, docs, encoder=encoder).encoded == 12
    assert ingest(client, index, docs, encoder=encoder).unchanged == 12
    client.indices.put_settings(index=index, body={"index.max_result_window": None})
    are_exact(client, index, docs, tiny.encoder)


def test_where_nothing_can_be_known_all_is_encoded_and_that_is_said(client, tiny: TinyModels, index):
    docs, told = documents(12), []
    anonymous = Counting(tiny.encoder)
    anonymous.archive = None  # as of an encoder in torch
    for _ in range(2):
        assert ingest(client, index, docs, encoder=anonymous, notify=told.append).unchanged == 0
    assert told == ["All documents are encoded: of this encoder nobody knows whether it made the vectors "
                    "that are there"] * 2  # fmt: skip
    mapping = client.indices.get_mapping(index=index)[index]["mappings"]
    mapping["properties"][MARK_FIELD] = {"type": "text"}
    client.indices.delete(index=index)
    client.indices.create(index=index, body={"mappings": mapping})
    for _ in range(2):
        report = ingest(client, index, docs, encoder=tiny.encoder, notify=told.append)
        assert (report.indexed, report.unchanged) == (12, 0)
    assert "is not oskit's" in told[-1]


def test_what_the_pipeline_does_else_makes_all_documents_new(client, tiny: TinyModels, index):
    docs, how = documents(12), {"encode": "cluster", "model_id": tiny.encoder_id}
    name = pipeline_name(index)
    ingest(client, index, docs, **how)
    assert ingest(client, index, docs, **how, pipeline_batch_size=4).unchanged == 12

    def changed(**parameters: Any) -> None:
        body = client.ingest.get_pipeline(id=name)[name]
        encoder_of(body).update(parameters)
        body["processors"] += [] if parameters else [{"set": {"field": "seen", "value": True}}]
        client.ingest.put_pipeline(id=name, body=body)

    changed()
    assert ingest(client, index, docs, **how).encoded == 12, "somebody has added a processor"
    assert ingest(client, index, docs, **how).unchanged == 12

    def watched() -> Iterator[Document]:
        yield from docs
        changed(prune_type="top_k", prune_ratio=1)

    with pytest.raises(IndexingError, match="somebody has changed the ingest pipeline"):
        ingest(client, index, [*docs[:2], Document("x", "fox")], **how) and ingest(
            client, index, (replace(doc, fields={}) for doc in watched()), **how
        )
    client.ingest.delete_pipeline(id=name)
    report = ingest(client, index, docs, **how)
    assert report.encoded == 12, "or what was encoded meanwhile would stay as it is"
    are_exact(client, index, [*docs, Document("x", "fox")], tiny.encoder)
    client.ingest.delete_pipeline(id=name)


def test_the_command_tells_what_was_unchanged(cluster_url, client, tiny: TinyModels, index, tmp_path, capsys):
    docs = documents(30)
    source = write_documents(tmp_path / "docs.jsonl", docs)
    command = ["ingest", index, str(source), "--archive", str(tiny.archive), "--url", cluster_url]
    assert main(command) == 0
    capsys.readouterr()
    write_documents(source, [*docs[:29], Document("d29", "changed")])
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {key: report[key] for key in ("read", "indexed", "unchanged", "encoded", "deleted")} == {
        "read": 30, "indexed": 30, "unchanged": 29, "encoded": 1, "deleted": 0,
    }  # fmt: skip
    assert main(command) == 0
    assert "unchanged 30, encoded 0" in capsys.readouterr().out
    assert main([*command, "--reencode"]) == 0
    assert "unchanged 0, encoded 30" in capsys.readouterr().out
    assert main([*command, "--reencode", "--recreate"]) == 2


def missing(client: OpenSearch, name: str, docs: Sequence[Document], **options: Any) -> Any:
    return ingest(client, name, docs, **{"delete_missing": 0.5, **options})


def test_what_the_source_no_longer_has_is_deleted_and_nothing_else(client, tiny: TinyModels, index, encoder):
    docs, told = documents(60), []
    ingest(client, index, docs, encoder=encoder)
    client.indices.put_alias(index=index, name=f"{index}-live")
    theirs = client.get(index=index, id="d1")["_source"]
    del theirs[MARK_FIELD]
    client.index(index=index, id="theirs", body=theirs)
    client.update(index=index, id="d59", body={"doc": {"seen": 1}})  # it is still ours
    encoder.taken()

    def slowly() -> Iterator[Document]:
        yield from docs[:40]
        # Another load at the same time, of other documents, and of one that is gone here.
        ingest(client, index, [Document("another", "brown dog"), replace(docs[58], text="fox")],
               encoder=tiny.encoder)  # fmt: skip

    report = missing(client, f"{index}-live", slowly(), encoder=encoder, notify=told.append)
    assert (report.indexed, report.unchanged, report.deleted) == (40, 40, 19)
    assert encoder.taken() == []
    kept = [*(doc.id for doc in docs[:40]), "d58", "another", "theirs"]
    assert sorted(hit["_id"] for hit in indexed(client, index)) == sorted(kept)
    assert len(told) == 1 and told[0].startswith("Deleting 19 of 60 documents that")
    report = missing(client, index, [*docs[:40], docs[58], docs[58], Document("another", "brown dog")],
                     encoder=encoder, notify=told.append)  # fmt: skip
    assert (report.deleted, report.duplicates, len(told)) == (0, 1, 1), "one of them was changed"


def interrupted(docs: Sequence[Document]) -> Iterator[Document]:
    yield from docs
    raise KeyboardInterrupt


def test_too_much_or_an_unsure_source_deletes_nothing(client, tiny: TinyModels, index):
    docs, told = documents(40), []
    ingest(client, index, docs, encoder=tiny.encoder)
    bad = Refusal("docs.jsonl:3", "not JSON", "{oops")
    for source, said in [
        ([], "there are no documents in the source, so none is deleted"),
        (docs[:19], r"nothing is deleted: it would be 21 of 40 documents .* such as 'd.*--yes"),
        (interrupted(docs[:30]), "interrupted after"),
    ]:
        with pytest.raises(IndexingError, match=said):
            missing(client, index, source, encoder=tiny.encoder)
    assert missing(client, index, [*docs[:30], bad], encoder=tiny.encoder, notify=told.append).deleted == 0
    assert told == ["Nothing is deleted: 1 records were refused, and may be what seems missing"]
    with pytest.raises(UsageError, match="no effect with --recreate"):
        missing(client, index, docs[:30], encoder=tiny.encoder, recreate=True)
    anonymous = Counting(tiny.encoder)
    anonymous.archive = None
    are_exact(client, index, docs, tiny.encoder)
    with pytest.raises(IndexingError, match="cannot delete what the source no longer has: of this encoder"):
        missing(client, f"{index}-other", docs, encoder=anonymous)
    assert not client.indices.exists(index=f"{index}-other")


def test_the_command_deletes_what_is_missing(cluster_url, client, tiny: TinyModels, index, tmp_path, capsys):
    docs = documents(40)
    source = write_documents(tmp_path / "docs.jsonl", docs)
    command = ["ingest", index, str(source), "--archive", str(tiny.archive), "--url", cluster_url, "--json"]
    assert main(command) == 0
    write_documents(source, docs[:20])
    capsys.readouterr()
    assert main([*command, "--delete-missing", "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)["missing"]
    assert (found["count"], found["of"]) == (20, 40) and "--yes" in found["stays"], "as the load will say"
    assert main([*command, "--delete-missing"]) == 7
    assert "20 of 40 documents" in capsys.readouterr().err
    assert main([*command, "--yes"]) == 2
    capsys.readouterr()
    assert main([*command, "--delete-missing", "--yes"]) == 0
    answered = capsys.readouterr()
    assert "Deleting 20 of 40 documents that the source no longer has, such as 'd" in answered.err
    assert json.loads(answered.out)["deleted"] == 20
    are_exact(client, index, docs[:20], tiny.encoder)
