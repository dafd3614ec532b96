"""A cluster that cannot take what it is sent: each cause is named, with its way out, and nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from archives import encoder_archive
from incidents import Incident
from opensearchpy import OpenSearch
from own_nodes import OwnNode, archive, client
from tiny_models import indexed

from oskit.archive.archive import open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.index.mapping import delete_index
from oskit.cluster.index.pipeline import pipeline_name
from oskit.cluster.ingest import witness
from oskit.cluster.ingest.load import IngestReport, ingest
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.registry import list_models, wait_until
from oskit.cluster.search.search import search
from oskit.data.documents import Document
from oskit.data.files import read_documents
from oskit.errors import ClusterError, ClusterSettingsError, IndexingError

__all__ = ["archive", "client"]

pytestmark = pytest.mark.integration

LOAD = "`ingest`"
LETTERS = (
    "documents that do not fit are in the dead-letter file with the reason; corrected, that file is loaded"
)


@pytest.fixture(scope="module")
def node() -> Iterator[OwnNode]:
    settings = {
        "http.max_content_length": "12mb",
        # How often the cluster looks at its disks, and how soon after that it may lift its blocks again.
        "cluster.info.update.interval": "10s",
        "cluster.routing.allocation.disk.reroute_interval": "1s",
    }
    with OwnNode("bad-days", settings=settings) as made:
        yield made


@pytest.fixture(scope="module")
def encoder(archive: Path) -> ArchiveEncoder:
    return ArchiveEncoder.open(archive)


@pytest.fixture(scope="module")
def model_id(client: OpenSearch, archive: Path) -> str:
    return deploy_archive(client, open_archive(archive), configure_cluster=True).model_id


@pytest.fixture
def index(client: OpenSearch, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.removeprefix("test_").replace("_", "-")
    yield name
    delete_index(client, name)


def docs(count: int = 40) -> list[Document]:
    return [Document(f"d{number}", "quick fox") for number in range(count)]


def meanwhile(documents: list[Document], happens: Callable[[], Any]) -> Iterator[Document]:
    """The documents; when half of them are read, something happens."""
    for number, document in enumerate(documents):
        if number == len(documents) // 2:
            happens()
        yield document


def check(
    client: OpenSearch, index: str, report: IngestReport, incident: Incident, *, refused: tuple[str, ...] = ()
) -> None:
    """All are indexed but for those, and nothing twice."""
    assert (report.indexed, report.refused) == (40 - len(refused), len(refused))
    check_index(client, index, incident, refused=refused)


def check_index(client: OpenSearch, index: str, incident: Incident, *, refused: tuple[str, ...] = ()) -> None:
    """All are in the index but for those, and nothing twice."""
    found = [hit["_id"] for hit in indexed(client, index)]
    incident.documents([doc.id for doc in docs()], found, refused=refused)


def only_letter(letters: Path) -> dict[str, Any]:
    """The line of the one refused document."""
    (line,) = map(json.loads, letters.read_text().splitlines())
    return dict(line)


def load_again(client: OpenSearch, index: str, letters: Path, encoder: ArchiveEncoder) -> None:
    """The dead-letter file, of which nothing is refused any more."""
    again = ingest(client, index, read_documents([letters]), encoder=encoder)
    assert (again.indexed, again.refused) == (1, 0)


SMALL_BATCHES: dict[str, Any] = {"bulk_documents": 4, "workers": 1}
"""So that the first half is on its way before the second is read."""


@contextmanager
def changed(client: OpenSearch, settings: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Cluster settings for a while; what it gives puts them back early."""
    before = client.cluster.get_settings(params={"flat_settings": "true"})["persistent"]

    def put_back() -> None:
        client.cluster.put_settings(body={"persistent": {name: before.get(name) for name in settings}})

    client.cluster.put_settings(body={"persistent": settings})
    try:
        yield put_back
    finally:
        put_back()


