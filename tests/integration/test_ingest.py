"""Loading documents into a real index: the same vectors from both sides, and every record accounted for."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import incidents
import numpy as np
import pytest
from archives import encoder_archive
from faulty_proxy import Fault, FaultyProxy
from incidents import Incident
from opensearchpy import OpenSearch
from tiny_models import TinyModels, documents, index, tiny

from oskit.archive.archive import open_archive
from oskit.archive.token_weights import Prune, prune
from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.retry import RetryPolicy
from oskit.cluster.index.mapping import (
    EncoderIdentity,
    IndexSettings,
    SparseVectorParameters,
    delete_index,
    index_body,
    read_index,
)
from oskit.cluster.index.recreate import create
from oskit.cluster.ingest import accounting
from oskit.cluster.ingest.load import IngestInterrupted, ingest
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.registry import wait_until
from oskit.cluster.models.retire import delete_model, undeploy_model
from oskit.cluster.search.search import search
from oskit.data.documents import Document, Refusal
from oskit.data.files import read_documents
from oskit.errors import ClusterConnectionError, DataError, IndexingError, ModelError, UsageError

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

BULK = r"POST /.*_bulk"


def stored(client: OpenSearch, name: str) -> dict[str, dict]:
    """Every document's source, by id."""
    hits = client.search(index=name, body={"size": 1000, "query": {"match_all": {}}})["hits"]["hits"]
    return {hit["_id"]: hit["_source"] for hit in hits}


@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
@pytest.mark.parametrize("mode", ["client", "cluster"])
def test_both_sides_write_the_encoders_weights(client, tiny: TinyModels, index, kind, mode):
    docs = documents()
    report = ingest(
        client,
        index,
        docs,
        encode=mode,
        encoder=tiny.encoder if mode == "client" else None,
        model_id=tiny.encoder_id if mode == "cluster" else None,
        settings=IndexSettings(kind),
    )
    assert (report.read, report.indexed, report.refused, report.duplicates) == (40, 40, 0, 0)

    key = "id" if kind == "sparse_vector" else "token"
    expected = tiny.encoder.document_weights([doc.passage for doc in docs], key=key)
    sources = stored(client, index)
    assert len(sources) == 40
    for doc, weights in zip(docs, expected, strict=True):
        source = sources[doc.id]
        assert source.get("embedding", {}) == pytest.approx(weights, abs=1e-5)
        assert source["text"] == doc.text
        assert source.get("n") == doc.fields.get("n")
        assert source["passage"] == doc.passage, "or an _update would take it from BM25"
    assert "embedding" not in sources["d5"], "an empty text is indexed without weights"

    info = read_index(client, index)
    assert info is not None
    assert (info.kind, info.key, info.encode) == (kind, key, mode)
    assert info.encoder.sha256 == tiny.encoder.archive.sha256


