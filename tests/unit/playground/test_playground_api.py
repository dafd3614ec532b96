"""What the playground's server answers, whom it refuses, and that it asks nothing that changes a cluster."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from archives import encoder_archive, write_manifest

from oskit.archive.encoder import ArchiveEncoder
from oskit.cli.main import main
from oskit.cluster.search.result import Hit, Match, SearchResult
from oskit.data.collection import Collection
from oskit.errors import ClusterConnectionError, SearchError, UsageError
from oskit.playground.answer import Judged
from oskit.playground.app import AT_ONCE, Playground
from oskit.playground.offer import Offer, Way, read_only

HERE = "127.0.0.1:8081"
TOKEN = "a-token-of-the-tests"
COOKIE = {"cookie": f"oskit-playground-8081={TOKEN}"}
OURS = {"host": HERE, "origin": f"http://{HERE}", **COOKIE}
LONG = "x" * 1_000_000
HITS = [
    Hit("b", 3.0, {"title": "<script>", "text": LONG, "lang": "en"}, "<script>", LONG),
    Hit("a", 2.0, {}, matched={"fox": Match(2.0, 1.0)}),
]


@dataclass
class Cluster:
    """Stands for what answers: a result, or an error; and a gate before it."""

    result: SearchResult | Exception = field(
        default_factory=lambda: SearchResult("articles", "model", 7, 2, HITS, "token", {"fox": 2.0})
    )
    gate: threading.Event | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def search(self, query: str, **wanted: Any) -> SearchResult:
        self.asked.append((query, wanted))
        if self.gate is not None:
            assert self.gate.wait(20)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def request(self, query: str, **wanted: Any) -> dict[str, Any]:
        if query == "…":
            raise UsageError("the query has no tokens, so that nothing is sent")
        return {
            "method": "POST",
            "path": "/articles/_search",
            "body": {"size": wanted["size"]},
            "warning": None,
        }


class Offered(Offer):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__(None, ["articles"])  # type: ignore[arg-type]
        self._cluster = cluster

    def searcher(self, way: Way) -> Any:
        self.check(way.index)
        return self._cluster


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: Any,
    path: str,
    body: object = None,
    headers: dict[str, str] = OURS,
    gone: asyncio.Event | None = None,
) -> Answer:
    """One request, as a browser sends it; ``gone`` is when it hangs up."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "scheme": "http",
        "server": ("127.0.0.1", 8081),
    }
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent: list[dict[str, Any]] = []
    read = False

    async def receive() -> dict[str, Any]:
        nonlocal read
        if not read:
            read = True
            return {"type": "http.request", "body": content}
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], found, b"".join(one.get("body", b"") for one in sent[1:]))


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def request_(cluster: Cluster) -> Callable[..., Answer]:
    grades = {"q1": {"a": 2, "b": 0, "c": 1}, "unjudged": {"a": 0}}
    collection = Collection({"q1": "fox", "unjudged": "dog"}, grades, ())
    app = Playground(Offered(cluster), TOKEN, Judged(collection), "test").app()
    return lambda *args, **kwargs: asyncio.run(ask(app, *args, **kwargs))


def searched(**changes: Any) -> dict[str, Any]:
    return {"query": "fox", "way": {"index": "articles"}, **changes}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {"host": HERE}),  # no token
        ("/?token=wrong", {"host": HERE}),
        (f"/?token={TOKEN}", {"host": "evil.example"}),  # DNS rebinding
        ("/api/offer", {"host": "evil.example:8081", **COOKIE}),
        ("/api/offer", {"host": "127.0.0.1.evil.example", **COOKIE}),
        ("/api/offer", {**COOKIE}),
        ("/api/offer", {"host": HERE, "cookie": "oskit-playground-8081=wrong"}),
        (f"/api/offer?token={TOKEN}", {"host": HERE}),  # a page's link would do that
        ("/api/offer", {**OURS, "origin": "http://evil.example"}),
        ("/api/offer", {**OURS, "origin": "null"}),
    ],
)
def test_whoever_is_not_the_page_is_refused(
    request_: Callable[..., Answer], path: str, headers: dict[str, str]
) -> None:
    answer = request_(path, headers=headers)
    assert (answer.status, TOKEN.encode() in answer.body) == (403, False)


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:9999", f"https://{HERE}"]
)
def test_only_the_page_itself_may_send_a_search(
    request_: Callable[..., Answer], cluster: Cluster, origin: str | None
) -> None:
    headers = {"host": HERE, **COOKIE, **({} if origin is None else {"origin": origin})}
    assert request_("/api/search", searched(), headers).status == 403
    assert not cluster.asked


