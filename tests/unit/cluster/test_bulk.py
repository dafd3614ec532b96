"""What becomes of the items of a bulk request, whatever the cluster answers."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_bulk import ScriptedBulk

from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.retry import RetryPolicy
from oskit.cluster.ingest import witness
from oskit.cluster.ingest.bulk import BulkItem, BulkOutcome, BulkSender
from oskit.cluster.ingest.sizes import LEAST_BYTES, SLOW_BYTES_S, RequestSizes
from oskit.cluster.ingest.witness import Witness
from oskit.data.documents import Document
from oskit.errors import ClusterAuthError, ClusterConnectionError, ClusterError, IndexingError
from tests.http_server import HttpServer, Reply, Request

FAST = RetryPolicy(attempts=4, first_wait_s=0.001, max_wait_s=0.002)


def items(count: int) -> list[BulkItem]:
    return [
        BulkItem(Document(f"{n}", "x"), f'{{"index":{{"_id":"{n}"}}}}\n{{"text":"x"}}\n'.encode())
        for n in range(count)
    ]


def send(script, count: int) -> tuple[BulkOutcome, list[list[str]]]:
    with ScriptedBulk(script) as server:
        outcome = BulkSender(server.client(FAST), "i").send(items(count))
    return outcome, server.requests


def test_only_the_items_that_failed_are_sent_again():
    attempts: Counter[str] = Counter()

    def script(ids):
        attempts.update(ids)
        return [429 if int(i) % 3 == 0 and attempts[i] == 1 else 201 for i in ids]

    outcome, _ = send(script, 10)
    assert (outcome.indexed, outcome.refused, outcome.retries) == (10, [], 4)
    assert {i for i, count in attempts.items() if count > 1} == {"0", "3", "6", "9"}


def test_an_answer_is_about_the_document_that_it_names():
    """Seen on 3.6: what a pipeline refuses stands in the order in which its batches failed."""
    error = {"type": "mapper_parsing_exception", "reason": "a bad value"}
    busy = {"type": "rejected_execution_exception", "reason": "busy"}

    def script(ids):
        if len(ids) < 4:
            return [201] * len(ids)
        answers = [(200, "0", None), (429, "3", busy), (200, "2", None), (400, "1", error)]
        return Reply(body={"items": [{"index": {"_id": i, "status": s, "error": e}} for s, i, e in answers]})

    outcome, requests = send(script, 4)
    assert (outcome.indexed, [refused.document.id for refused in outcome.refused]) == (3, ["1"])
    assert requests == [["0", "1", "2", "3"], ["3"]]


def test_answers_about_other_documents_count_for_none():
    def script(ids):
        return Reply(body={"items": [{"index": {"_id": f"{i}!", "status": 201}} for i in ids]})

    with pytest.raises(ClusterConnectionError, match="speaks of 0 of 3 documents"):
        send(script, 3)


def test_what_stays_refused_comes_back_with_its_reason():
    outcome, _ = send(lambda ids: [400 if i == "1" else 200 for i in ids], 4)
    assert outcome.indexed == 3
    (refused,) = outcome.refused
    assert (refused.document.id, refused.status) == ("1", 400)
    assert refused.reason == "item_exception: item 400; illegal_argument_exception: because"


@pytest.mark.parametrize("status", [429, 503])
def test_a_document_that_the_cluster_is_too_busy_for_ends_the_load(status: int):
    """Nothing is wrong with it: it is no dead letter, and the others would wait as long."""
    outcome = BulkOutcome()
    with (
        ScriptedBulk(lambda ids: [status if i == "2" else 201 for i in ids]) as server,
        pytest.raises(IndexingError, match="wait longer with --retry-for"),
    ):
        BulkSender(server.client(FAST), "i").send(items(4), outcome)
    assert (outcome.indexed, outcome.refused) == (3, [])


def test_a_document_that_fails_whole_requests_is_found_by_halving():
    outcome, requests = send(lambda ids: 400 if "5" in ids else [201] * len(ids), 16)
    assert outcome.indexed == 15
    assert [item.document.id for item in outcome.refused] == ["5"]
    assert len(requests) < 16


def test_one_document_over_a_proxys_limit_costs_the_others_nothing():
    """As behind nginx, whose limit nobody knows; the document does not come with the first request."""
    limit, requests = 40_000, []
    made = [BulkItem(Document(f"{n}", "x"), padded(n, 50_000 if n == 1234 else 30)) for n in range(4000)]
    sizes = RequestSizes(5_000_000)

    def script(ids):
        requests.append(len(ids))
        size = sum(len(made[int(i)].payload) for i in ids)
        return 413 if size > limit else [201] * len(ids)

    with ScriptedBulk(script) as server:
        sender, outcome = BulkSender(server.client(FAST), "i", sizes=sizes), BulkOutcome()
        for start in range(0, len(made), 500):
            sender.send(made[start : start + 500], outcome)
    assert outcome.indexed == 3999
    assert [item.document.id for item in outcome.refused] == ["1234"]
    assert len(requests) <= 8 + 4


def test_a_low_limit_is_found_and_kept():
    made = [BulkItem(Document(f"{n}", "x"), padded(n, 1000)) for n in range(400)]
    with ScriptedBulk(lambda ids: 413 if len(ids) > 33 else [201] * len(ids)) as server:
        outcome = BulkSender(server.client(FAST), "i").send(made)
    assert (outcome.indexed, outcome.refused) == (400, [])
    assert len(server.requests) <= 400 / 25 + 5


def requests_over(
    link: float, cluster: float, sizes: RequestSizes, count: int = 40
) -> list[tuple[int, float]]:
    """Bytes and seconds of requests over a link and into a cluster, that take so many bytes a second."""
    made = []
    for _ in range(count):
        size, compressed = sizes.budget, sizes.compresses
        cluster_s = size / cluster
        seconds = cluster_s + size / link / (3 if compressed else 1)
        if seconds > 60:
            sizes.late(size)
        else:
            sizes.answered(size, seconds, cluster_s, compressed=compressed)
        made.append((size, seconds))
    return made


@pytest.mark.parametrize("link", [4e3, 1e5, 1e6, 1e9])
@pytest.mark.parametrize("cluster", [5e3, 1e5, 1e9])
def test_requests_are_as_large_as_can_be_answered_in_time(link: float, cluster: float):
    sizes = RequestSizes(5_000_000, 12.0, compresses=True)
    made = requests_over(link, cluster, sizes)
    assert sum(seconds > 60 for _, seconds in made) <= 2, "few are lost until it is known"
    assert all(seconds < 24 or size <= LEAST_BYTES for size, seconds in made[10:])
    size, seconds = made[-1]
    assert size == 5_000_000 or seconds > 6 or size <= LEAST_BYTES, "and no smaller"
    if link >= SLOW_BYTES_S or cluster > link:  # else it does not matter
        assert sizes.compresses == (link < SLOW_BYTES_S)
    requests_over(link / 10, cluster / 10, sizes)
    assert all(
        seconds < 24 or size <= LEAST_BYTES for size, seconds in requests_over(link, cluster, sizes, 9)
    )


def test_a_slow_link_gets_compressed_requests_and_who_does_not_understand_them_gets_others():
    refused = []

    def answer(request: Request) -> Reply:
        if is_compressed := request.headers.get("content-encoding") == "gzip":
            if understands:
                compressed.append(request.body)
            else:
                refused.append(request.body)
                return Reply(415, b"what is that?")
        time.sleep(0 if is_compressed else len(request.body) / 10e6)
        ids.extend(re.findall(rb'"_id":"(\d+)"', request.body))
        count = request.body.count(b"\n") // 2
        return Reply(body={"took": 0, "items": [{"index": {"status": 201}}] * count})

    made = [BulkItem(Document(f"{n}", "x"), padded(n, 1000)) for n in range(2000)]
    for understands in (True, False):
        ids, compressed = [], []
        with HttpServer(answer) as server:
            client = connect(ConnectionSettings(url=server.url), policy=FAST)
            outcome = BulkSender(client, "i", sizes=RequestSizes(200_000, compresses=True)).send(made)
        assert (outcome.indexed, outcome.refused) == (2000, [])
        assert sorted(map(int, ids)) == list(range(2000))
        assert (len(compressed) > 3) == understands
    assert len(refused) == 1


def padded(number: int, size: int) -> bytes:
    return f'{{"index":{{"_id":"{number}"}}}}\n{{"text":"{"x" * size}"}}\n'.encode()


def test_requests_that_are_too_large_shrink_for_good():
    outcome, requests = send(lambda ids: 413 if len(ids) > 3 else [201] * len(ids), 40)
    assert (outcome.indexed, outcome.refused) == (40, [])
    sizes = [len(ids) for ids in requests]
    assert sizes[:5] == [40, 20, 10, 5, 2]
    assert max(sizes[5:]) == 2


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_cluster_gets_smaller_requests_later(status: int):
    answers = iter([status, status])
    outcome, requests = send(lambda ids: next(answers, None) or [201] * len(ids), 8)
    assert outcome.indexed == 8
    assert [len(ids) for ids in requests[:3]] == [8, 4, 2]


def test_a_cluster_that_stays_busy_is_given_up():
    with pytest.raises(ClusterError, match="index documents into 'i'"):
        send(lambda ids: 503, 4)
    with pytest.raises(ClusterAuthError):
        send(lambda ids: 401, 4)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_is_no_documents_fault_ends_the_load(status: int):
    outcome = BulkOutcome()
    with (
        ScriptedBulk(lambda ids: [201, status, 200]) as server,
        pytest.raises(IndexingError, match=f"item {status}"),
    ):
        BulkSender(server.client(FAST), "i").send(items(3), outcome)
    assert outcome.indexed == 2, "the rest of the answer is known"


OFF = (400, "Local Model is currently disabled. To enable it, update the setting ...")


def test_a_model_that_is_away_for_a_while_is_waited_for(caplog: pytest.LogCaptureFixture):
    answers = iter([False, True, True, True])
    outcome, _ = send(lambda ids: [OFF if next(answers, False) else 201 for _ in ids], 4)
    assert (outcome.indexed, outcome.refused) == (4, [])
    (line,) = caplog.messages
    assert "runs no models of its own (400: " in line and "waiting until that changes, 120 s at most" in line


def test_a_model_that_stays_away_ends_the_load():
    outcome = BulkOutcome()
    with (
        ScriptedBulk(lambda ids: [201 if i == "0" else OFF for i in ids]) as server,
        pytest.raises(IndexingError, match=r"runs no models of its own.*local_model.enabled"),
    ):
        BulkSender(server.client(FAST), "i").send(items(2), outcome)
    assert (outcome.indexed, outcome.refused) == (1, [])


NEWS = "the flux capacitor is disabled"


def test_words_that_nobody_knows_are_the_documents_where_others_are_taken():
    outcome, _ = send(lambda ids: [(400, f"{NEWS} in [{i}]") if int(i) % 5 == 1 else 201 for i in ids], 20)
    assert outcome.indexed == 16
    assert sorted(int(item.document.id) for item in outcome.refused) == [1, 6, 11, 16]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_words_that_nobody_knows_are_the_clusters_where_it_takes_nothing_any_more(whole: bool, alike: bool):
    """Also where the words quote each document, and where the request fails as a whole."""
    outcome, requests = BulkOutcome(), itertools.count()

    def script(ids):
        if next(requests) < 2:
            return [201] * len(ids)
        return (
            400 if whole else [(400, NEWS if alike else f"{NEWS}: text of {chr(97 + int(i))}") for i in ids]
        )

    with ScriptedBulk(script) as server, pytest.raises(IndexingError, match=r"reason that is not its own"):
        sender = BulkSender(server.client(FAST), "i")
        for start in range(0, 20, 5):
            sender.send(items(20)[start : start + 5], outcome)
    assert (outcome.indexed, outcome.refused) == (10, [])


@pytest.mark.parametrize("count", [1, 4, 400])
def test_what_the_cluster_refuses_from_the_start_is_no_dead_letter(count: int):
    outcome = BulkOutcome()
    with (
        ScriptedBulk(lambda ids: [(400, f"{NEWS} for [{i}]") for i in ids]) as server,
        pytest.raises(IndexingError, match=f"none was taken.*such as '0' .*{NEWS}"),
    ):
        BulkSender(server.client(FAST), "i").send(items(count), outcome)
    assert (outcome.indexed, outcome.refused) == (0, [])
    assert len(server.requests) < 30


def test_bad_documents_that_come_first_are_found_all_the_same():
    outcome, _ = send(lambda ids: [(400, NEWS) if int(i) < 3 else 201 for i in ids], 6)
    assert (outcome.indexed, sorted(item.document.id for item in outcome.refused)) == (3, ["0", "1", "2"])


def test_what_was_refused_in_passing_is_indexed():
    attempts: Counter[str] = Counter()

    def script(ids):
        attempts.update(ids)
        return [(400, NEWS) if i in "23" and attempts[i] == 1 else 201 for i in ids]

    outcome, _ = send(script, 5)
    assert (outcome.indexed, outcome.refused) == (5, [])


@pytest.mark.parametrize(
    "item", [(400, NEWS), (500, "Infinite loop in property interpolation of ${parameters.texts}")]
)
def test_one_that_a_model_fails_for_does_not_take_others_along(item):
    """What is encoded together gets one answer."""
    outcome, _ = send(lambda ids: [item if "7" in ids else 201] * len(ids), 12)
    assert outcome.indexed == 11
    assert [item.document.id for item in outcome.refused] == ["7"]


@pytest.mark.parametrize("answer", [429, (429, "busy"), (500, "on fire"), (400, "Model not ready yet")])
def test_a_cluster_that_cannot_tell_is_asked_again_and_given_up(answer):
    """Nobody knows the words, and the document that was taken is not judged meanwhile."""
    outcome = BulkOutcome()

    def script(ids):
        if ids == ["0"] and outcome.indexed:
            return answer if isinstance(answer, int) else [answer]
        return [(400, NEWS) if i == "1" else 201 for i in ids]

    with ScriptedBulk(script) as server, pytest.raises(ClusterError):
        BulkSender(server.client(FAST), "i").send(items(2), outcome)
    assert (outcome.indexed, outcome.refused) == (1, [])
    assert len(server.requests) < 20


def test_a_failure_of_the_cluster_is_no_documents():
    outcome = BulkOutcome()
    with (
        ScriptedBulk(lambda ids: [(500, "engine_closed") if i == "3" else 201 for i in ids]) as server,
        pytest.raises(IndexingError, match=r"'3'.*500: .*engine_closed"),
    ):
        BulkSender(server.client(FAST), "i").send(items(5), outcome)
    assert (outcome.indexed, outcome.refused) == (4, [])


@pytest.mark.parametrize("words", ["Limit of total fields [1000] has been exceeded", NEWS])
def test_what_another_index_of_that_name_refuses_is_no_dead_letter(words: str):
    def gone() -> None:
        raise IndexingError("the index was deleted")

    outcome = BulkOutcome()
    with (
        ScriptedBulk(lambda ids: [(400, words) if i == "3" else 201 for i in ids]) as server,
        pytest.raises(IndexingError, match="was deleted"),
    ):
        BulkSender(server.client(FAST), "i", witness=Witness(gone)).send(items(5), outcome)
    assert outcome.refused == []


def test_a_deleted_index_is_noticed_in_the_middle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(witness, "CHECK_EVERY_S", 0.0)
    looks = itertools.count()

    def check() -> None:
        if next(looks) == 3:
            raise IndexingError("the index was deleted")

    outcome = BulkOutcome()
    with ScriptedBulk(lambda ids: [201] * len(ids)) as server, pytest.raises(IndexingError, match="deleted"):
        sender = BulkSender(server.client(FAST), "i", witness=Witness(check))
        for item in items(10):
            sender.send([item], outcome)
    assert outcome.indexed == 4


def test_a_document_that_a_pipeline_drops_is_not_counted_as_indexed():
    def answer(request: Request) -> Reply:
        ids = [json.loads(line)["index"]["_id"] for line in request.body.splitlines()[::2]]
        return Reply(
            body={
                "items": [
                    {"index": {"status": 200, "result": "noop" if i == "1" else "created"}} for i in ids
                ]
            }
        )

    with HttpServer(answer) as server:
        client = connect(ConnectionSettings(url=server.url), policy=FAST)
        outcome = BulkSender(client, "i").send(items(3))
    assert outcome.indexed == 2
    assert [item.reason for item in outcome.refused] == ["an ingest pipeline drops it"]


@pytest.mark.parametrize(
    ("status", "page", "kind", "words"),
    [
        (200, b"<html><title>Log in</title></html>", "text/html", "login page.*text/html"),
        (200, "Melden Sie sich für den Zugriff an".encode("latin-1"), "text/html", "login page.*Melden"),
        (200, b"Log in first", "text/plain", "login page.*Log in first"),
        (200, b"", "application/json", "login page.*empty"),
        (200, b'{"items":[', "application/json", "login page.*items"),
        (200, b'{"ok":true}', "application/json", "speaks of 0 of 3 documents.*login page.*ok"),
        (200, b'{"items":[{"index":{"status":201}}]}', "application/json", "speaks of 1 of 3 documents"),
        (200, b'{"items":[1,2,3]}', "application/json", "speaks of 0 of 3 documents"),
        (200, b"[]", "application/json", "login page.*says, as JSON"),
        (204, b"", "text/plain", "login page.*204: an empty answer"),
        (302, b"<html><title>302 Found</title></html>", "text/html", "another address"),
        (400, b"<title>400 The plain HTTP request was sent to HTTPS port</title>", "text/html", "https:"),
    ],
)
def test_what_a_gateway_says_is_about_no_document(status: int, page: bytes, kind: str, words: str):
    outcome = BulkOutcome()
    with (
        ScriptedBulk(lambda ids: Reply(status, page, {"Content-Type": kind})) as server,
        pytest.raises(ClusterConnectionError, match=words),
    ):
        BulkSender(server.client(FAST), "i").send(items(3), outcome)
    assert (outcome.indexed, outcome.refused, len(server.requests)) == (0, [], 1)


def test_waiting_for_documents_is_told(caplog: pytest.LogCaptureFixture):
    attempts: Counter[str] = Counter()

    def script(ids):
        attempts.update(ids)
        return [429 if i == "1" and attempts[i] == 1 else 201 for i in ids]

    assert send(script, 3)[0].indexed == 3
    (line,) = [line for line in caplog.messages if "trying again" in line]
    assert "too busy for 1 of 3 documents (429: item_exception: item 429" in line


def test_stop_ends_the_waiting():
    stop = threading.Event()

    def script(ids):
        stop.set()
        return 503

    with ScriptedBulk(script) as server:
        outcome = BulkSender(server.client(RetryPolicy(600, 60, 60)), "i", stop=stop).send(items(3))
    assert (outcome.indexed, outcome.refused) == (0, [])


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 30),
    st.lists(st.none() | st.sampled_from([413, 429, 503]), max_size=10),
    st.lists(st.sampled_from([200, 201, 400, 429, 500, 503]), min_size=1, max_size=40),
)
def test_every_item_is_settled_exactly_once(count: int, requests: list, statuses: list):
    of_request, of_item = iter(requests), itertools.cycle(statuses)
    policy = RetryPolicy(attempts=12, first_wait_s=0.0001, max_wait_s=0.0001)
    outcome = BulkOutcome()
    with ScriptedBulk(lambda ids: next(of_request, None) or [next(of_item) for _ in ids]) as server:
        try:
            BulkSender(server.client(policy), "i").send(items(count), outcome)
        except IndexingError:  # one document got a 5xx or 429 at every attempt, or all 400 from the start
            assert {400, 429, 500, 503} & set(statuses)
            assert outcome.indexed + len(outcome.refused) < count
        else:
            assert outcome.indexed + len(outcome.refused) == count
    assert len({item.document.id for item in outcome.refused}) == len(outcome.refused)
