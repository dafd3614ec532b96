"""``oskit serve`` over HTTP: what it answers, what it refuses, and that requests do not harm each other."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import archives
import pytest
import trustme
import yaml
from in_process import POISON, Client, GatedEncoder, close, eventually, serving

from oskit.archive.encoder import ArchiveEncoder
from oskit.errors import ParityError, UsageError
from oskit.serve import server
from oskit.serve.app import Limits, Service
from oskit.serve.metrics import Metrics
from oskit.serve.renewal import read_tokens
from oskit.serve.server import Address, Server

DOCKER = Path(__file__).parents[3] / "docker"
DOCKERFILE, KUBERNETES = DOCKER / "serve.Dockerfile", DOCKER / "kubernetes" / "serve.yaml"


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(archives.WORDS, k=draw.choice((0, 1, 3, 9, 60, 300)))) for _ in range(count)
    ]


def by_index(rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, float]]:
    return [{str(entry["index"]): entry["value"] for entry in row} for row in rows]


def test_answers_are_the_archive_s_in_order_however_requests_mix(encoder: ArchiveEncoder) -> None:
    def ask(client: Client, number: int) -> None:
        asked = texts(number % 17, seed=number)
        style, key = (("WORD", "token"), ("TOKEN_ID", "id"))[number % 2]
        answer = client.ask("/v1/sparse", {"texts": asked, "sparse_embedding_format": style})
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert close(answer.body, encoder.document_weights(asked, key=key))
        if asked:
            answer = client.ask("/embed_sparse", {"inputs": asked})
            assert close(by_index(answer.body), encoder.document_weights(asked, key="id"))

    with serving({"tiny": encoder}) as client, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: ask(client, number), range(60)))
        page = client.ask("/metrics").body.decode()
        assert (
            client.ask("/v1/sparse", {"texts": ["get a permit"]}).body
            == client.ask("/v1/sparse/query", {"texts": ["get a permit"]}).body
        )
    counted = re.search(r'oskit_texts_total\{kind="documents",model="tiny"\} (\d+)', page)
    assert counted is not None and int(counted[1]) > 500
    for name in (
        "oskit_requests_total",
        "oskit_tokens_total",
        "oskit_queue_texts",
        "oskit_batch_texts_bucket",
    ):
        assert name in page
    assert 'oskit_queue_texts{kind="documents",model="tiny"} 0.0' in page


def test_inference_free_queries_and_several_archives(
    archive: Path, query_archive: Path, encoder: ArchiveEncoder
) -> None:
    both = ArchiveEncoder.open(archive, query=query_archive)
    alone = ArchiveEncoder.open(query_archive)
    asked, long = ["building permit permit", "", "fox"], ["fox permit " * 900]
    wanted = both.query_weights(asked)
    with serving({"both": both, "alone": alone, "plain": encoder}) as client:
        for name in ("both", "alone"):
            assert client.ask(f"/models/{name}/v1/sparse/query", {"texts": asked}).body == wanted
            assert client.ask(f"/models/{name}/v1/sparse/query", {"texts": long}).body == both.query_weights(
                long
            )
        tei = client.ask("/models/both/embed_sparse", {"inputs": asked, "prompt_name": "query"})
        assert by_index(tei.body) == both.query_weights(asked, key="id")
        assert close(
            client.ask("/models/both/v1/sparse", {"texts": ["fox"]}).body, encoder.document_weights(["fox"])
        )
        refused = client.ask("/models/alone/v1/sparse", {"texts": asked})
        assert refused.status == 422 and "/v1/sparse/query" in refused.body["error"]
        nameless = client.ask("/v1/sparse", {"texts": asked})
        assert nameless.status == 404 and "/models/plain" in nameless.body["error"]
        assert [model["model_id"] for model in client.ask("/info").body["models"]] == [
            "both",
            "alone",
            "plain",
        ]
        info = client.ask("/models/both/info").body
        assert info["model_sha"] == both.archive.sha256 and info["query_sha"] == alone.archive.sha256
        assert info["model_type"] == {"embedding": {"pooling": "splade"}}
        assert client.ask("/health").status == client.ask("/models/alone/health").status == 200


BAD = [
    ("/v1/sparse", b"", 400, "not JSON"),
    ("/v1/sparse", b"\xff\xfe", 400, "not JSON"),
    ("/v1/sparse", b"[" * 9_000, 400, "not JSON"),
    ("/v1/sparse", [], 400, "a list, not a JSON object"),
    ("/v1/sparse", {}, 422, "`texts` is missing"),
    ("/v1/sparse", {"texts": "a"}, 422, "a list of texts, not a text"),
    ("/v1/sparse", {"texts": ["a", None]}, 422, "`texts`[1] must be a text, not null"),
    ("/v1/sparse", {"texts": ["a"], "inputs": []}, 422, "unknown in the body: inputs"),
    ("/v1/sparse", {"texts": ["a"], "sparse_embedding_format": "${parameters.x}"}, 422, ":-WORD}"),
    ("/v1/sparse", {"texts": ["a"] * 9}, 422, "batch size 9 > maximum allowed batch size 8"),
    ("/v1/sparse", {"texts": ["a" * 20_000]}, 413, "10,000 bytes"),
    ("/embed_sparse", {"inputs": []}, 400, "`inputs` cannot be empty"),
    ("/embed_sparse", {"inputs": [1, 2]}, 422, "must be a text, not a number"),
    ("/embed_sparse", {"inputs": "a", "truncate": "yes"}, 422, "`truncate` must be true or false"),
    ("/embed_sparse", {"inputs": "a", "truncation_direction": "Left"}, 422, "must be Right"),
    ("/embed_sparse", {"inputs": "a", "prompt_name": []}, 422, "must be query or document"),
    (
        "/embed_sparse",
        {"inputs": ["a", "fox " * 127], "truncate": False},
        422,
        "less than 128 tokens. Given: 129",
    ),
    ("/nothing", {}, 404, "/v1/sparse"),
]


def test_bad_input_is_told_in_a_line_and_harms_nobody(encoder: ArchiveEncoder) -> None:
    with serving({"tiny": encoder}, Limits(texts=8, body=10_000)) as client:
        for path, body, status, told in BAD:
            answer = client.ask(path, body)
            assert answer.status == status, (body, answer)
            assert told in answer.body["error"] and "\n" not in answer.body["error"]
            assert answer.body["error_type"]
        zipped = {"content-encoding": "gzip"}
        assert client.ask("/v1/sparse", b"x", **zipped).status == 415
        connection = client.connection()
        connection.request("POST", "/v1/sparse", iter([b"x" * 6000] * 3), encode_chunked=True)
        assert connection.getresponse().status == 413
        assert client.ask("/v1/sparse").status == 405
        for body in (b'{"texts": ["\\ud800 fox"]}', {"inputs": ["fox " * 126], "truncate": False}):
            path = "/v1/sparse" if isinstance(body, bytes) else "/embed_sparse"
            assert client.ask(path, body).status == 200


def test_a_failing_text_fails_its_own_request_alone(gated: GatedEncoder) -> None:
    with serving({"tiny": gated}) as client, ThreadPoolExecutor(8) as pool:
        gated.gate.clear()
        asked = [["fox", POISON], *(["the quick fox", "permit"] for _ in range(7))]
        answers = pool.map(lambda texts: client.ask("/v1/sparse", {"texts": texts}), asked)
        time.sleep(0.3)
        gated.gate.set()
        failed, *good = list(answers)
        assert (failed.status, failed.body["error_type"]) == (424, "Backend")
        wanted = ArchiveEncoder.document_weights(gated, asked[1])
        assert all(answer.status == 200 and close(answer.body, wanted) for answer in good)


def test_overload_is_told_as_ml_commons_understands_it_and_queries_go_on(
    archive: Path, query_archive: Path
) -> None:
    gated = GatedEncoder.at(archive)
    gated._queries = ArchiveEncoder.open(archive, query=query_archive)._queries
    gated.architecture, gated.query = "inference-free", ArchiveEncoder.open(query_archive).archive
    with serving({"tiny": gated}, Limits(queue=8, timeout=2)) as client, ThreadPoolExecutor(8) as pool:
        gated.gate.clear()
        waiting = [pool.submit(client.ask, "/v1/sparse", {"texts": ["fox", "permit"]}) for _ in range(4)]
        while 'documents",model="tiny"} 8.0' not in client.ask("/metrics").body.decode():
            time.sleep(0.01)
        for path, body in (("/v1/sparse", {"texts": ["fox"]}), ("/embed_sparse", {"inputs": "fox"})):
            refused = client.ask(path, body)
            assert (refused.status, refused.body["error_type"]) == (429, "Overloaded")
            assert refused.headers["x-amzn-errortype"] == "ThrottlingException"
            assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert client.ask("/v1/sparse/query", {"texts": ["fox"]}).body == gated.query_weights(["fox"])
        late = [future.result() for future in waiting]
        assert {answer.status for answer in late} == {503}
        assert late[0].headers["x-amzn-errortype"] == "ThrottlingException"
        gated.gate.set()
        assert client.ask("/v1/sparse", {"texts": ["fox"]}).status == 200


def test_a_small_request_is_not_behind_all_of_a_large_one(gated: GatedEncoder) -> None:
    def seconds(client: Client, asked: list[str]) -> float:
        answer = client.ask("/v1/sparse", {"texts": asked})
        assert close(answer.body, ArchiveEncoder.document_weights(gated, asked))
        return time.monotonic()

    with serving({"tiny": gated}) as client, ThreadPoolExecutor(2) as pool:
        gated.gate.clear()
        large = pool.submit(seconds, client, [f"fox {'jumps over ' * 120}"] * 1000)
        while gated.entered.acquire(timeout=0.3):
            pass  # some of it is in batches, the threads are at the gate
        small = pool.submit(seconds, client, ["fox", "permit"])
        while 'documents",model="tiny"} 1002.0' not in client.ask("/metrics").body.decode():
            time.sleep(0.01)
        gated.gate.set()
        assert small.result() < large.result()


def test_texts_of_a_client_that_has_gone_are_not_encoded(gated: GatedEncoder) -> None:
    with serving({"tiny": gated}) as client:
        while gated.entered.acquire(blocking=False):
            pass
        gated.gate.clear()
        connection, *held = (client.connection() for _ in range(3))
        for other in held:  # both threads are at the gate
            other.request("POST", "/v1/sparse", json.dumps({"texts": ["fox", "permit"]}))
            gated.entered.acquire()
        connection.request("POST", "/v1/sparse", json.dumps({"texts": ["sparse", "retrieval"]}))
        while 'documents",model="tiny"} 6.0' not in client.ask("/metrics").body.decode():
            time.sleep(0.01)
        connection.close()
        while 'documents",model="tiny"} 4.0' not in client.ask("/metrics").body.decode():
            time.sleep(0.01)
        gated.gate.set()
        assert client.ask("/v1/sparse", {"texts": ["fox", "fox"]}).status == 200
        entered = 0
        while gated.entered.acquire(blocking=False):
            entered += 1
        assert entered == 1


def test_health_is_the_archive_s_own_weights(archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / archive.name
    copy.write_bytes(archive.read_bytes())
    text = "get a building permit"
    (weights,) = ArchiveEncoder.open(archive).document_weights([text])
    few = dict(list(weights.items())[:3])
    archives.write_manifest(copy, probes=[{"text": text, "weights": few}])
    gated = GatedEncoder.at(copy)
    with serving({"tiny": gated}) as client:
        assert client.ask("/health").body == {"status": "ok"}
    gated.wrong = True
    with pytest.raises(ParityError, match="does not compute what its archive should"), serving({"t": gated}):
        pass
    gated.wrong = False
    with serving({"tiny": gated}) as client:
        gated.wrong = True
        answer = client.ask("/health")
        assert answer.status == 503 and "weighs" in answer.body["error"]


def test_tokens(encoder: ArchiveEncoder) -> None:
    with serving({"tiny": encoder}, address=Address(tokens=("one", "two"))) as client:
        for given in ("", "Bearer", "Bearer wrong", "Basic one", "Bearer one two"):
            answer = client.ask("/v1/sparse", {"texts": ["fox"]}, authorization=given)
            assert (answer.status, answer.body["error_type"]) == (401, "Unauthorized")
        assert client.ask("/metrics").status == client.ask("/nothing").status == 401
        assert client.ask("/health").status == 200
        for given in ("Bearer one", "bearer two"):
            assert client.ask("/v1/sparse", {"texts": ["fox"]}, authorization=given).status == 200


def test_tokens_are_exchanged_while_it_runs(
    encoder: ArchiveEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RENEW_EVERY_S", 0.1)
    path = tmp_path / "tokens"
    path.write_text("one\n")
    address = Address(tokens=read_tokens(path), token_file=path)
    with serving({"tiny": encoder}, address=address) as client:

        def status(token: str) -> int:
            return client.ask("/info", authorization=f"Bearer {token}").status

        for content, known in (("one\ntwo\n", "two"), ("\n", "two"), ("three\n", "three")):
            path.write_text(content)
            eventually(lambda known=known: status(known) == 200)
        assert status("one") == status("two") == 401


def test_certificates_are_renewed_while_it_runs_and_expired_ones_refused(
    encoder: ArchiveEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RENEW_EVERY_S", 0.1)
    authority = trustme.CA()
    ca, certificate, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    past = datetime.now(UTC) - timedelta(days=1)

    def issue(**given: Any) -> trustme.LeafCert:
        issued = authority.issue_cert("127.0.0.1", **given)
        certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return issued

    def served(client: Client) -> bytes | None:
        connection = client.connection()
        connection.connect()
        with connection.sock as sock:
            return sock.getpeercert(binary_form=True)

    issue(not_after=past)
    address = Address(certificate=certificate, key=key)
    with pytest.raises(UsageError, match=f"no client would accept {certificate}: certificate has expired"):
        address.check()
    issue()
    address.check()
    with serving(
        {"tiny": encoder}, address=address, tls=ssl.create_default_context(cafile=str(ca))
    ) as client:
        first = served(client)
        issue(not_after=past)  # stays out
        certificate.write_text("nothing")
        time.sleep(0.5)
        assert served(client) == first
        issue()
        eventually(lambda: served(client) != first)
        assert client.ask("/v1/sparse", {"texts": ["fox"]}).status == 200


def test_two_that_were_bound_to_one_port_before_either_listened(encoder: ArchiveEncoder) -> None:
    first = Address(port=0).bind()
    address = Address(port=first.getsockname()[1])
    with first, address.bind() as second:
        first.listen()
        service = Service({}, Limits(), Metrics())
        with pytest.raises(UsageError, match="cannot listen on"):
            Server(service, address, drain=1, ready=lambda: None).run([second])


def test_client_certificates(encoder: ArchiveEncoder, tmp_path: Path) -> None:
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    certificate, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    own.private_key_pem.write_to_path(key)
    certificate.write_bytes(b"".join(part.bytes() for part in own.cert_chain_pems))
    authority.cert_pem.write_to_path(ca)
    context = ssl.create_default_context(cafile=str(ca))
    stranger = ssl.create_default_context(cafile=str(ca))
    authority.issue_cert("client@example.org").configure_cert(context)
    address = Address(certificate=certificate, key=key, client_ca=ca)
    address.check()
    with serving({"tiny": encoder}, address=address, tls=context) as client:
        assert client.ask("/v1/sparse", {"texts": ["fox"]}).status == 200
        with pytest.raises((ssl.SSLError, OSError)):
            Client(client.url, stranger).ask("/health")


def test_what_is_open_to_everybody_is_refused(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        Address(host).check()
    for host in ("0.0.0.0", "::"):
        with pytest.raises(UsageError, match="can be reached from other machines"):
            Address(host).check()
        Address(host, tokens=("secret",)).check()
    (tmp_path / "bad.pem").write_text("x")
    bad = tmp_path / "bad.pem"
    with pytest.raises(UsageError, match="cannot be used"):
        Address(certificate=bad, key=bad).check()
    with pytest.raises(UsageError, match="go together"):
        Address(certificate=bad).check()
    taken = Address(port=0).bind()
    with taken, pytest.raises(UsageError, match="cannot listen"):
        taken.listen()
        Address(port=taken.getsockname()[1]).bind()


COMMAND = (
    "import sys; from oskit.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"
)


def test_the_command_serves_without_torch_and_sigterm_lets_requests_finish(
    archive: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "tiny.zip"
    shutil.copy(archive, copy)
    command = [sys.executable, "-c", COMMAND, "serve", f"tiny={copy}", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = ""
        while not told.endswith("\n}\n"):
            told += process.stdout.readline()
        client = Client(json.loads(told)["url"])
        copy.write_bytes(b"another file")  # what is served is in memory
        asked = texts(1000)
        assert client.ask("/embed_sparse", {"inputs": asked[:9], "truncate": True}).status == 200
        assert client.ask("/health").status == 200
        connection = client.connection()
        connection.request("POST", "/v1/sparse", json.dumps({"texts": asked}))
        while 'documents",model="tiny"} 1000.0' not in client.ask("/metrics").body.decode():
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        answer = json.loads(connection.getresponse().read())
        assert close(answer, ArchiveEncoder.open(archive).document_weights(asked))
        out, errors = process.communicate(timeout=20)
    assert (out.strip(), process.returncode) == ("False 0", 0)
    assert errors.splitlines() == ["Ended: everything was answered"]
    with pytest.raises(OSError):
        client.ask("/health")


def test_what_the_images_call_is_a_command() -> None:
    from oskit.cli.commands.serve import serve

    (deployment,) = [
        found for found in yaml.safe_load_all(KUBERNETES.read_text()) if found["kind"] == "Deployment"
    ]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    entry = re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert entry is not None
    program, command, *options = json.loads(entry[1])
    assert (program, command) == ("oskit", "serve")
    given = serve.make_context("serve", [*options, *container["args"]]).params
    assert given["host"] == "0.0.0.0" and given["archives"] == ("/archive",)
    hook = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert hook + given["drain"] < deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert {container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")} == {
        "/health"
    }