def test_the_page_loads_nothing_from_elsewhere_and_holds_no_token(request_: Callable[..., Answer]) -> None:
    page = request_(f"/?token={TOKEN}", headers={"host": HERE})
    assert page.status == 200 and TOKEN.encode() not in page.body
    assert {"HttpOnly", "SameSite=strict"} <= {part.strip() for part in page.headers["set-cookie"].split(";")}
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy.pop("default-src") == policy.pop("frame-ancestors") == policy.pop("form-action") == "'none'"
    assert set(policy.values()) == {"'self'", "'none'"}
    for path in ("/playground.js", "/playground.css", "/icon.svg"):
        content = request_(path, headers={"host": HERE}).body
        assert b"://" not in content.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"innerHTML" not in content


def test_a_search_is_told_whole_but_for_what_is_too_long(
    request_: Callable[..., Answer], cluster: Cluster
) -> None:
    way = {"index": "articles", "filter": "lang=de; year>=2020", "by": "hybrid", "weight": 0.7}
    answer = request_("/api/search", searched(way=way, size=20, judged="q1")).json
    first, second = answer["hits"]
    assert (first["title"], len(first["text"]), first["letters"]) == ("<script>", 3000, 1_000_000)
    assert first["fields"] == [["lang", "en"]] and first["grade"] == 0
    assert (second["title"], second["text"], second["grade"]) == ("", "", 2)
    assert second["matched"] == [["fox", 2.0, 1.0, 2.0]] and second["sum"] == 2.0
    assert answer["query_weights"] == {"tokens": [["fox", 2.0]], "count": 1}
    assert answer["request"]["body"] == {"size": 20} and answer["took_ms"] == 7
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert answer["judged"] == {"ndcg": pytest.approx((2 / math.log2(3)) / ideal), "relevant": 1}
    (_, plain), (_, explained) = cluster.asked
    assert plain["filter"] == ["lang=de", "year>=2020"] and plain["hybrid"].weights == pytest.approx(
        (0.3, 0.7)
    )
    assert explained == plain | {"explain": True}


def test_tokens_that_are_names_of_directions_are_told(cluster: Cluster, tmp_path: Path) -> None:
    offer = Offered(cluster)
    for name, directions in (("words", False), ("dense", True)):
        archive = encoder_archive(tmp_path / name / f"{name}.zip")
        write_manifest(archive, vocabulary={"size": 200, "key_format": "token", "directions": directions})
        offer.archives = {**offer.archives, name: ArchiveEncoder.open(archive)}
    app = Playground(offer, TOKEN, None, "test").app()
    for encoder, told in (("archive:words", False), ("archive:dense", True), ("", False)):
        way = {"index": "articles", "encoder": encoder}
        note = asyncio.run(ask(app, "/api/search", searched(way=way))).json["note"]
        assert ("names of directions" in note) == told
    asked = {"text": "fox", "kind": "query", "index": "articles", "encoder": "archive:dense"}
    assert "names of directions" in asyncio.run(ask(app, "/api/weights", asked)).json["note"]
    assert "note" in asyncio.run(ask(app, "/playground.js")).body.decode().partition("warnings = ")[2][:60]


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ('title="a; b"; lang=de', ['title="a; b"', "lang=de"]),
        ('title = "a", "b; ""c""; d" ;lang!="x;y"', ['title = "a", "b; ""c""; d"', 'lang!="x;y"']),
        ('size=5" disk; lang=de', ['size=5" disk', "lang=de"]),  # no quotation: it stands in a value
        (' ; lang=de;; year>"2020" ', ["lang=de", 'year>"2020"']),
        ('title="a; b', ['title="a', "b"]),  # whose refusal names what is missing
        ('{"match_phrase": {"title": "a; b"}}', ['{"match_phrase": {"title": "a; b"}}']),
    ],
)
def test_semicolons_part_filters_but_in_quotes(
    request_: Callable[..., Answer], cluster: Cluster, given: str, parts: list[str]
) -> None:
    assert request_("/api/search", searched(way={"index": "articles", "filter": given})).status == 200
    assert cluster.asked[0][1]["filter"] == parts


@pytest.mark.parametrize("weight", [1e-9, 0.00004, 1 / 3, 1 - 1e-9])
def test_any_weight_between_none_and_all_is_sent_as_it_is(
    request_: Callable[..., Answer], cluster: Cluster, weight: float
) -> None:
    way = {"index": "articles", "by": "hybrid", "weight": weight}
    assert request_("/api/search", searched(way=way)).status == 200
    assert cluster.asked[0][1]["hybrid"].weights == (1 - weight, weight)


