"""``oskit serve`` and clients that are slow, odd, many or gone: they are told, and leave nothing."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import archives
import pytest
from in_process import Client, close, eventually, serving

from oskit.archive.encoder import ArchiveEncoder
from oskit.serve.app import Limits
from oskit.serve.protocol import Patience

HEAD = b"POST /v1/sparse HTTP/1.1\r\nhost: here\r\n"
GOOD = json.dumps({"texts": ["fox"]}).encode()


@contextmanager
def connected(client: Client) -> Iterator[socket.socket]:
    place = urlsplit(client.url)
    with closing(socket.create_connection((place.hostname, place.port), timeout=20)) as found:
        yield found


def heard(connection: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    found = bytearray()
    try:
        while part := connection.recv(65_536):
            found += part
    except ConnectionResetError:
        pass
    return bytes(found)


def told(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


SLOW = [
    (b"", 408, "no request was here after 0.5 s"),
    (HEAD + b"content-length: 9", 408, "no request was here after 0.5 s"),
    (HEAD + b"content-length: 9\r\n\r\n{", 408, "the body was not here after 0.3 s"),
    (HEAD + b"x: " + 90_000 * b"y", 431, "more than 65,536 bytes"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "no HTTP request"),  # TLS
    (b"POST http://[ HTTP/1.1\r\n\r\n", 400, "no HTTP request"),
    (HEAD + b"content-length: -1\r\n\r\n", 400, "no HTTP request"),
    (HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", 400, "no HTTP request"),
]


def test_slow_and_broken_requests_end_and_are_told(encoder: ArchiveEncoder) -> None:
    patience = Patience(head=0.5, body=1.0)
    with serving({"tiny": encoder}, Limits(timeout=0.3), patience=patience) as client:
        before = open_files()
        for sent, status, what in SLOW:
            with connected(client) as connection:
                connection.sendall(sent)
                answer = told(heard(connection))
                assert answer[0] == status and what in answer[1]["error"], (sent[:40], answer)
        with connected(client) as connection:  # a second request that does not come to its end
            connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(GOOD) + GOOD + HEAD)
            assert heard(connection).count(b"HTTP/1.1 ") == 2
        eventually(lambda: open_files() == before)
        assert client.ask("/v1/sparse", {"texts": ["fox"]}).status == 200


def test_clients_that_do_not_read_are_not_waited_for(encoder: ArchiveEncoder) -> None:
    patience = Patience(reading=0.5)
    with serving({"tiny": encoder}, patience=patience) as client:
        before = open_files()
        body = json.dumps({"inputs": [" ".join(archives.WORDS)] * 1000}).encode()
        request = HEAD.replace(b"/v1/sparse", b"/embed_sparse") + b"content-length: %d\r\n\r\n" % len(body)
        with connected(client) as connection:
            for _ in range(20):
                connection.sendall(request + body)
            eventually(lambda: open_files() == before + 1)  # our own end of it
        assert client.ask("/v1/sparse", {"texts": ["fox"]}).status == 200


def test_many_idle_connections_leave_room_and_go(encoder: ArchiveEncoder) -> None:
    with serving({"tiny": encoder}, patience=Patience(head=2.0, connections=1000)) as client:
        before = open_files()
        place = urlsplit(client.url)
        idle = [socket.create_connection((place.hostname, place.port), timeout=20) for _ in range(999)]
        assert client.ask("/v1/sparse", {"texts": ["fox"]}).status == 200
        with connected(client), connected(client) as one_too_many:
            status, answer = told(heard(one_too_many))
            assert (status, answer["error"]) == (503, "too many connections")
        for connection in idle:
            assert told(heard(connection))[0] == 408
            connection.close()
        eventually(lambda: open_files() == before)


def test_clients_that_go_in_the_middle_leave_nothing(encoder: ArchiveEncoder) -> None:
    with serving({"tiny": encoder}) as client:
        before, draw = open_files(), random.Random(0)
        body = json.dumps({"texts": ["the quick fox"] * 200}).encode()
        whole = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
        for _ in range(100):
            with connected(client) as connection:
                connection.sendall(whole[: draw.randrange(len(whole) + 1)])
        eventually(lambda: open_files() == before)
        eventually(lambda: 'documents",model="tiny"} 0.0' in client.ask("/metrics").body.decode())
        assert client.ask("/health").status == 200


ODD = [
    (b'{"texts": ["a"], "texts": ["b"]}', 400, "`texts` is there twice"),
    (b'{"texts": ["\\ud800"], "texts": ["b"]}', 400, "`texts` is there twice"),
    (b'{"texts": ["a\xff"]}', 400, "not JSON"),
    (b'{"texts": [NaN]}', 422, "`texts`[0] must be a text, not a number"),
    (b'{"texts": [1e999]}', 422, "`texts`[0] must be a text, not a number"),
    (b'{"texts": [' + b"[" * 100_000 + b"]}", 400, "not JSON"),
    (b'{"texts": ["a"]} {}', 400, "not JSON"),
    (b'\xef\xbb\xbf{"texts": 3}', 422, "a list of texts"),
    (b'{"texts": null}', 422, "a list of texts, not null"),
    (b'{"texts": ["a"], "\\ud800": 1}', 422, "unknown in the body: ?"),
    (b'{"texts": ["a"], "\\ud800": 1, "\\ud800": 2}', 400, "`?` is there twice"),
    # Looked for one by one, so many names would hold the service for minutes.
    (b'{"texts": ["a"], %s}' % b",".join(b'"k%d": 1' % n for n in range(60_000)), 400, "60,001 fields"),
    (b'{"texts": ["a"], "%s": 1}' % (b"k" * 100_000), 422, "unknown in the body"),
]


def test_odd_bodies_are_told_in_a_line(encoder: ArchiveEncoder) -> None:
    with serving({"tiny": encoder}) as client:
        for body, status, what in ODD:
            answer = client.ask("/v1/sparse", body)
            assert answer.status == status and what in answer.body["error"], (body[:40], answer)
            assert "\n" not in answer.body["error"] and len(answer.body["error"]) < 300
        assert client.ask("/models/a%3Fb/info").status == client.ask("/models/%ff%20/info").status == 404
        assert "/models/" not in client.ask("/metrics").body.decode()  # each would be a label for ever
        # What looks like a name is a text here.
        asked = ["texts", '"texts"', "fox", "sparse_embedding_format"]
        answer = client.ask("/v1/sparse", {"texts": asked, "sparse_embedding_format": "WORD"})
        assert close(answer.body, encoder.document_weights(asked))


STRANGE = [
    "",
    " ",
    "\t\n\r\u00a0\u2003",
    "\u200b\u200b",
    "\x00\x01",
    "\U0001f98a\U0001f98a",
    "\ufffd",
    "\ud800",
    "fox\x00fox",
]


@pytest.mark.parametrize("path", ["/v1/sparse", "/v1/sparse/query", "/embed_sparse"])
def test_strange_texts_have_an_answer_each(encoder: ArchiveEncoder, path: str) -> None:
    name = "inputs" if path == "/embed_sparse" else "texts"
    with serving({"tiny": encoder}) as client:
        rows = client.ask(path, {name: [*STRANGE, "fox"]}).body
        assert len(rows) == len(STRANGE) + 1 and rows[0] == rows[1] == rows[2] == (
            [] if name == "inputs" else {}
        )
        if name == "texts":
            assert close(rows, encoder.document_weights([*STRANGE, "fox"]))


def test_a_text_of_megabytes_is_cut_like_others_and_bounded(encoder: ArchiveEncoder) -> None:
    text = "the quick fox gets a building permit " * 200_000
    with serving({"tiny": encoder}) as client:
        answer = client.ask("/v1/sparse", {"texts": [text[:7_000_000], "fox"]})
        assert close(answer.body, encoder.document_weights([text[:10_000], "fox"]))
        refused = client.ask("/embed_sparse", {"inputs": text[:7_000_000], "truncate": False})
        assert refused.status == 422 and "Given: more than" in refused.body["error"]
        assert client.ask("/v1/sparse", {"texts": [text + text]}).status == 413
