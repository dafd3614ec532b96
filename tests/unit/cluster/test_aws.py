"""Signed requests, checked by a server that computes each signature itself.

The algorithm is the published one ("Create a signed AWS API request"), here with hashlib and hmac alone.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from typing import Any
from urllib.parse import parse_qsl, quote

import pytest

from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.retry import RetryPolicy
from oskit.errors import ClusterAuthError, UsageError
from tests.http_server import HttpServer, Reply, Request

KEY, SECRET, TOKEN = "AKIDEXAMPLE", "canary/secret+key", "canary-session-token=="
REGION = "eu-north-1"

ROOT = {"cluster_name": "managed", "version": {"number": "3.6.0", "distribution": "opensearch"}}


def digest(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def expected_signature(method: str, target: str, headers: Any, body: bytes, service: str) -> tuple[str, str]:
    """What the ``Authorization`` of a request must be, and the date it is for."""
    path, _, query = target.partition("?")
    signed = headers["Authorization"].split("SignedHeaders=")[1].split(",")[0]
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in parse_qsl(query, keep_blank_values=True)
    )
    canonical = "\n".join(
        [
            method,
            quote(path, safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in pairs),
            *(f"{name}:{' '.join(headers[name].split())}" for name in signed.split(";")),
            "",
            signed,
            hashlib.sha256(body).hexdigest(),
        ]
    )
    when = headers["X-Amz-Date"]
    scope = f"{when[:8]}/{REGION}/{service}/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", when, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{SECRET}".encode()
    for part in (when[:8], REGION, service, "aws4_request"):
        key = digest(key, part)
    signature = digest(key, text).hex()
    start = f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={signed}, Signature="
    return start + signature, when


class Verifier(HttpServer):
    """A service that checks signatures.

    Attributes:
        targets: Paths of the requests with the right signature.
        refuse: Answers for the next requests in turn, as a status and a message of AWS.
    """

    def __init__(self, service: str = "es") -> None:
        super().__init__(self._answer)
        self.url += "/domain"
        self.service = service
        self.targets: list[str] = []
        self.signatures: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuse: list[tuple[int, str]] = []

    def _answer(self, request: Request) -> Reply:
        if self.refuse:
            status, message = self.refuse.pop(0)
            self.signatures.append(request.headers["Authorization"])
            return Reply(status, {"message": message})
        wanted, _ = expected_signature(
            request.method, request.path, request.headers, request.body, self.service
        )
        if request.headers.get("Authorization") != wanted or "host" not in wanted:
            message = "The request signature we calculated does not match the signature you provided."
            return Reply(403, {"message": message})
        self.targets.append(f"{request.method} {request.path}")
        self.signatures.append(wanted)
        self.tokens.add(request.headers.get("X-Amz-Security-Token"))
        return Reply(body=ROOT)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


def client_of(verifier: Verifier, **changes: Any) -> Any:
    known = {"url": verifier.url, "aws_region": REGION, "aws_service": verifier.service}
    settings = ConnectionSettings(**{**known, **changes})
    return connect(settings, policy=RetryPolicy(attempts=3, first_wait_s=0, max_wait_s=0))


@pytest.mark.parametrize("service", ["es", "aoss"])
def test_the_service_accepts_every_kind_of_request(service: str) -> None:
    with Verifier(service) as verifier:
        client = client_of(verifier)
        client.info()
        client.indices.get_mapping(index="a b*,ü", params={"ignore_unavailable": "true", "x": "a,b*c/ü:"})
        client.bulk(body='{"index":{"_id":"ü"}}\n{"text":"\N{GRINNING FACE}"}\n', index="articles")
        client.transport.perform_request(
            "POST", "/_plugins/_ml/models/x/upload_chunk/0", body=bytes(range(256))
        )
        client.indices.delete(index="a")
    assert len(verifier.targets) == 5
    assert all("/domain/" in target for target in verifier.targets)
    assert verifier.tokens == {TOKEN}


def test_a_request_that_is_sent_again_is_signed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Verifier() as verifier:
        client = client_of(verifier)
        client.info()
        verifier.signatures.clear()
        verifier.refuse = [(503, "slow down")]
        monkeypatch.setattr("time.sleep", lambda _: threading.Event().wait(1.1))
        client.indices.get_mapping(index="a")
    assert len(set(verifier.signatures)) == 2, "another second, another signature"


@pytest.mark.parametrize(
    ("status", "message", "advice"),
    [
        (403, "Signature expired: 20261126T100000Z is now earlier than 20261126T110000Z", "clock"),
        (403, "The security token included in the request is expired", "log in again"),
        (
            403,
            "The request signature we calculated does not match the signature you provided.",
            "--aws-region",
        ),
    ],
)
def test_a_refused_signature_says_what_to_do(status: int, message: str, advice: str) -> None:
    with Verifier() as verifier:
        verifier.refuse = [(status, message)]
        client = client_of(verifier)
        with (
            pytest.raises(ClusterAuthError, match="AWS refuses the signature") as raised,
            cluster_errors("reach the cluster"),
        ):
            client.info()
    assert advice in str(raised.value)
    assert SECRET not in str(raised.value)


def test_another_region_is_refused() -> None:
    with Verifier() as verifier:
        client = client_of(verifier, aws_region="us-east-1")
        with pytest.raises(ClusterAuthError, match="does not match"), cluster_errors("reach the cluster"):
            client.info()


def test_no_credentials_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    assert main(["models", "--aws-region", REGION]) == 2
    err = capsys.readouterr().err
    assert "there are no AWS credentials" in err
    assert len(err.splitlines()) == 1


def test_a_signature_and_a_password_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="give one of them"):
        ConnectionSettings(aws_region=REGION, username="ada", password="x")


def test_nothing_secret_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Verifier() as verifier:
        verifier.refuse = [
            (403, "no"),
            (500, "no"),
            (403, "The security token included in the request is invalid"),
        ]
        client = client_of(verifier)
        shown = [repr(client), repr(client.transport), repr(vars(client.transport))]
        for _ in range(3):
            main(["models", "--url", verifier.url, "--aws-region", REGION])
    captured = capsys.readouterr()
    shown += [captured.out, captured.err]
    assert not [text for text in shown if SECRET in text or TOKEN in text]