@pytest.mark.incident(
    during=LOAD,
    what="the disks of all nodes are over their watermarks",
    then="it says so, for documents and for a new index; with space again the blocks go away, and the load "
    "that waited goes on",
)
def test_disks_over_their_watermarks(
    node: OwnNode, client: OpenSearch, encoder: ArchiveEncoder, index: str, incident: Incident
) -> None:
    ingest(client, index, docs(10), encoder=encoder)
    hasty = connect(ConnectionSettings(url=node.url, retry_for=0))
    too_much = f"{2 * shutil.disk_usage(node.folder).free}b"
    levels = ("low", "high", "flood_stage")
    watermarks = {f"cluster.routing.allocation.disk.watermark.{level}": too_much for level in levels}

    def blocked() -> set[str]:
        blocks = client.cluster.state(metric="blocks")["blocks"]
        found = {*blocks.get("global", {}), *blocks.get("indices", {}).get(index, {})}
        return {str(block) for block in found}

    with changed(client, watermarks) as put_back:
        assert wait_until(lambda: len(blocked()) == 2 or None, wait_s=60), blocked()
        with pytest.raises(IndexingError, match=r"flood-stage watermark.*Free disk space") as full:
            ingest(hasty, index, docs(), encoder=encoder)
        short = r"short of disk space.*by itself within two minutes"
        with pytest.raises(ClusterSettingsError, match=short) as new:
            ingest(hasty, f"{index}-new", docs(), encoder=encoder)
        incident.said([full.value, new.value], "flood-stage watermark.*Free disk space", short)
        put_back()
        incident.begins()
        report = ingest(client, index, docs(), encoder=encoder)
        incident.is_over()
        assert wait_until(lambda: not blocked() or None, wait_s=60), blocked()
    check(client, index, report, incident)


@pytest.mark.incident(
    during=LOAD,
    what="the disk is full: the index is read-only",
    then="it waits for the block to be lifted, two minutes at most, then ends and says so",
)
def test_a_full_disk(
    node: OwnNode, client: OpenSearch, encoder: ArchiveEncoder, index: str, tmp_path: Path, incident: Incident
) -> None:
    ingest(client, index, docs(10), encoder=encoder)
    letters = tmp_path / "refused.jsonl"
    # As the flood stage of the disk watermarks does; the cluster lifts it when it finds enough space.
    block = {"index.blocks.read_only_allow_delete": True}
    client.indices.put_settings(index=index, body=block)
    hasty = connect(ConnectionSettings(url=node.url, retry_for=0))
    with pytest.raises(IndexingError, match=r"flood-stage watermark.*Free disk space"):
        ingest(hasty, index, docs(), encoder=encoder, dead_letter=letters)
    client.indices.put_settings(index=index, body=block)
    incident.begins()
    report = ingest(client, index, docs(), encoder=encoder, dead_letter=letters)
    incident.is_over()
    assert report.retries > 0
    incident.said("", "trying again")
    assert not letters.exists()
    check(client, index, report, incident)


@pytest.mark.incident(
    during=f"{LOAD}, encoded by the cluster",
    what="an open memory breaker",
    then="it waits until the breaker closes, and goes on",
)
def test_an_open_breaker(client: OpenSearch, model_id: str, index: str, incident: Incident) -> None:
    with changed(client, {"plugins.ml_commons.jvm_heap_memory_threshold": 1}) as put_back:
        threading.Timer(4, put_back).start()
        incident.begins()
        report = ingest(client, index, docs(), encode="cluster", model_id=model_id)
        incident.is_over()
    incident.said("", "trying again")
    check(client, index, report, incident)


@pytest.mark.incident(
    during=f"{LOAD}, encoded by the cluster",
    what="local models are disabled for a while",
    then="it waits until they are allowed again, and goes on; no document is refused",
)
def test_local_models_that_are_disabled_for_a_while(
    client: OpenSearch, model_id: str, index: str, tmp_path: Path, incident: Incident
) -> None:
    letters = tmp_path / "refused.jsonl"
    documents = docs()
    with ExitStack() as stack:

        def disable() -> None:
            put_back = stack.enter_context(changed(client, LOCAL_MODELS_OFF))
            threading.Timer(3, put_back).start()
            incident.begins()

        report = ingest(
            client,
            index,
            meanwhile(documents, disable),
            encode="cluster",
            model_id=model_id,
            dead_letter=letters,
            **SMALL_BATCHES,
        )
        incident.is_over()
    assert report.retries > 0
    incident.said("", "runs no models of its own.*waiting until that changes")
    assert not letters.exists()
    check(client, index, report, incident)


LOCAL_MODELS_OFF = {"plugins.ml_commons.local_model.enabled": False}


@pytest.mark.incident(
    during=f"{LOAD}, encoded by the cluster",
    what="local models are disabled for good",
    then="after --retry-for it ends and names the setting; no document is refused; the same command again "
    "loads the rest",
)
def test_local_models_that_are_disabled(
    node: OwnNode, client: OpenSearch, model_id: str, index: str, tmp_path: Path, incident: Incident
) -> None:
    letters = tmp_path / "refused.jsonl"
    options: dict[str, Any] = {"encode": "cluster", "model_id": model_id, "dead_letter": letters}
    hasty = connect(ConnectionSettings(url=node.url, retry_for=1))
    with ExitStack() as stack:
        stream = meanwhile(docs(), lambda: stack.enter_context(changed(client, LOCAL_MODELS_OFF)))
        with pytest.raises(IndexingError) as told:
            ingest(hasty, index, stream, **options, **SMALL_BATCHES)
    incident.said(told.value, r"local_model\.enabled.*same command again")
    report = ingest(client, index, docs(), **options)
    assert not letters.exists()
    check(client, index, report, incident)


