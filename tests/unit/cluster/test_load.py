"""A whole load against a fake cluster: memory, what fails first, and what fails on this machine."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.retry import request_timeout
from oskit.cluster.ingest.accounting import MAX_REASONS, OTHER_REASONS, Account
from oskit.cluster.ingest.admission import WINDOW_DOCUMENTS
from oskit.cluster.ingest.bulk import BulkItem
from oskit.cluster.ingest.dead_letter import DeadLetterFile
from oskit.cluster.ingest.load import IngestInterrupted, ingest
from oskit.cluster.ingest.senders import Senders
from oskit.cluster.ingest.sizes import RequestSizes
from oskit.cluster.ingest.stages import Line
from oskit.data.documents import Document
from oskit.data.duplicates import SeenTexts
from oskit.errors import ClusterAuthError, DataError, EncoderError, IndexingError, UsageError
from tests.fake_ingest import FakeIngest, FixedEncoder

ENCODER = FixedEncoder({"a": 1.0})


def peak() -> int:
    """In bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load_and_measure() -> None:
    """Prints by how many bytes the memory grew; called in a process of its own."""
    mebibyte = 1 << 20

    def document(n: int) -> Document:
        large = f"{n}" + "x" * (40 if n == 50 else 2) * mebibyte
        return Document(f"{n}", "fox", large) if n % 2 else Document(f"{n}", "fox", fields={"page": large})

    documents = map(document, range(100))
    with FakeIngest() as server:
        client = connect(ConnectionSettings(url=server.url))
        before = peak()
        report = ingest(client, "i", documents, encoder=ENCODER)
        assert (report.indexed, server.documents) == (100, 100)
        assert sorted(server.sizes)[-2] < 6_000_000, "the large one travels alone"
        print(peak() - before)


def test_memory_is_bounded_by_bytes_and_not_by_documents():
    """240 MiB in 100 documents, the server's share included; the largest comes a few times over."""
    command = [sys.executable, "-c", "from test_load import load_and_measure as run; run()"]
    said = subprocess.run(
        command,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert int(said.stdout) < 400 * 1024 * 1024


@pytest.mark.parametrize("large", [0, 777])
def test_one_document_over_a_proxys_limit_leaves_the_others_in_full_requests(large: int, tmp_path: Path):
    """The first or another, with two senders: 8 requests without it, and a few to find it."""
    letters = tmp_path / "refused.jsonl"
    documents = (Document(f"{n}", "x" * (1_500_000 if n == large else 100)) for n in range(4000))
    with FakeIngest(limit=1_000_000) as server:
        client = connect(ConnectionSettings(url=server.url))
        report = ingest(client, "i", documents, encoder=ENCODER, dead_letter=letters)
        assert (report.indexed, report.refused, server.documents) == (3999, 1, 3999)
        assert len(server.sizes) <= 8 + 5, server.sizes
    (line,) = map(json.loads, letters.read_text().splitlines())
    assert line["_id"] == f"{large}"
    assert "too large" in line["_oskit"]["reason"]


@pytest.mark.parametrize("good", [0, 100])
def test_a_load_is_hopeless_only_where_nothing_before_is_worth_sending(good: int):
    """Refused before anything is sent, by a field that OpenSearch keeps for itself."""
    documents = (Document(f"{n}", "x", fields={"_routing": n} if n >= good else {}) for n in range(5000))
    with FakeIngest() as server:
        client = connect(ConnectionSettings(url=server.url))
        if good:
            report = ingest(client, "i", documents, encoder=ENCODER)
            assert (report.indexed, report.refused) == (good, 5000 - good)
        else:
            with pytest.raises(IndexingError, match="the first 1,000 records were all refused"):
                ingest(client, "i", documents, encoder=ENCODER)


def account(**options: object) -> Account:
    return Account("i", None, **options)  # type: ignore[arg-type]


def test_what_failed_first_is_told():
    failed = threading.Event()

    class Failing:
        def send(self, items, outcome):
            failed.set()
            raise IndexingError("the index is closed")

    item = BulkItem(Document("1", "x"), b"{}\n{}\n")
    with pytest.raises(IndexingError, match="the index is closed"), Line() as line:
        senders = Senders(line, Failing, account(), workers=2, bulk_documents=1, sizes=RequestSizes(1000))
        senders.put([item])
        assert failed.wait(10) and line.stop.wait(10)
        raise IndexingError("a consequence of that")


@pytest.mark.parametrize("fault", ["read", "encode", "send", "Ctrl-C"])
def test_whatever_fails_all_threads_end_and_the_count_is_true(fault: str):
    class Encoder(FixedEncoder):
        calls = 0

        def document_matrix(self, texts):
            self.calls += 1
            if fault == "encode" and self.calls > 20:
                raise EncoderError("the model fails")
            return super().document_matrix(texts)

    def documents():
        for n in range(20_000):
            if n == 9_000 and fault in ("read", "Ctrl-C"):
                raise DataError("the file ends") if fault == "read" else KeyboardInterrupt
            yield Document(f"{n}", "x" * (2_000_000 if n == 9_000 else 10))

    expected = {"read": DataError, "encode": EncoderError, "send": ClusterAuthError}
    forbidden = {"error": {"type": "security_exception"}, "status": 403}
    with FakeIngest(limit=1_000_000, words=forbidden) as server:
        with pytest.raises(expected.get(fault, IngestInterrupted)) as caught:
            ingest(connect(ConnectionSettings(url=server.url)), "i", documents(), encoder=Encoder({"a": 1.0}))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("oskit-")]
        if isinstance(caught.value, IngestInterrupted):
            assert caught.value.report.read == caught.value.report.indexed == server.documents
        elif server.documents or fault != "encode":
            growing = 16 * (1 + 2 + 4 + 8 + 16)
            whole = growing + (9_000 - growing) // WINDOW_DOCUMENTS * WINDOW_DOCUMENTS
            assert fault != "read" or server.documents == whole
            assert f"after {server.documents:,} documents were indexed" in str(caught.value)