@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
def test_vectors_that_come_along_are_stored_and_searched_as_they_are(
    client, tiny: TinyModels, index, kind, tmp_path, cluster_url, capsys
):
    """From `oskit encode -o`, in two parts and formats; what the file says finds the deployed encoder."""
    corpus = tmp_path / "corpus.jsonl"
    lines = ({"_id": doc.id, "title": doc.title, "text": doc.text, **doc.fields} for doc in documents())
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    key = "id" if kind == "sparse_vector" else "token"
    files = [str(tmp_path / name) for name in ("1.parquet", "2.jsonl.gz")]
    for number, file in enumerate(files, start=1):
        options = ["--key", key, "--part", f"{number}/2", "-q"]
        assert main(["encode", str(tiny.archive), str(corpus), "-o", file, *options]) == 0
    load = ["ingest", index, *files, "--encode", "none", "--index-kind", kind, "--url", cluster_url]
    assert main([*load, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert (report["read"], report["indexed"], report["encoder_busy"]) == (40, 40, None)
    expected = tiny.encoder.document_weights([doc.passage for doc in documents()], key=key)
    sources = stored(client, index)
    for doc, weights in zip(documents(), expected, strict=True):
        found = {name: np.float32(weight) for name, weight in sources[doc.id].get("embedding", {}).items()}
        assert found == weights, "to the bit"
        assert (sources[doc.id]["text"], sources[doc.id].get("n")) == (doc.text, doc.fields.get("n"))
    info = read_index(client, index)
    assert info is not None
    assert (info.encode, info.key, info.encoder.sha256) == ("none", key, tiny.encoder.archive.sha256)
    by_model = search(client, index, "quick fox").hits
    assert by_model and [hit.id for hit in by_model] == [
        hit.id for hit in search(client, index, "quick fox", encoder=tiny.encoder).hits
    ]
    # The same encoder goes on here, another one does not.
    how = {"encoder": tiny.encoder, "settings": IndexSettings(kind)}
    assert ingest(client, index, documents(3), **how).indexed == 3
    with pytest.raises(IndexingError, match="of another encoder"):
        other = EncoderIdentity(sha256="0" * 64)
        ingest(client, index, read_documents(files, vector_field="embedding"), encode="none", made_by=other,
               settings=IndexSettings(kind))  # fmt: skip
    letters = tmp_path / "letters.jsonl"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "x", "embedding": {"nothing": 1.0}}\n{"text": "y", "embedding": {"7": -1}}\n')
    refusing = [*load[:2], str(bad), *load[4:], "--archive", str(tiny.archive), "--dead-letter", str(letters)]
    assert main(refusing) == 10
    assert len(letters.read_text().splitlines()) == 2 and len(stored(client, index)) == 40


@pytest.mark.parametrize("mode", ["client", "cluster"])
def test_pruning_is_the_same_on_both_sides(client, tiny: TinyModels, index, mode):
    rule = Prune("max_ratio", 0.6)
    docs = documents(12)
    ingest(
        client,
        index,
        docs,
        encode=mode,
        encoder=tiny.encoder,
        model_id=tiny.encoder_id,
        prune=rule,
    )
    sources = stored(client, index)
    for doc, weights in zip(docs, tiny.encoder.document_weights([doc.passage for doc in docs]), strict=True):
        assert sources[doc.id].get("embedding", {}) == pytest.approx(prune(weights, rule), abs=1e-5)
        assert not weights or len(prune(weights, rule)) < len(weights)


def test_loading_again_changes_nothing(client, tiny: TinyModels, index, tmp_path: Path):
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": f"quick brown {word}"}) + "\n" for word in "abcde"))
    for _ in range(2):
        report = ingest(client, index, read_documents([path]), encoder=tiny.encoder)
        assert (report.read, report.indexed) == (5, 5)
    assert len(stored(client, index)) == 5


def test_every_record_is_accounted_for(client, tiny: TinyModels, index, tmp_path: Path):
    letters = tmp_path / "refused.jsonl"
    records: list[Document | Refusal] = [
        Document("1", "quick fox", fields={"when": {"year": 2020}}),
        Document("2", "brown fox", fields={"when": "yesterday"}),  # the mapping has an object by now
        Document("1", "quick fox", fields={"when": {"year": 2020}}),  # the same again
        Document("1", "another text"),
        Document("x" * 513, "an id that would fail the whole request"),
        Document("", "no id"),
        Document("3", "a field of ours", fields={"embedding": {"a": 1}}),
        Document("4", "an empty field name", fields={"": 1}),
        Document("5", "\ud800 lone \x00 surrogate", fields={"n": float("nan")}),
        Refusal("file:9", "not JSON", "{oops"),
    ]
    report = ingest(client, index, records, encoder=tiny.encoder, dead_letter=letters, bulk_documents=1,
                    workers=1)  # fmt: skip
    assert (report.read, report.indexed, report.refused, report.duplicates) == (10, 2, 7, 1)
    sources = stored(client, index)
    assert set(sources) == {"1", "5"}
    assert sources["5"]["text"] == "\ufffd lone \x00 surrogate"
    assert sources["5"]["n"] is None
    lines = [json.loads(line) for line in letters.read_text().splitlines()]
    reasons = {line.get("_id", "-"): line["_oskit"]["reason"] for line in lines}
    assert "object mapping" in reasons["2"]
    assert "came before, with other content" in reasons["1"]
    assert "512 bytes" in reasons["x" * 513]
    assert "--embedding-field" in reasons["3"]
    assert "empty" in reasons["4"]
    assert reasons["-"] == "not JSON"


def test_a_dead_letter_file_is_ingested_again_as_it_is(client, tiny: TinyModels, index, tmp_path: Path):
    letters, again = tmp_path / "refused.jsonl", tmp_path / "again.jsonl"
    source = tmp_path / "items.csv"
    source.write_bytes(
        b"sku,name,about,when\n1,fox,quick,2020-01-01\n2,dog,brown,oops\n3,caf\xe9,permit,2021\n"
    )
    settings = IndexSettings(mappings={"when": {"type": "date"}})
    items = read_documents([source], id_field="sku", text_field="about", title_field="name")
    report = ingest(client, index, items, encoder=tiny.encoder, settings=settings, dead_letter=letters)
    assert (report.indexed, report.refused) == (1, 2)

    lines = letters.read_text().splitlines()
    letters.write_text("\n".join(line.replace('"oops"', '"2022"') for line in lines) + "\n")
    report = ingest(client, index, read_documents([letters]), encoder=tiny.encoder, dead_letter=again)
    assert (report.read, report.indexed, report.refused) == (2, 1, 1)
    assert stored(client, index)["2"]["name"] == "dog"
    assert stored(client, index)["2"]["about"] == "brown"
    (hit,) = search(client, index, "brown", encoder=tiny.encoder).hits[:1]
    assert (hit.title, hit.text) == ("dog", "brown"), "hits are shown by the fields that were named"
    assert "_oskit" not in stored(client, index)["2"]
    (rest,) = [json.loads(line) for line in again.read_text().splitlines()]
    assert rest["_oskit"]["raw"].encode("utf-8", "surrogateescape") == b"3,caf\xe9,permit,2021"


def test_an_index_of_another_kind_or_encoder_is_refused(client, tiny: TinyModels, index, tmp_path):
    from oskit.archive.encoder import ArchiveEncoder

    ingest(client, index, documents(2), encoder=tiny.encoder)
    with pytest.raises(IndexingError, match=r"has the kind rank_features, not sparse_vector.*--recreate"):
        ingest(client, index, documents(2), encoder=tiny.encoder, settings=IndexSettings("sparse_vector"))
    other = ArchiveEncoder.open(encoder_archive(tmp_path / "other.zip", seed=8))
    with pytest.raises(IndexingError, match="vectors are of another encoder"):
        ingest(client, index, documents(2), encoder=other)
    report = ingest(
        client,
        index,
        documents(3),
        encoder=other,
        settings=IndexSettings("sparse_vector"),
        recreate=True,
    )
    assert report.indexed == 3
    info = read_index(client, index)
    assert info is not None and info.kind == "sparse_vector"


def test_an_index_of_others_is_neither_used_nor_deleted(client, tiny: TinyModels, index):
    client.indices.create(index=index, body={"mappings": {"properties": {"v": {"type": "rank_features"}}}})
    with pytest.raises(IndexingError, match="was not made by oskit"):
        ingest(client, index, documents(2), encoder=tiny.encoder)
    with pytest.raises(IndexingError, match="not deleted"):
        ingest(client, index, documents(2), encoder=tiny.encoder, recreate=True)
    assert client.indices.exists(index=index)


def test_a_load_leaves_the_settings_and_the_meta_of_others_alone(client, tiny: TinyModels, index):
    seen: list[str | None] = []

    def interval() -> str | None:
        settings = client.indices.get_settings(index=index)[index]["settings"]["index"]
        return settings.get("refresh_interval")

    def stream(*, broken: bool) -> Iterator[Document]:
        for number in range(60):
            if number == 50:
                seen.append(interval())
                if broken:
                    raise DataError("file:51 is damaged")
            yield Document(f"{number}", "quick fox")

    ingest(client, index, [], encoder=tiny.encoder)
    client.indices.put_settings(index=index, body={"index": {"refresh_interval": "7s"}})
    mine = client.indices.get_mapping(index=index)[index]["mappings"]["_meta"]
    client.indices.put_mapping(index=index, body={"_meta": {**mine, "theirs": {"owner": "somebody"}}})
    with pytest.raises(DataError, match=r"file:51 is damaged \(after 48 documents were indexed"):
        ingest(client, index, stream(broken=True), encoder=tiny.encoder, bulk_documents=5)
    ingest(
        client,
        index,
        stream(broken=False),
        encoder=tiny.encoder,
        query_model_id=tiny.tokenizer_id,  # known only now, and written down
        bulk_documents=5,
    )
    assert [*seen, interval()] == ["7s"] * 3
    assert len(stored(client, index)) == 60
    info = read_index(client, index)
    assert info is not None and info.encoder.query_model_id == tiny.tokenizer_id
    meta = client.indices.get_mapping(index=index)[index]["mappings"]["_meta"]
    assert meta["theirs"] == {"owner": "somebody"}


def test_an_interrupt_says_what_was_done_and_ends_the_threads(client, tiny: TinyModels, index):
    def stream() -> Iterator[Document]:
        for number in range(100):
            if number == 64:
                raise KeyboardInterrupt
            yield Document(f"{number}", "quick fox")

    with pytest.raises(IngestInterrupted, match=r"interrupted after .* Run the same command again") as caught:
        ingest(client, index, stream(), encoder=tiny.encoder, bulk_documents=4)
    report = caught.value.report
    assert caught.value.exit_code == 130
    assert report.read == report.indexed + report.refused + report.duplicates
    assert report.indexed <= len(stored(client, index)) <= 64
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("oskit-")]