def refuses(condition: str) -> dict[str, Any]:
    """Somebody's pipeline that refuses documents in words of its own."""
    return {"processors": [{"fail": {"if": condition, "message": "not on a Saturday"}}]}


@pytest.mark.incident(
    during=LOAD,
    what="somebody's pipeline begins to refuse all documents, in words that nobody knows",
    then="it ends and says so, since what it took before is refused too; no document is a dead letter",
)
def test_a_pipeline_that_begins_to_refuse_all(
    client: OpenSearch, encoder: ArchiveEncoder, index: str, tmp_path: Path, incident: Incident
) -> None:
    letters = tmp_path / "refused.jsonl"
    name = f"{index}-somebody"
    try:
        client.ingest.put_pipeline(id=name, body=refuses("ctx._id == 'd7'"))
        ingest(client, index, [], encoder=encoder)
        client.indices.put_settings(index=index, body={"index.final_pipeline": name})

        def refuse_all() -> None:
            assert wait_until(lambda: indexed(client, index) or None, wait_s=20)
            client.ingest.put_pipeline(id=name, body=refuses("true"))

        with pytest.raises(IndexingError) as told:
            stream = meanwhile(docs(60)[20:], refuse_all)
            ingest(client, index, stream, encoder=encoder, dead_letter=letters, **SMALL_BATCHES)
        incident.said(told.value, r"reason that is not its own .*not on a Saturday")
        assert not letters.exists()
        client.ingest.put_pipeline(id=name, body=refuses("ctx._id == 'd7'"))
        report = ingest(client, index, docs(), encoder=encoder, dead_letter=letters)
        assert only_letter(letters)["_id"] == "d7"
        check(client, index, report, incident, refused=("d7",))
        # What shows that the others are taken is not written once more.
        versions = [client.get(index=index, id=f"d{number}")["_version"] for number in (0, 1, 2)]
        assert versions == [1, 1, 1]
    finally:
        client.indices.put_settings(index=index, body={"index.final_pipeline": None})
        client.ingest.delete_pipeline(id=name)


@pytest.mark.incident(during=LOAD, what="a value that does not fit the mapping", then=LETTERS)
def test_a_mapping_conflict(
    client: OpenSearch, encoder: ArchiveEncoder, index: str, tmp_path: Path, incident: Incident
) -> None:
    letters = tmp_path / "refused.jsonl"
    documents = docs()
    documents[0] = Document("d0", "quick fox", fields={"year": 2020})
    documents[7] = Document("d7", "quick fox", fields={"year": "last", "tags": ["a"]})
    report = ingest(
        client, index, documents, encoder=encoder, bulk_documents=1, workers=1, dead_letter=letters
    )
    assert (report.indexed, report.refused) == (39, 1)
    line = only_letter(letters)
    incident.said(line["_oskit"]["reason"], r"failed to parse field \[year\]")
    letters.write_text(json.dumps({**line, "year": 2021}))
    load_again(client, index, letters, encoder)
    check_index(client, index, incident)


@pytest.mark.incident(
    during=LOAD,
    what="the index has as many fields as it may",
    then="the dead-letter file names the setting; when it is raised, that file is loaded as it is",
)
def test_a_field_limit(
    client: OpenSearch, encoder: ArchiveEncoder, index: str, tmp_path: Path, incident: Incident
) -> None:
    letters = tmp_path / "refused.jsonl"
    ingest(client, index, docs(1), encoder=encoder)
    limit = "index.mapping.total_fields.limit"
    client.indices.put_settings(index=index, body={limit: 8})
    documents = docs()
    documents[7] = Document("d7", "quick fox", fields={f"field{n}": n for n in range(20)})
    report = ingest(client, index, documents, encoder=encoder, dead_letter=letters)
    assert (report.indexed, report.refused) == (39, 1)
    line = only_letter(letters)
    call = re.escape(f'PUT {index}/_settings {{"{limit}": ')
    incident.said(line["_oskit"]["reason"], r"Limit of total fields \[8\] has been exceeded", call)
    client.indices.put_settings(index=index, body={limit: 100})
    load_again(client, index, letters, encoder)
    check_index(client, index, incident)