def test_ctrl_c_while_the_last_documents_are_encoded_waits_for_the_encoder():
    """When all is read: a process that ended before would be aborted in ONNX Runtime."""
    ended = threading.Event()

    class Slow(FixedEncoder):
        def document_matrix(self, texts):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
            ended.set()
            return super().document_matrix(texts)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process of many tests may have none
    try:
        with FakeIngest() as server, pytest.raises(IngestInterrupted):
            client = connect(ConnectionSettings(url=server.url))
            ingest(client, "i", [Document("1", "x")], encoder=Slow({"a": 1.0}))
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("oskit-")]


def test_the_next_documents_are_read_while_some_are_encoded():
    ahead = threading.Event()

    class Encoder(FixedEncoder):
        def document_matrix(self, texts):
            assert ahead.wait(30), "nobody reads on"
            return super().document_matrix(texts)

    def documents():
        for n in range(2_000):
            if n == 1_900:
                ahead.set()
            yield Document(f"{n}", "x")

    with FakeIngest() as server:
        client = connect(ConnectionSettings(url=server.url))
        report = ingest(client, "i", documents(), encoder=Encoder({"a": 1.0}))
    assert report.indexed == 2_000 and 0 <= (report.encoder_busy or -1) <= 1


def test_different_reasons_are_bounded():
    letters = account()
    for n in range(20_000):
        letters.refuse(Document(f"id-{n}", "x"), f"the value {n} is bad" if n % 10 else "the usual")
    report = letters.report()
    assert len(letters._reasons) <= MAX_REASONS + 1
    assert report.reasons["the usual"] == 2000
    assert sum(letters._reasons.values()) == report.refused == 20_000
    assert report.reasons[OTHER_REASONS] > 10_000


def test_an_id_is_left_out_of_a_reason_and_no_words_of_it():
    letters = account()
    for name in ("a", "e", "o'b"):
        letters.refuse(Document(name, "x"), f"the id {name!r} came before, see [{name}]")
    assert letters.report().reasons == {
        "the id '…' came before, see […]": 2,
        'the id "…" came before, see […]': 1,
    }


def test_a_dead_letter_is_not_written_into_a_line_that_broke_off(tmp_path: Path):
    path = tmp_path / "letters.jsonl"
    path.write_text('{"_id":"1","te')
    for name in ("2", "3"):
        letters = DeadLetterFile(path)
        letters.add(Document(name, "x"), "because")
        letters.close()
    broken, *lines = path.read_text().splitlines()
    assert (broken, [json.loads(line)["_id"] for line in lines]) == ('{"_id":"1","te', ["2", "3"])


def test_a_full_disk_is_told_once(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    letters = DeadLetterFile("/dev/full")
    with pytest.raises(DataError, match=r"/dev/full: No space left on device. Free some"):
        letters.add(Document("1", "a"), "x")
    letters.close()


@pytest.mark.parametrize("problem", ["database or disk is full", "unable to open database file"])
def test_a_full_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str):
    class Full:
        def execute(self, statement, values=()):
            raise sqlite3.OperationalError(problem)

        def close(self):
            pass

    monkeypatch.delenv("SQLITE_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    seen = SeenTexts()
    monkeypatch.setattr(seen, "_database", Full())
    with pytest.raises(DataError, match=f"{tmp_path}: {problem}.*TMPDIR"):
        seen.add("text")


def test_the_temporary_folder_really_is_the_one_that_is_named(tmp_path: Path):
    """SQLite reads the environment when a process first needs it."""
    script = (
        "from oskit.data.duplicates import SeenTexts, _sqlite_folder; import os\n"
        "seen = SeenTexts()\n"
        "for n in range(100_000): seen.add(str(n))\n"
        "files = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if "
        "os.path.islink(f'/proc/self/fd/{fd}')]\n"
        "print([name for name in files if name.startswith(_sqlite_folder() + '/')])"
    )
    command = [sys.executable, "-c", script]
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert str(tmp_path) in said.stdout, said


def test_a_time_out_that_somebody_chose_holds_for_every_request():
    def limit(**settings: float) -> float | None:
        return request_timeout(connect(ConnectionSettings(**settings)), 300)  # type: ignore[arg-type]

    assert limit() == 300
    assert limit(timeout=60) is None


def test_a_batch_size_without_effect_is_refused():
    client = connect(ConnectionSettings(url="http://127.0.0.1:1"))
    with pytest.raises(UsageError, match="no effect where the cluster does not encode"):
        ingest(client, "i", [], encoder=ENCODER, pipeline_batch_size=4)