def test_a_hopeless_load_is_stopped_early(client, tiny: TinyModels, index, monkeypatch):
    monkeypatch.setattr(accounting, "HOPELESS_AFTER", 20)
    endless = (Refusal(f"f:{n}", "no field 'text'") for n in range(10**9))
    with pytest.raises(IndexingError, match="first 20 records were all refused: no field 'text'"):
        ingest(client, index, endless, encoder=tiny.encoder)


def test_models_that_cannot_encode_documents_are_refused(client, tiny: TinyModels, index):
    with pytest.raises(IndexingError, match="is a tokenizer"):
        ingest(client, index, documents(2), encode="cluster", model_id=tiny.tokenizer_id)
    with pytest.raises(ModelError, match="no model 'ingtest-nothing'"):
        ingest(client, index, documents(2), encode="cluster", model_id="ingtest-nothing")
    with pytest.raises(UsageError, match="--archive"):
        ingest(client, index, documents(2))
    assert not client.indices.exists(index=index)


def test_fields_of_the_documents_that_are_ours_are_noticed_before_anything_is_made(client, tiny, index):
    docs = [Document("1", "fox", fields={"passage": "mine"})]
    with pytest.raises(UsageError, match=r"'passage'.*--passage-field"):
        ingest(client, index, docs, encoder=tiny.encoder)
    assert not client.indices.exists(index=index)
    report = ingest(
        client, index, docs, encoder=tiny.encoder, settings=IndexSettings(passage_field="encoded")
    )
    assert report.indexed == 1
    assert stored(client, index)["1"]["passage"] == "mine"


