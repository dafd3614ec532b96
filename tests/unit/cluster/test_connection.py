"""Settings of the connection, and what people are told when it fails; against real sockets."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from oskit.cluster.client.connection import ConnectionSettings, connect, split_url
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.kind import kind_of
from oskit.cluster.client.retry import RetryPolicy
from oskit.cluster.index.mapping import index_uuid
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.predict import predict
from oskit.cluster.models.preflight import model_setting_problems
from oskit.cluster.models.registry import ModelInfo, list_models
from oskit.cluster.search.search import search
from oskit.errors import (
    ClusterAuthError,
    ClusterConnectionError,
    ClusterError,
    ClusterSettingsError,
    IndexingError,
    UsageError,
)
from tests.http_server import HttpServer, Reply, Request


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("URL", "USERNAME", "PASSWORD", "PASSWORD_FILE", "CA_CERTS", "CLIENT_CERT", "CLIENT_KEY"),
        *("INSECURE", "TIMEOUT"),
    ):
        monkeypatch.delenv(f"OSKIT_{name}", raising=False)


class TestSettings:
    def test_defaults(self) -> None:
        settings = ConnectionSettings.from_environment()
        assert (settings.url, settings.username, settings.insecure) == ("http://localhost:9200", None, False)

    def test_the_environment_and_what_wins_over_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OSKIT_URL", "https://search.example.org/prefix/")
        monkeypatch.setenv("OSKIT_USERNAME", "ada")
        monkeypatch.setenv("OSKIT_PASSWORD", "pässword")
        monkeypatch.setenv("OSKIT_TIMEOUT", "7.5")
        monkeypatch.setenv("OSKIT_INSECURE", "yes")  # has to be typed
        settings = ConnectionSettings.from_environment(username="grace", timeout=None)
        assert settings.url == "https://search.example.org/prefix"
        assert settings.username == "grace"
        assert settings.password is not None
        assert settings.password.get_secret_value() == "pässword"
        assert settings.timeout == 7.5
        assert not settings.insecure

    def test_credentials_in_the_url_are_taken_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OSKIT_USERNAME", "other")
        monkeypatch.setenv("OSKIT_PASSWORD", "other")
        settings = ConnectionSettings.from_environment(url="http://ada:p%40ss%2Fword@[::1]:9201/x")
        assert settings.url == "http://[::1]:9201/x"
        assert settings.username == "ada"
        assert settings.password is not None
        assert settings.password.get_secret_value() == "p@ss/word"

    def test_options_win_over_the_url(self) -> None:
        settings = ConnectionSettings.from_environment(
            url="http://ada:one@h", username="grace", password="two"
        )
        assert settings.username == "grace"

    def test_a_password_from_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "password"
        file.write_bytes(b"secret\r\nsecond line")
        monkeypatch.setenv("OSKIT_PASSWORD_FILE", str(file))
        settings = ConnectionSettings.from_environment(username="ada")
        assert settings.password is not None
        assert settings.password.get_secret_value() == "secret"

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"url": "localhost:9200"}, "--url (OSKIT_URL)"),
            ({"url": "ftp://host"}, "http:// or https://"),
            ({"url": "http://host:70000"}, "valid host and port"),
            ({"url": "http://host:port"}, "valid host and port"),
            ({"url": "http:///path"}, "http:// or https://"),
            ({"url": "http://host/?q=1"}, "without '?'"),
            ({"url": "http://a b"}, "no valid host name"),
            ({"timeout": "soon"}, "--timeout (OSKIT_TIMEOUT)"),
            ({"timeout": 0}, "--timeout (OSKIT_TIMEOUT)"),
            ({"timeout": "inf"}, "--timeout (OSKIT_TIMEOUT)"),
            ({"insecure": "maybe"}, "--insecure"),
            ({"ca_certs": "/no/such/file"}, "--ca-certs (OSKIT_CA_CERTS)"),
            ({"client_key": __file__}, "--client-key (OSKIT_CLIENT_KEY)"),
            ({"username": "ada"}, "no password"),
            ({"password": "x"}, "no username"),
            ({"username": "a:b", "password": "x"}, "colon"),
            ({"password_file": "/no/such/file", "username": "ada"}, "--password-file"),
        ],
    )
    def test_a_value_that_cannot_be_right_names_its_option(
        self, values: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError) as raised:
            ConnectionSettings.from_environment(**values)
        assert message in str(raised.value)

    @pytest.mark.parametrize(
        "url",
        [
            "http://ada:hunter2@host:99999",
            "ada:hunter2@host",
            "http://ada:hun/ter2@host",
            "http://ada:hunter2@host/?q",
            "http://ada:hunter2@ho st",
        ],
    )
    def test_a_password_in_a_broken_url_is_not_repeated(self, url: str) -> None:
        with pytest.raises(UsageError) as raised:
            split_url(url)
        assert "hun" not in str(raised.value)

    def test_the_password_is_in_no_representation(self) -> None:
        settings = ConnectionSettings(url="http://ada:hunter2@host")
        client = connect(settings)
        shown = f"{settings!r} {settings} {settings.model_dump()} {client!r} {client.transport.hosts}"
        assert "hunter2" not in shown


OPENSEARCH = b'{"cluster_name":"c","version":{"distribution":"opensearch","number":"3.6.0"}}'


@contextmanager
def serving(
    status: int = 200,
    body: bytes = OPENSEARCH,
    *,
    kind: str = "application/json",
    tls: ssl.SSLContext | None = None,
) -> Iterator[tuple[str, list[Request]]]:
    """The address of a server that answers every request alike, and what it was asked."""
    warning = '299 OpenSearch-3.6.0 "direct access to system indices"'
    requests: list[Request] = []

    def answer(request: Request) -> Reply:
        requests.append(request)
        return Reply(status, body, {"Content-Type": kind, "Warning": warning})

    with HttpServer(answer, tls=tls) as server:
        yield server.url, requests


def ask(url: str, **settings: Any) -> Any:
    client = connect(ConnectionSettings(url=url, timeout=3, retry_for=0, **settings))
    with cluster_errors("ask"):
        return client.info()


class TestAnswers:
    def test_basic_authentication_is_utf_8(self) -> None:
        with serving() as (url, requests):
            ask(url, username="ada", password="pässwörd€")
        assert requests[0].headers["authorization"] == "Basic YWRhOnDDpHNzd8O2cmTigqw="

    def test_warnings_of_the_server_stay_off_the_terminal(self, capfd: pytest.CaptureFixture[str]) -> None:
        with serving() as (url, _), warnings.catch_warnings():
            warnings.simplefilter("error")
            ask(url)
        with serving(500, b'{"error":"x"}') as (url, _), pytest.raises(ClusterError):
            ask(url)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("status", "body", "error", "message"),
        [
            (401, b"Unauthorized", ClusterAuthError, "OSKIT_USERNAME"),
            (
                403,
                b'{"error":{"root_cause":[],"type":"security_exception","reason":"no permissions for '
                b'[cluster:admin/x] and User [name=ada, backend_roles=[]]"}}',
                ClusterAuthError,
                "lacks a permission (403: no permissions for [cluster:admin/x])",
            ),
            (
                403,
                b'{"error":{"root_cause":[],"type":"cluster_block_exception","reason":"index [a] blocked by: '
                b'[TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark]"}}',
                ClusterSettingsError,
                "Free disk space",
            ),
            (
                400,
                b'{"error":"no handler found for uri [/_plugins/_ml/x] and method [GET]"}',
                ClusterError,
                "opensearch-ml",
            ),
            (
                429,
                b'{"error":{"type":"rejected_execution_exception","reason":"queue"}}',
                ClusterError,
                "busy",
            ),
            (
                429,
                b'{"error":{"type":"circuit_breaking_exception","reason":"[parent] Data too large"}}',
                ClusterSettingsError,
                "short of memory",
            ),
            (503, b"<html>bad gateway</html>", ClusterError, "not available"),
            (
                413,
                b"<html><head><title>413 Request Entity Too Large</title></head><body>nginx</body></html>",
                ClusterError,
                "413 Request Entity Too Large). Allow 10 MB",
            ),
            (
                400,
                b"<html><head><title>400 No required SSL certificate was sent</title></head></html>",
                ClusterConnectionError,
                "Give --client-cert",
            ),
            (
                400,
                b'{"error":{"type":"index_closed_exception","reason":"closed","index":"articles"}}',
                ClusterError,
                "POST articles/_open",
            ),
            (
                302,
                b"<title>302 Found</title>",
                ClusterConnectionError,
                "(302: 302 Found). Give the cluster's",
            ),
            (400, b"The plain HTTP request was sent to HTTPS port", ClusterConnectionError, "https:"),
            (
                400,
                b'{"error":{"type":"a","reason":"outer","caused_by":{"type":"b","reason":"inner"}}}',
                ClusterError,
                "outer; caused by: inner (400)",
            ),
        ],
    )
    def test_refusals(self, status: int, body: bytes, error: type[ClusterError], message: str) -> None:
        kind = "application/json" if body.startswith(b"{") else "text/plain"
        with serving(status, body, kind=kind) as (url, _), pytest.raises(error) as raised:
            ask(url)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
        assert "backend_roles" not in str(raised.value)

    def test_a_redirection_says_where_to(self) -> None:
        location = "https://login.example.org/start?ticket=secret"

        def answer(_: Request) -> Reply:
            return Reply(301, b"", {"Location": location})

        with HttpServer(answer) as server, pytest.raises(ClusterConnectionError) as raised:
            ask(server.url)
        assert "another address (301: to https://login.example.org/start). Give" in str(raised.value)
        assert "secret" not in str(raised.value)

    @pytest.mark.parametrize("body", [b'{"ok":true}', b'{"items":[]}', b"[]", b"null", b"7", b'"ok"'])
    def test_json_of_somebody_else_is_no_bug(self, body: bytes) -> None:
        """Whatever is asked: one error that says what answered."""
        with serving(200, body) as (url, _):
            client = connect(ConnectionSettings(url=url))
            model = ModelInfo("m", "m", "1", "DEPLOYED", "SPARSE_ENCODING")
            for asked in (
                lambda: index_uuid(client, "i"),
                lambda: kind_of(client),
                lambda: predict(client, model, ["x"]),
                lambda: list_models(client),
                lambda: model_setting_problems(client),
                lambda: search(client, "i", {"x": 1.0}),
                lambda: ingest(client, "i", [], encode="cluster", model_id="m"),
            ):
                with pytest.raises(ClusterError) as raised:
                    asked()
                assert "\n" not in str(raised.value)

    def test_a_refusal_is_of_the_class_that_the_caller_wants(self) -> None:
        with serving(400, b'{"error":"mapping"}') as (url, _), pytest.raises(IndexingError, match="create x"):
            client = connect(ConnectionSettings(url=url))
            with cluster_errors("create x", IndexingError):
                client.info()

    @pytest.mark.parametrize(
        ("body", "kind", "message"),
        [
            (b"<html>hello</html>", "text/html", "not OpenSearch's JSON"),
            (b'{"hello":"world"}', "application/json", "not OpenSearch"),
            (b'{"version":{"number":"8.1.0"}}', "application/json", "Elasticsearch 8.1.0"),
        ],
    )
    def test_something_else_answers(self, body: bytes, kind: str, message: str) -> None:
        with serving(200, body, kind=kind) as (url, _), pytest.raises(ClusterConnectionError, match=message):
            kind_of(connect(ConnectionSettings(url=url)))


class TestConnections:
    def test_nobody_listens(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ClusterConnectionError, match="nothing listens") as raised:
            ask(url, username="ada", password="hunter2")
        assert url in str(raised.value)
        assert "hunter2" not in str(raised.value)

    def test_a_host_that_does_not_exist(self) -> None:
        with pytest.raises(ClusterConnectionError, match="cannot be resolved"):
            ask("http://no-such-host.invalid:9200")

    def test_no_answer_in_time(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = connect(
                ConnectionSettings(url=f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
            )
            with pytest.raises(ClusterConnectionError, match="--timeout"), cluster_errors("ask"):
                client.info()

    def test_tls_to_a_port_without(self) -> None:
        with serving() as (url, _), pytest.raises(ClusterConnectionError, match="http: instead of https:"):
            ask(url.replace("http:", "https:"))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return str(file)


Context = Callable[..., ssl.SSLContext]


@pytest.fixture
def server_context(authority: trustme.CA) -> Context:
    def make(*names: str, client_certificate: bool = False, **options: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*(names or ("127.0.0.1",)), **options).configure_cert(context)
        if client_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            authority.configure_trust(context)
        return context

    return make


class TestTls:
    def test_with_its_authority(self, server_context: Context, ca_file: str) -> None:
        with serving(tls=server_context()) as (url, _):
            assert ask(url, ca_certs=ca_file)["cluster_name"] == "c"

    def test_an_unknown_authority(self, server_context: Context) -> None:
        with serving(tls=server_context()) as (url, _), pytest.raises(ClusterConnectionError) as raised:
            ask(url)
        assert "cannot be trusted" in str(raised.value)
        assert "--ca-certs" in str(raised.value)

    def test_insecure_connects_and_is_silent(self, server_context: Context) -> None:
        with serving(tls=server_context()) as (url, _), warnings.catch_warnings():
            warnings.simplefilter("error")
            ask(url, insecure=True)

    def test_another_host_name(self, server_context: Context, ca_file: str) -> None:
        context = server_context("search.example.org")
        with serving(tls=context) as (url, _), pytest.raises(ClusterConnectionError, match="for another"):
            ask(url, ca_certs=ca_file)

    def test_an_expired_certificate(self, server_context: Context, ca_file: str) -> None:
        yesterday = datetime.now(tz=UTC) - timedelta(days=1)
        context = server_context("127.0.0.1", not_after=yesterday)
        with serving(tls=context) as (url, _), pytest.raises(ClusterConnectionError, match="has expired"):
            ask(url, ca_certs=ca_file)

    def test_plain_http_to_tls(self, server_context: Context) -> None:
        with serving(tls=server_context()) as (url, _), pytest.raises(ClusterConnectionError) as raised:
            ask(url.replace("https:", "http:"))
        assert "write https:" in str(raised.value)

    def test_a_client_certificate(
        self, server_context: Context, ca_file: str, authority: trustme.CA, tmp_path: Path
    ) -> None:
        certificate, key = tmp_path / "client.pem", tmp_path / "client.key"
        issued = authority.issue_cert("ada@example.org")
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        issued.private_key_pem.write_to_path(str(key))
        with serving(tls=server_context(client_certificate=True)) as (url, _):
            ask(url, ca_certs=ca_file, client_cert=certificate, client_key=key)
            with pytest.raises(ClusterConnectionError):
                ask(url, ca_certs=ca_file)
        with pytest.raises(UsageError, match="--client-cert"):
            connect(ConnectionSettings(url="https://host", client_cert=ca_file))

    def test_a_file_without_certificates(self, tmp_path: Path) -> None:
        file = tmp_path / "ca.pem"
        file.write_text("nothing")
        with pytest.raises(UsageError, match="--ca-certs"):
            connect(ConnectionSettings(url="https://host", ca_certs=str(file)))


def test_a_page_in_another_encoding_is_judged_by_its_status():
    """A proxy's page of 503 in Latin-1 passes as one in UTF-8 does."""
    page = Reply(503, "<title>Nicht verfügbar</title>".encode("latin-1"), {"Content-Type": "text/html"})
    good = Reply(body={"count": 1})
    replies = iter([good, page, good])
    with HttpServer(lambda _: next(replies)) as server:
        client = connect(ConnectionSettings(url=server.url), policy=RetryPolicy(first_wait_s=0.001))
        assert [client.count(index="i")["count"] for _ in range(2)] == [1, 1]
