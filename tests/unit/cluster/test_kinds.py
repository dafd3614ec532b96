"""What a client talks to, and what each command refuses there before it starts; against stand-ins."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oskit.cli.main import main
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.kind import kind_of, nodes_of, user_of
from oskit.cluster.client.needs import NEEDS, check, connect_for
from oskit.cluster.client.requests import REQUESTS, request_of
from oskit.cluster.client.retry import RetryPolicy
from oskit.doctor import check_cluster
from oskit.errors import (
    ClusterAuthError,
    ClusterConnectionError,
    ClusterError,
    ClusterSettingsError,
    UsageError,
)
from tests.http_server import HttpServer, Reply, Request

NEVER = RetryPolicy(retry_for_s=0)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def root(number: str = "3.6.0", **version: str) -> Reply:
    return Reply(
        body={"cluster_name": "c", "version": {"number": number, "distribution": "opensearch", **version}}
    )


class Cluster(HttpServer):
    """Answers by path; whatever is not there is refused as ``otherwise`` says.

    Attributes:
        asked: What was.
    """

    def __init__(self, otherwise: Reply, **answers: Reply) -> None:
        super().__init__(self._answer)
        self.asked: list[str] = []
        self._otherwise = otherwise
        self._answers = {f"/{path.replace('__', '/')}": reply for path, reply in answers.items()}

    def _answer(self, request: Request) -> Reply:
        self.asked.append(f"{request.method} {request.path}")
        return self._answers.get(request.path.partition("?")[0], self._otherwise)


HTML = Reply(403, b"<html><title>403 Forbidden</title></html>", {"Content-Type": "text/html"})
IAM = Reply(403, {"Message": "User: arn:aws:iam::1:user/ada is not authorized to perform: es:ESHttpGet"})
MANAGED = Reply(401, {"Message": "Your request: '/_cluster/settings' is not allowed."})
SERVERLESS = Reply(404)
NO_HANDLER = Reply(400, {"error": "no handler found for uri [/x] and method [GET]"})


@pytest.mark.parametrize(
    ("host", "service"),
    [
        ("https://search-docs-abc123.eu-north-1.es.amazonaws.com", "es"),
        ("https://vpc-docs-abc.us-gov-west-1.es.amazonaws.com/", "es"),
        ("https://docs-abc.cn-north-1.es.amazonaws.com.cn", "es"),
        ("https://docs-abc.aos.us-east-1.on.aws", "es"),
        ("https://search-docs.eu-north-1.es.amazonaws.com.example.org", "self-managed"),
        ("https://es.amazonaws.com.evil", "self-managed"),
        ("http://localhost:9200", "self-managed"),
    ],
)
def test_amazon_is_known_by_its_hosts(host: str, service: str) -> None:
    assert ConnectionSettings(url=host).service == service


@pytest.mark.parametrize("host", ["abc.eu-north-1.aoss.amazonaws.com", "ABC.aoss.eu-north-1.on.aws"])
def test_serverless_is_known_by_its_hosts(host: str) -> None:
    assert ConnectionSettings(url=f"https://{host}", aws_region="eu-north-1").service == "aoss"


SERVERLESS_HOST = "https://abc.eu-north-1.aoss.amazonaws.com"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": SERVERLESS_HOST}, "signed requests only. Give --aws-region eu-north-1"),
        ({"aws_service": "aoss"}, "signed requests only. Give --aws-region REGION"),
        ({"url": SERVERLESS_HOST, "aws_region": "us-east-1"}, "is in eu-north-1"),
        ({"url": SERVERLESS_HOST, "aws_region": "eu-north-1", "aws_service": "es"}, "Serverless (aoss)"),
        ({"aws_service": "aoss", "username": "ada", "password": "x"}, "knows no users"),
        ({"aws_profile": "work"}, "--aws-profile (OSKIT_AWS_PROFILE) has no effect without"),
    ],
)
def test_what_does_not_fit_together_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        ConnectionSettings(**given)
    assert said in str(raised.value)


def test_a_profile_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        connect(ConnectionSettings(aws_region="eu-north-1", aws_profile="nowhere"))


def test_a_custom_endpoint_says_what_it_is_with_a_password_too() -> None:
    custom = ConnectionSettings(
        url="https://search.example.org", aws_service="es", username="a", password="b"
    )  # type: ignore[arg-type]
    assert custom.service == "es"


@pytest.mark.parametrize("refusal", [HTML, IAM, MANAGED, SERVERLESS, NO_HANDLER])
def test_a_refused_path_is_not_known_and_no_error(refusal: Reply) -> None:
    with Cluster(refusal) as server:
        client = connect(ConnectionSettings(url=server.url), policy=NEVER)
        for _ in range(2):
            kind, nodes, user = kind_of(client), nodes_of(client), user_of(client)
    assert (kind.version, kind.name, nodes.plugins, user) == (None, "", frozenset(), None)
    assert len(server.asked) == 3, "each once"


def test_what_is_told_is_known() -> None:
    who = Reply(body={"user_name": "ada", "roles": ["readall"]})
    nodes = Reply(body={"nodes": {"n": {"roles": ["ml"], "plugins": [{"name": "opensearch-ml"}]}}})
    answers = {"": root("3.7.0-SNAPSHOT"), "_nodes__plugins": nodes, "_plugins___security__authinfo": who}
    with Cluster(SERVERLESS, **answers) as server:
        client = connect(ConnectionSettings(url=server.url), policy=NEVER)
        kind = kind_of(client)
        assert (kind.service, kind.name, str(kind.version)) == ("self-managed", "c", "3.7.0")
        assert nodes_of(client) == ((frozenset({"ml"}),), frozenset({"opensearch-ml"}))
        assert user_of(client) == ("ada", ("readall",))


@pytest.mark.parametrize("reply", [root(distribution=""), Reply(body={"version": {"number": "8.1.0"}})])
def test_elasticsearch_is_refused_by_every_command(reply: Reply) -> None:
    for command in NEEDS:
        with (
            Cluster(SERVERLESS, **{"": reply}) as server,
            pytest.raises(ClusterConnectionError, match="Elastic"),
        ):
            check(connect(ConnectionSettings(url=server.url), policy=NEVER), command)


WORKS_ON_SERVERLESS = {
    "ingest", "ingest --index-kind sparse_vector", "search", "search --two-phase", "search --analyzer",
    "search --hybrid", "ingest --recreate", "models", "index show", "index adopt", "pipeline show",
    "pipeline check", "rollback", "playground",
}  # fmt: skip


@pytest.mark.parametrize(("service", "works"), [("es", NEEDS.keys() - {"deploy"}), ("aoss", None)])
def test_what_cannot_work_on_amazon_is_said_before_anything_is_asked(service: str, works: Any) -> None:
    works = WORKS_ON_SERVERLESS if works is None else works
    refused = {}
    with Cluster(SERVERLESS, **{"": root("3.5.0")}) as server:
        given = ConnectionSettings(url=server.url, aws_region="eu-north-1", aws_service=service)  # type: ignore[arg-type]
        for command in NEEDS:
            try:
                connect_for(given, command, index="i")
            except ClusterSettingsError as error:
                refused[command] = str(error)
        assert not [asked for asked in server.asked if asked != "GET /" and "authinfo" not in asked]
    assert NEEDS.keys() - refused.keys() == set(works)
    for command, said in refused.items():
        assert re.match(
            rf"oskit {command} cannot work on Amazon OpenSearch .*: there is no (GET|POST|PUT) /", said
        )
    assert "--encode client" in refused["deploy"]


def test_the_command_line_tells_it_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    with Cluster(MANAGED, **{"": root("2.19.0")}) as server:
        words = ["ingest", "i", "x.jsonl", "--encode", "none", "--index-kind", "sparse_vector"]
        (tmp_path / "x.jsonl").write_text("")
        words[2] = str(tmp_path / "x.jsonl")
        assert main([*words, "--url", server.url]) == 7
        assert server.asked == ["GET /"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs OpenSearch 3.3 or newer, and this is OpenSearch 2.19.0" in line
    assert "rank_features" in line


class Secured(HttpServer):
    """A cluster whose security plugin says what it would permit.

    Attributes:
        carried_out: Requests that were none of these questions.
    """

    def __init__(self, denies: Callable[[str, str], str | None]) -> None:
        super().__init__(self._answer)
        self._denies = denies
        self.carried_out: list[str] = []

    def _answer(self, request: Request) -> Reply:
        path, _, query = request.path.partition("?")
        if path == "/":
            return root()
        if path.endswith("/authinfo"):
            return Reply(body={"user_name": "ada", "roles": []})
        if query != "perform_permission_check=true":
            self.carried_out.append(path)
            return Reply(403, {"error": {"type": "security_exception", "reason": "no permissions for [x]"}})
        missing = self._denies(request.method, path)
        if missing == "?":  # as some of the plugin's own handlers do
            return Reply(500, {"error": {"type": "class_cast_exception"}})
        return Reply(body={"accessAllowed": not missing, "missingPrivileges": [missing] if missing else []})


def test_a_missing_permission_is_told_before_anything_is_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "oskit.cluster.changes")

    def denies(method: str, path: str) -> str | None:
        if path == "/_plugins/_ml/models/_register_meta":
            return "cluster:admin/opensearch/ml/register_model_meta"
        return "?" if "upload_chunk" in path else None

    with Secured(denies) as server:
        client = connect(ConnectionSettings(url=server.url), policy=NEVER)
        with pytest.raises(ClusterAuthError) as raised:
            check(client, "deploy")
        assert "ada, who lacks cluster:admin/opensearch/ml/register_model_meta" in str(raised.value)
        assert "docs/permissions.md" in str(raised.value)
        check(client, "search", index="i")  # asks for nothing that can be asked
        with pytest.raises(ClusterAuthError, match="indices:admin/create"):
            check(
                connect(ConnectionSettings(url=_deny_creation(server)), policy=NEVER),
                "ingest --recreate",
                index="i",
            )
        assert not server.carried_out
        assert "oskit.cluster.changes" not in {record.name for record in caplog.records}, (
            "and none of it is told as a change"
        )


def test_the_doctor_tells_the_kind_the_user_and_which_commands_cannot_work() -> None:
    with Cluster(SERVERLESS) as server:
        given = ConnectionSettings(url=server.url, aws_region="eu-north-1", aws_service="aoss")
        (deploys,) = [found for found in check_cluster(given) if found.name == "oskit deploy"]
    assert deploys.status == "warning"
    assert "cannot work on Amazon OpenSearch Serverless" in deploys.detail
    assert "--encode client" in str(deploys.advice)
    with Secured(
        lambda method, _: "cluster:admin/opensearch/ml/models/delete" if method == "DELETE" else None
    ) as server:
        found = {one.name: one for one in check_cluster(ConnectionSettings(url=server.url, retry_for=0))}
    assert "ada, without a role" in found["user"].detail
    assert "who lacks cluster:admin/opensearch/ml/models/delete" in found["oskit delete"].detail


def _deny_creation(server: Secured) -> str:
    server._denies = lambda method, path: "indices:admin/create" if (method, path) == ("PUT", "/i") else None
    return server.url


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (IAM, "IAM does not permit it"),
        (MANAGED, "Amazon OpenSearch Service does not offer that"),
        (
            Reply(403, {"status": 403, "error": {"reason": "403 Forbidden", "type": "Forbidden"}}),
            "Serverless forbids it",
        ),
        (
            Reply(403, {"error": {"type": "security_exception", "reason":
                  "no permissions for [indices:admin/get] and User [name=ada, backend_roles=[]]"}}),
            r"lacks a permission \(403: no permissions for \[indices:admin/get\]\).*docs/permissions.md",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_permission_or_the_policy(reply: Reply, said: str) -> None:
    with Cluster(reply) as server:
        client = connect(ConnectionSettings(url=server.url), policy=NEVER)
        with pytest.raises(ClusterError, match=said), cluster_errors("read the index"):
            client.indices.get(index="i")


def test_the_documentation_holds_the_table() -> None:
    docs = Path(__file__).parents[3] / "docs"
    spec = importlib.util.spec_from_file_location("write_permissions", docs / "write_permissions.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (docs / "permissions.md").read_text(encoding="utf-8")
    assert module.page(page) == page, "docs/permissions.md is out of date: make docs"


def test_every_request_that_a_command_names_is_in_the_table() -> None:
    for command, needs in NEEDS.items():
        assert {*needs.requests, *needs.also} <= REQUESTS.keys(), command
        assert not set(needs.requests) & set(needs.also), command
    used = {name for needs in NEEDS.values() for name in (*needs.requests, *needs.also)}
    assert REQUESTS.keys() - used <= {
        "GET /_ingest/pipeline",
        "HEAD /INDEX",
        "POST /INDEX/_forcemerge",
    }  # doctor, demo
    for name, request in REQUESTS.items():
        json.loads(request.body or "null")
        method, path = name.split(" ")
        assert request_of(method, path.replace("INDEX", "articles-2")) == name