def test_tokens_of_any_spelling_are_keys(client, index):
    from oskit.cluster.index.mapping import IndexInfo

    create(client, index, index_body(IndexInfo(index, "rank_features", "token"), IndexSettings()))
    keys = [".", "..", "a.b", ".a", "##s", "'", " ", "\N{GRINNING FACE}", "é", "\u200b", "x" * 500]
    client.index(
        index=index, id="1", body={"embedding": dict.fromkeys(keys, 1.5)}, params={"refresh": "true"}
    )
    for key in keys:
        query = {"neural_sparse": {"embedding": {"query_tokens": {key: 2.0}}}}
        hits = client.search(index=index, body={"query": query})["hits"]["hits"]
        assert [hit["_score"] for hit in hits] == [3.0]


def test_sparse_vector_parameters_reach_the_mapping(client, tiny: TinyModels, index):
    settings = IndexSettings(
        "sparse_vector",
        shards=2,
        replicas=0,
        sparse_vector=SparseVectorParameters(approximate_threshold=5000, n_postings=300),
    )
    ingest(client, index, documents(3), encoder=tiny.encoder, settings=settings)
    mapping = client.indices.get_mapping(index=index)[index]["mappings"]
    parameters = mapping["properties"]["embedding"]["method"]["parameters"]
    assert parameters == {"approximate_threshold": 5000, "n_postings": 300}
    made = client.indices.get_settings(index=index)[index]["settings"]["index"]
    assert (made["number_of_shards"], made["number_of_replicas"]) == ("2", "0")