@pytest.mark.incident(
    during=LOAD,
    what="a document over the size limit of a request",
    then="it travels alone and is refused; the rest is loaded in full requests",
)
def test_a_document_over_the_size_limit(
    client: OpenSearch, encoder: ArchiveEncoder, index: str, tmp_path: Path, incident: Incident
) -> None:
    letters = tmp_path / "refused.jsonl"
    documents = docs()
    documents[7] = Document("d7", "quick fox " * 1_300_000)
    report = ingest(client, index, documents, encoder=encoder, dead_letter=letters)
    line = only_letter(letters)
    assert line["_id"] == "d7"
    assert line["text"] == documents[7].text
    incident.said(line["_oskit"]["reason"], "(?i)too large")
    check(client, index, report, incident, refused=("d7",))


@pytest.mark.incident(
    during=LOAD,
    what="the index is closed",
    then="it ends and says how to open it; the same command again loads all",
)
def test_a_closed_index(
    client: OpenSearch, encoder: ArchiveEncoder, index: str, tmp_path: Path, incident: Incident
) -> None:
    letters = tmp_path / "refused.jsonl"
    stream = meanwhile(docs(), lambda: client.indices.close(index=index))
    opening = rf"clos.*POST {index}/_open"
    with pytest.raises(IndexingError, match=opening):
        ingest(client, index, stream, encoder=encoder, dead_letter=letters, **SMALL_BATCHES)
    assert not letters.exists()
    with pytest.raises(ClusterError, match=opening) as told:  # from the start
        ingest(client, index, docs(), encoder=encoder, dead_letter=letters)
    incident.said(told.value, opening)
    with pytest.raises(ClusterError, match=opening):
        search(client, index, "fox", encoder=encoder)
    client.indices.open(index=index, params={"wait_for_active_shards": "1"})
    report = ingest(client, index, docs(), encoder=encoder)
    check(client, index, report, incident)


@pytest.mark.incident(
    during=LOAD,
    what="somebody deletes the index",
    then="within seconds it ends and says so, although the cluster makes another, whose refusals are no dead "
    "letters; without that the same command loads all",
)
def test_a_deleted_index(
    client: OpenSearch,
    encoder: ArchiveEncoder,
    index: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    incident: Incident,
) -> None:
    monkeypatch.setattr(witness, "CHECK_EVERY_S", 0.2)
    letters = tmp_path / "refused.jsonl"
    read: list[str] = []

    def stream() -> Iterator[Document]:
        for document in meanwhile(docs(4000), lambda: client.indices.delete(index=index)):
            read.append(document.id)
            if len(read) > 2000:  # a slow source: a busy machine needs some looks
                time.sleep(0.01)
            yield document

    with pytest.raises(IndexingError) as told:
        ingest(client, index, stream(), encoder=encoder, dead_letter=letters, **SMALL_BATCHES)
    incident.said(told.value, r"(was deleted.*DELETE|is gone).*same command")
    assert 2000 < len(read) < 4000, "it is noticed before the end"
    assert not letters.exists()
    delete_index(client, index)
    report = ingest(client, index, docs(), encoder=encoder)
    check(client, index, report, incident)


@pytest.mark.incident(
    during=f"{LOAD}, encoded by the cluster",
    what="somebody deletes the ingest pipeline",
    then="it ends and says so; the same command again makes it anew and loads all",
)
def test_a_missing_pipeline(
    client: OpenSearch, model_id: str, index: str, tmp_path: Path, incident: Incident
) -> None:
    letters = tmp_path / "refused.jsonl"
    options: dict[str, Any] = {"encode": "cluster", "model_id": model_id, "dead_letter": letters}

    def take_it() -> None:
        client.indices.put_settings(index=index, body={"index.default_pipeline": "_none"})
        client.ingest.delete_pipeline(id=pipeline_name(index))

    with pytest.raises(IndexingError) as told:
        ingest(client, index, meanwhile(docs(), take_it), **options, **SMALL_BATCHES)
    incident.said(told.value, r"pipeline.*run the command again")
    report = ingest(client, index, docs(), **options)
    assert not letters.exists()
    check(client, index, report, incident)
    assert len(search(client, index, "fox", model_id=model_id, size=50).hits) == 40


@pytest.mark.incident(
    during="`deploy`",
    what="`max_model_on_node` is reached",
    then="it says which setting, before anything is sent; `--configure-cluster` raises it",
)
def test_no_room_for_another_model(
    client: OpenSearch, model_id: str, tmp_path: Path, incident: Incident
) -> None:
    archive = open_archive(encoder_archive(tmp_path / "one-too-many.zip", seed=31))
    before = {model_id}
    with changed(client, {"plugins.ml_commons.max_model_on_node": 1}):
        with pytest.raises(ClusterSettingsError) as told:
            deploy_archive(client, archive)
        incident.said(told.value, "max_model_on_node", "--configure-cluster")
        incident.orphans({model.model_id for model in list_models(client)} - before)
