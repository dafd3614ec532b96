"""Commands with just the requests that the table grants, with one less, and on a stand-in of Serverless."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from archives import encoder_archive
from faulty_proxy import Fault, FaultyProxy
from gate import Gate
from http_server import Reply
from opensearchpy import OpenSearch
from served import TOKEN, serve
from tiny_models import TinyModels, documents, index, tiny, write_documents

from oskit.cli import main
from oskit.cluster.client.needs import NEEDS
from oskit.cluster.client.requests import request_of
from oskit.cluster.index.mapping import delete_index
from oskit.cluster.models.registry import list_models
from oskit.cluster.models.retire import delete_model
from oskit.data.collection import Collection

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

ALWAYS = re.compile(r"GET /_plugins/_security/authinfo|HEAD /\.plugins-ml-")
"""What is asked besides, and needs no permission: who may not, learns less."""


def forbidden(action: str) -> Reply:
    """As the security plugin refuses."""
    reason = f"no permissions for [{action}] and User [name=ada, backend_roles=[]]"
    return Reply(403, {"error": {"type": "security_exception", "reason": reason}, "status": 403})


class Granting(Gate):
    """Lets pass what the commands need, and what they have other cases with."""

    def __init__(self, upstream: str, *commands: str, also: bool = True, without: str = "") -> None:
        granted = {one for name in commands for one in NEEDS[name].requests} - {without}
        if also:
            granted |= {one for name in commands for one in NEEDS[name].also}

        def refusal(method: str, path: str) -> Reply | None:
            row = request_of(method, path)
            if row in granted or ALWAYS.match(f"{method} {path}"):
                return None
            return forbidden(str(row))

        super().__init__(upstream, refusal)


@pytest.fixture
def work(tiny: TinyModels, tmp_path: Path) -> dict[str, str]:
    """Names of files that commands are given."""
    source = write_documents(tmp_path / "docs.jsonl", documents())
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(source.read_text().splitlines(keepends=True)[:35]))
    queries = {f"q{number}": "quick brown fox" for number in range(2)}
    collection = Collection(queries=queries, qrels={name: {"d1": 1} for name in queries},
                            corpus=tuple(documents()))  # fmt: skip
    collection.write(tmp_path / "collection")
    each = {f"q{number}": " ".join(one.text.split()[:3]) for number, one in enumerate(documents()[:30])}
    qrels = {query: {f"d{number}": 1} for number, query in enumerate(each)}
    Collection(each, qrels, tuple(documents())).write(tmp_path / "judged")
    archive = encoder_archive(tmp_path / f"oskit-test-{uuid.uuid4().hex[:8]}.zip", seed=43)
    return {"source": str(source), "fewer": str(fewer), "collection": str(tmp_path / "collection"),
            "judged": str(tmp_path / "judged"),
            "archive": str(archive), "model": archive.stem, "tiny": str(tiny.archive),
            "deployed": tiny.encoder_id}  # fmt: skip


STEPS = [
    (("deploy",), "deploy {archive}"),
    (("models",), "models"),
    (("ingest",), "ingest {index} {source} --archive {tiny}"),
    (("ingest",), "ingest {index} {source} --archive {tiny}"),
    (("ingest", "ingest --delete-missing"), "ingest {index} {fewer} --archive {tiny} --delete-missing -y"),
    (("ingest", "ingest --recreate"), "ingest {index} {source} --archive {tiny} --recreate"),
    (("ingest", "ingest --encode cluster"), "ingest {index}-c {source} --encode cluster --model {deployed}"),
    (("ingest", "ingest --release"), "ingest {index}-r {source} --archive {tiny} --release"),
    (("ingest", "ingest --release"), "ingest {index}-r {source} --archive {tiny} --release"),
    (("releases",), "releases {index}-r"),
    (("rollback",), "rollback {index}-r"),
    (("search",), "search {index} fox --archive {tiny} --filter n>=3"),
    (("search",), "search {index}-c fox"),
    (("search", "search --hybrid"), "search {index} fox --archive {tiny} --hybrid bm25=0.3,sparse=0.7"),
    (("verify",), "verify {collection} --index {index} --archive {tiny}"),
    (("tune",), "tune {judged} --index {index} --archive {tiny} --folds 2 --put-pipeline {index}-fused"),
    (("sweep",), "sweep {index} {collection} --archive {tiny} --rounds 1"),
    (("index show",), "index show {index}"),
    (("pipeline show",), "pipeline show {index}-c"),
    (("pipeline put",), "pipeline put {index}-c"),
    (("pipeline check",), "pipeline check {index}-c"),
    (("undeploy",), "undeploy {model} --force"),
    (("delete",), "delete {model} --yes --force"),
]


@pytest.fixture
def clean(client: OpenSearch, index: str, work: dict[str, str]) -> Iterator[str]:
    """The index's name; what is made beside it goes, too."""
    yield index
    for model in list_models(client, {"term": {"name.keyword": work["model"]}}):
        delete_model(client, model.model_id, own=True)
    for name in client.indices.get(index=f"{index}-*", params={"expand_wildcards": "all"}):
        delete_index(client, name)
    client.ingest.delete_pipeline(id=f"{index}*", ignore=404)