def test_the_command_tells_with_its_exit_code(cluster_url, client, tiny: TinyModels, index, tmp_path, capsys,
                                              monkeypatch):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("docs.jsonl").write_text(
        '{"_id": "1", "text": "quick fox"}\nnot json\n{"_id": "2", "text": "dog"}\n'
    )
    arguments = ["ingest", index, "docs.jsonl", "--url", cluster_url]
    assert main([*arguments, "--archive", str(tiny.archive), "--json"]) == 10
    report = json.loads(capsys.readouterr().out)
    assert (report["read"], report["indexed"], report["refused"]) == (3, 2, 1)
    assert report["dead_letter"] == f"{index}.refused.jsonl"
    assert json.loads(Path(report["dead_letter"]).read_text())["_oskit"]["raw"] == "not json"

    Path("docs.jsonl").write_text('{"_id": "1", "text": "quick fox"}\n{"_id": "2", "text": "dog"}\n')
    assert main([*arguments, "--model", tiny.encoder_id]) == 7
    assert "encoded here, by --archive. Give --encode client" in capsys.readouterr().err
    assert main([*arguments, "--model", tiny.encoder_id, "--recreate"]) == 0
    said = capsys.readouterr()
    assert "Indexed 2 of 2 records" in said.out
    assert "too long for the encoder were not counted" in said.out
    assert f"oskit search {index}" in said.err
    with Path("docs.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "3", "text": "quick fox " * 100}) + "\n")
    both = ["--model", tiny.encoder_id, "--archive", str(tiny.archive)]
    assert main([*arguments, *both, "--encode", "cluster"]) == 0
    said = capsys.readouterr()
    assert "unchanged 2, encoded 1" in said.out
    assert "1 of 1 documents is longer than 128 tokens" in said.out, "it is told of what is encoded now"
    assert main([*arguments, *both, "--recreate"]) == 0, "encoded here, and the model is recorded for search"
    info = read_index(client, index)
    assert info is not None and (info.encode, info.encoder.model_id) == ("client", tiny.encoder_id)
    assert main([*arguments, "--archive", str(tiny.archive), "--index-kind", "sparse_vector"]) == 7
    assert "--recreate" in capsys.readouterr().err
    assert main(["ingest", index, "missing.jsonl", "--url", cluster_url, "--archive", str(tiny.archive)]) == 3
    assert "no such file: missing.jsonl" in capsys.readouterr().err
    assert main([*arguments]) == 2
    assert "--archive DIR" in capsys.readouterr().err
    assert main([*arguments, "--archive", str(tiny.archive), "--prune", "much"]) == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    assert main(["ingest", index, "-", "--dry-run", "--password-stdin", "--username", "u"]) == 2
    assert "both the password and documents" in capsys.readouterr().err


def test_weights_are_sent_exactly(client, tiny: TinyModels, index):
    docs = documents(6)
    ingest(client, index, docs, encoder=tiny.encoder)
    sources = stored(client, index)
    for doc, weights in zip(docs, tiny.encoder.document_weights([d.passage for d in docs]), strict=True):
        sent = sources[doc.id].get("embedding", {})
        assert {key: np.float32(weight) for key, weight in sent.items()} == {
            key: np.float32(weight) for key, weight in weights.items()
        }


AGAIN = "the request is sent again"

FAULTS = [
    (Fault(BULK, "status", 2, status=502), "502 by a proxy", AGAIN),
    (Fault(BULK, "status", 2, status=503), "503", AGAIN),
    (Fault(BULK, "status", 2, status=504), "504 by a proxy", AGAIN),
    (Fault(BULK, "status", 2, status=429), "429 for whole requests", "it is sent again in smaller parts"),
    (Fault(BULK, "status", 2, status=413), "413 by a proxy", "it is sent again in smaller parts"),
    (Fault(BULK, "refuse-items", 2, status=429), "429 for some documents", "only they are sent again"),
    (Fault(BULK, "reset", 2), "the connection is cut in the middle of a request", AGAIN),
    (Fault(BULK, "lose-answer", 2), "the answer is lost", AGAIN + ", under the same ids"),
    (Fault(BULK, "hang", 2), "the server never answers", AGAIN + " after --timeout"),
    (Fault(BULK, "trickle", 2, seconds=1.5), "the answer comes slower than --timeout", "it waits"),
]


@pytest.mark.parametrize(
    "fault",
    [incidents.fault(fault, during="`ingest`", what=what, then=then) for fault, what, then in FAULTS],
)
def test_a_network_that_fails_loses_nothing(
    cluster_url, client, tiny: TinyModels, index, fault: Fault, incident: Incident
):
    policy = RetryPolicy(attempts=5, first_wait_s=0.01, max_wait_s=0.02)
    with FaultyProxy(cluster_url, fault) as proxy:
        incident.begins()
        report = ingest(
            connect(ConnectionSettings(url=proxy.url, timeout=1), policy=policy),
            index,
            documents(),
            encoder=tiny.encoder,
            bulk_documents=20,
            workers=1,
        )
        incident.is_over()
        assert fault.times == 0
        assert proxy.count(BULK) >= (2 if fault.kind == "trickle" else 4)
    silent = fault.kind == "trickle" or fault.status == 413
    incident.said("", *[] if silent else ["trying again"])
    assert (report.read, report.indexed, report.refused) == (40, 40, 0)
    hits = client.search(index=index, body={"size": 1000, "query": {"match_all": {}}})["hits"]["hits"]
    incident.documents([doc.id for doc in documents()], [hit["_id"] for hit in hits])


@pytest.mark.incident(
    during="`ingest`",
    what="a gateway answers with its login page in the middle",
    then="it ends and says what answered; no document is refused; the same command again loads all",
)
def test_a_login_page_in_the_middle(
    cluster_url, client, tiny: TinyModels, index, tmp_path, incident: Incident
) -> None:
    letters = tmp_path / "refused.jsonl"
    options = {"encoder": tiny.encoder, "bulk_documents": 10, "workers": 1, "dead_letter": letters}
    with FaultyProxy(cluster_url) as proxy:
        behind = connect(ConnectionSettings(url=proxy.url))

        def stream() -> Iterator[Document]:
            for number, document in enumerate(documents()):
                if number == 20:
                    proxy.wait_for(BULK)
                    proxy.faults.append(Fault(BULK, "page", times=9))
                yield document

        with pytest.raises(ClusterConnectionError) as told:
            ingest(behind, index, stream(), **options)
        incident.said(told.value, rf"{proxy.url} says, as text/html .*200: Log in first")
        proxy.faults.clear()
        report = ingest(behind, index, documents(), **options)
    assert (report.indexed, report.refused) == (40, 0)
    assert not letters.exists()
    incident.documents([doc.id for doc in documents()], list(stored(client, index)))


def test_a_cluster_that_goes_away_is_one_error(cluster_url, client, tiny: TinyModels, index, tmp_path):
    policy = RetryPolicy(attempts=2, first_wait_s=0.01, max_wait_s=0.02)
    letters = tmp_path / "refused.jsonl"
    with FaultyProxy(cluster_url) as proxy:
        lost = connect(ConnectionSettings(url=proxy.url), policy=policy)

        def stream() -> Iterator[Document]:
            for number in range(40):
                if number == 20:
                    proxy.faults.append(Fault("_bulk", "reset", times=1000))
                yield Document(f"{number}", "fox")

        with pytest.raises(ClusterConnectionError, match=r"closed the connection"):
            ingest(
                lost,
                index,
                stream(),
                encoder=tiny.encoder,
                bulk_documents=4,
                dead_letter=letters,
            )
    assert not letters.exists(), "nothing is the documents' fault"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("oskit-")]


