"""What becomes of the items of a bulk request, whatever the cluster answers."""

from __future__ import annotations

import itertools
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_bulk import ScriptedBulk

from oskit.cluster.client.retry import RetryPolicy
from oskit.cluster.ingest.bulk import BulkItem, BulkOutcome, BulkSender
from oskit.data.documents import Document
from oskit.errors import ClusterAuthError, ClusterConnectionError, ClusterError, IndexingError
from tests.http_server import Reply

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


def test_a_setting_that_changes_under_the_load_costs_no_document():
    words = "Local Model is currently disabled. To enable it, update the setting ..."
    outcome = BulkOutcome()
    with (
        ScriptedBulk(lambda ids: [201, (400, words)]) as server,
        pytest.raises(IndexingError, match="runs no models of its own") as raised,
    ):
        BulkSender(server.client(FAST), "i").send(items(2), outcome)
    assert (outcome.indexed, outcome.refused) == (1, [])
    assert "local_model.enabled" in str(raised.value)


@pytest.mark.parametrize(
    ("status", "page", "kind", "words"),
    [
        (200, b"<html><title>Log in</title></html>", "text/html", "login page.*text/html"),
        (200, b"Log in first", "text/plain", "login page.*Log in first"),
        (200, b"", "application/json", "login page.*empty"),
        (200, b'{"items":[', "application/json", "login page.*items"),
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
        except IndexingError:  # one document got 429 or 503 at every attempt
            assert {429, 503} & set(statuses)
            assert outcome.indexed + len(outcome.refused) < count
        else:
            assert outcome.indexed + len(outcome.refused) == count
    assert len({item.document.id for item in outcome.refused}) == len(outcome.refused)