def test_every_command_works_with_what_the_table_grants_it(
    cluster_url: str, work: dict[str, str], clean: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    for commands, words in STEPS:
        with Granting(cluster_url, *commands) as gate:
            made = [word.format(**work, index=clean) for word in words.split()]
            code = main([*made, "--url", gate.url, "--retry-for", "0"])
        said = capsys.readouterr().err
        if gate.refused or code:
            wrong.append((words, sorted(set(gate.refused)), said if code else ""))
    assert not wrong, "\n".join(map(str, wrong))


def test_a_service_is_asked_with_what_the_table_grants(
    cluster_url: str, work: dict[str, str], clean: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("OSKIT_SERVE_TOKEN", TOKEN)
    with serve(work["archive"]) as (service, _):
        for command, words in (
            ("deploy --remote", "deploy --remote {service} {archive} --configure-cluster"),
            ("delete", "delete {model} --yes --force"),
        ):
            with Granting(cluster_url, command) as gate:
                made = [word.format(**work, service=service) for word in words.split()]
                assert main([*made, "--url", gate.url, "--retry-for", "0"]) == 0, capsys.readouterr().err
                assert not gate.refused


def test_the_playground_asks_what_the_table_grants(
    cluster_url: str, work: dict[str, str], clean: str, tmp_path: Path
) -> None:
    load = ["ingest", clean, work["source"], "--encode", "cluster", "--model", work["deployed"]]
    assert main([*load, "--url", cluster_url]) == 0
    ways: list[dict[str, object]] = [{"by": "sparse", "filter": "n>=3"}, {"by": "bm25"}, {"by": "hybrid"}]
    with Granting(cluster_url, "playground") as gate:
        command = [sys.executable, "-m", "oskit", "playground", "--port", "0", "--json", "--url", gate.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
            assert process.stdout is not None
            told = ""
            while not told.endswith("\n}\n"):
                told += process.stdout.readline()
            first, _, token = json.loads(told)["url"].partition("?token=")
            port = urlsplit(first).port

            def ask(path: str, body: object = None) -> object:
                headers = {"Cookie": f"oskit-playground-{port}={token}", "Origin": first.rstrip("/")}
                sent = None if body is None else json.dumps(body).encode()
                try:
                    with urlopen(Request(f"{first}api/{path}", sent, headers)) as answer:
                        return json.load(answer)
                except HTTPError as error:
                    pytest.fail(f"{path}, {body}: {error.read().decode()}")

            try:
                assert ask("offer") and ask(f"index?name={clean}")
                for way in ways:
                    ask("search", {"query": "quick fox", "way": {"index": clean, **way}})
                for kind in ("query", "document"):
                    ask("weights", {"text": "quick fox", "kind": kind, "index": clean})
            finally:
                process.terminate()
    assert not gate.refused


def test_who_sees_no_profile_is_told_that_nobody_saw_whether_a_model_encodes(
    cluster_url: str, work: dict[str, str], clean: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """For whom it is empty, as OpenSearch answers who may not see it."""
    assert main(["deploy", work["archive"], "--url", cluster_url]) == 0
    empty = Fault("GET .*/_ml/profile", times=99, status=200, answer=b"{}")
    told = "nobody saw whether it is encoding, and undeploying an ONNX model that encodes kills the node"
    with FaultyProxy(cluster_url, empty) as proxy:
        capsys.readouterr()
        for options in (["--dry-run"], []):
            for url in (proxy.url, cluster_url):
                assert main(["undeploy", work["model"], *options, "--url", url]) == 0
                out, err = capsys.readouterr()
                assert (told in " ".join((out + err).split())) == (url == proxy.url), (options, out, err)


@pytest.mark.parametrize(
    ("commands", "words", "without"),
    [
        (("search",), "search {index} fox --archive {tiny}", "POST /INDEX/_search"),
        (("search",), "search {index} fox --archive {tiny}", "GET /INDEX/_mapping"),
        (("ingest",), "ingest {index} {source} --archive {tiny} --reencode", "POST /INDEX/_bulk"),
    ],
)
def test_without_one_it_names_it_and_what_is_left_is_enough_for_the_simple_case(
    cluster_url: str, client: OpenSearch, work: dict[str, str], index: str, commands: tuple[str, ...],
    words: str, without: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["ingest", index, work["source"], "--archive", work["tiny"], "--url", cluster_url]) == 0
    made = [word.format(**work, index=index) for word in words.split()]
    with Granting(cluster_url, *commands, also=False) as gate:
        assert main([*made, "--url", gate.url, "--retry-for", "0"]) == 0
    capsys.readouterr()
    with Granting(cluster_url, *commands, without=without) as gate:
        assert main([*made, "--url", gate.url, "--retry-for", "0"]) == 7
    said = capsys.readouterr().err
    assert f"lacks a permission (403: no permissions for [{without}])" in said
    assert "docs/permissions.md" in said


SUPPORTED = [
    ("GET|HEAD|PUT|DELETE", r"/[^/_][^/]*"),
    ("GET|POST|PUT", r"/([^/_][^/]*/)?_(mappings?|settings)(/[^/]+)?"),
    ("POST", r"/([^/]+/)?_bulk"),
    ("GET", r"/([^/]+/)?_(analyze|count|field_caps|mget|msearch|rank_eval|search|validate/query)"),
    ("POST", r"/([^/]+/)?_(analyze|count|field_caps|rank_eval|search)"),
    ("POST", r"/_aliases"),
    ("GET", r"/_index_template"),
    ("GET|PUT|DELETE", r"/_(ingest|search)/pipeline/[^/]+"),
    ("POST", r"/_plugins/_ml/(models|connectors|model_groups)/_search"),
]
"""Of "Supported operations and plugins in Amazon OpenSearch Serverless", those near to what we send."""


def serverless(method: str, path: str) -> Reply | None:
    """Refused as there: 404, and nothing else."""
    known = (re.fullmatch(verbs, method) and re.fullmatch(form, path) for verbs, form in SUPPORTED)
    return None if any(known) else Reply(404)


def test_serverless_takes_documents_and_searches_that_are_encoded_here(
    cluster_url: str, client: OpenSearch, work: dict[str, str], index: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    local = ["--archive", work["tiny"]]
    search = ["search", index, "quick fox", *local, "--filter", "n>=3", "--json"]
    with Gate(cluster_url, serverless) as gate:
        there = ["--url", gate.url, "--aws-service", "aoss", "--aws-region", "eu-north-1", "--retry-for", "0"]
        assert main(["ingest", index, work["source"], *local, *there]) == 0
        client.indices.refresh(index=index)  # as it does by itself, within a minute
        assert main(["ingest", index, work["source"], *local, *there]) == 0
        assert "unchanged 40, encoded 0" in capsys.readouterr().out
        client.indices.put_alias(index=index, name=f"{index}-alias")
        assert main([*search, *there]) == 0
        here = capsys.readouterr().out
        assert main([*search, "--url", cluster_url]) == 0
        plain = capsys.readouterr().out
        search[1] = f"{index}-alias"
        assert main([*search, *there]) == 0
        aliased = capsys.readouterr().out
        gate.refused.clear()
        assert main(["verify", work["collection"], "--index", index, *local, *there]) == 7
        assert "cannot work on Amazon OpenSearch Serverless" in capsys.readouterr().err
        assert not gate.refused, "it was not even asked"
    hits = [re.findall(r'"id": "(\w+)"', said) for said in (here, plain, aliased)]
    assert hits[0] and hits[0] == hits[1] == hits[2]