def test_ctrl_c_ends_the_command_with_130(cluster_url, client, tiny: TinyModels, index, tmp_path):
    options = ["--url", cluster_url, "--archive", str(tiny.archive), "--bulk-size", "5"]
    command = [sys.executable, "-m", "oskit", "ingest", index, "-", "--json", *options]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdin is not None
        for number in range(40):
            process.stdin.write(json.dumps({"_id": f"{number}", "text": "quick fox"}) + "\n")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # until it waits for more
            if client.indices.exists(index=index):
                client.indices.refresh(index=index)
                if client.count(index=index)["count"] >= 10:
                    break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, warned = process.communicate(timeout=60)
    assert process.returncode == 130
    report = json.loads(said)
    assert 10 <= report["indexed"] <= 40
    assert "interrupted after" in warned and "Run the same command again" in warned
    assert "Traceback" not in warned


def test_a_model_that_goes_away_ends_the_load(cluster_url, client, tiny: TinyModels, index, tmp_path):
    """Its documents are no dead letters: nothing is wrong with them."""
    archive = encoder_archive(tmp_path / f"ingtest-gone-{index[-6:]}.zip", seed=11)
    model_id = deploy_archive(client, open_archive(archive), compare=False).model_id

    def undeployed() -> bool:
        with suppress(ModelError):  # while it encodes what was read before
            undeploy_model(client, model_id, own=True)
            return True
        return False

    def stream() -> Iterator[Document]:
        for number in range(60):
            if number == 40:
                assert wait_until(undeployed, wait_s=60, max_pause_s=0.2)
            yield Document(f"{number}", "fox")

    try:
        gone = r"(Model not ready yet|has been closed already).*Deploy the model"
        hasty = connect(ConnectionSettings(url=cluster_url, retry_for=1))
        with pytest.raises(IndexingError, match=gone):
            ingest(
                hasty,
                index,
                stream(),
                encode="cluster",
                model_id=model_id,
                pipeline_batch_size=1,
                bulk_documents=2,
                workers=1,
                dead_letter=tmp_path / "refused.jsonl",
            )
        assert not (tmp_path / "refused.jsonl").exists()
    finally:
        delete_index(client, index)
        delete_model(client, model_id, own=True)