def test_a_cluster_that_is_away_is_told_apart_and_answers_when_it_is_back(
    request_: Callable[..., Answer], cluster: Cluster
) -> None:
    there, cluster.result = cluster.result, ClusterConnectionError("it refuses connections", hint="Wait")
    answer = request_("/api/search", searched())
    assert (answer.status, answer.json) == (503, {"error": "it refuses connections", "hint": "Wait"})
    cluster.result = there
    assert request_("/api/search", searched()).status == 200


def test_judged_queries_come_in_order_and_those_without_a_relevant_document_do_not(
    request_: Callable[..., Answer],
) -> None:
    assert request_("/api/offer").json == {"cluster": "test", "indexes": ["articles"], "judged": 1}
    assert request_("/api/judged?number=0").json == {"number": 0, "id": "q1", "text": "fox", "relevant": 2}
    for number in ("1", "-1", "x", ""):
        assert request_(f"/api/judged?number={number}").status == 400


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "json"),
        (b"[]", "object"),
        (b"x" * 4_000_001, "MB"),
        (searched(way={"index": "secrets"}), "'secrets' is not offered"),
        (searched(way={"index": "articles", "by": "dense"}), "way.by"),
        (searched(way={"index": "articles", "by": "hybrid", "fusion": "sum"}), "sum"),
        (searched(way={"index": "articles", "weight": 1}), "way.weight"),
        (searched(way={"index": "articles", "body": {}}), "way.body"),
        (searched(size=9), "size"),
        (searched(size=101), "size"),
        (searched(judged="other"), "no judged query"),
    ],
)
def test_what_cannot_be_asked_is_one_line(request_: Callable[..., Answer], body: object, told: str) -> None:
    answer = request_("/api/search", body)
    assert answer.status == 400
    assert told in answer.json["error"] and "\n" not in answer.json["error"]


def test_a_cluster_that_fails_and_a_query_without_tokens_are_told(
    request_: Callable[..., Answer], cluster: Cluster
) -> None:
    cluster.result = SearchResult("articles", "model", 0, 0, [], "token", {})
    answer = request_("/api/search", searched(query="…")).json
    assert (answer["hits"], answer["request"]) == ([], None) and "no tokens" in answer["no_request"]
    cluster.result = SearchError("there is no index 'articles'", hint="Load one")
    answer = request_("/api/search", searched())
    assert (answer.status, answer.json) == (
        502,
        {"error": "there is no index 'articles'", "hint": "Load one"},
    )
    cluster.result = RuntimeError("secret\nlines")
    assert request_("/api/search", searched()).json["error"] == "unexpected RuntimeError: secret lines"


def test_what_nobody_waits_for_any_more_is_never_asked(cluster: Cluster) -> None:
    """The cluster hangs: the queries typed meanwhile do not pile up in front of it."""
    cluster.gate = threading.Event()
    app = Playground(Offered(cluster), TOKEN).app()

    async def hurry() -> Answer:
        gone = asyncio.Event()
        given_up = [
            asyncio.create_task(ask(app, "/api/search", searched(query=f"q{n}"), gone=gone))
            for n in range(30)
        ]
        while len(cluster.asked) < AT_ONCE:
            await asyncio.sleep(0.01)
        gone.set()
        assert {one.status for one in await asyncio.gather(*given_up)} == {499}
        last = asyncio.create_task(ask(app, "/api/search", searched(query="last")))
        await asyncio.sleep(0.05)
        assert cluster.gate is not None
        cluster.gate.set()
        return await last

    assert asyncio.run(hurry()).status == 200
    assert [query for query, _ in cluster.asked if query == "last"] == ["last", "last"]
    assert len({query for query, _ in cluster.asked}) == AT_ONCE + 1


def test_nothing_that_would_change_the_cluster_is_sent() -> None:
    class Transport:
        sent: list[str] = []  # noqa: RUF012

        def perform_request(self, method: str, url: str, **_: Any) -> None:
            self.sent.append(f"{method} {url}")

    class Client:
        transport = Transport()

    client: Any = read_only(Client())  # type: ignore[arg-type]
    for path in ("/a/_search", "/_msearch", "/a/_count", "/_plugins/_ml/_predict/sparse_encoding/id"):
        client.transport.perform_request("POST", path)
    for method, path in (("POST", "/a/_doc"), ("PUT", "/a/_mapping"), ("DELETE", "/a"), ("POST", "/_bulk")):
        with pytest.raises(UsageError, match="changes nothing"):
            client.transport.perform_request(method, path)
    assert len(Transport.sent) == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "0.0.0.0"], "reached from other machines"),
        (["--host", "::"], "reached from other machines"),
        (["--split", "dev"], "--split has no effect"),
        (["--precision", "bf16"], "without --archive"),
        (["--collection", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_an_open_address_and_options_without_effect_are_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["playground", *arguments]) in (2, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
