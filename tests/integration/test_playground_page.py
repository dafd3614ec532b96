"""The playground in a real browser on a real node: what it shows is what the encoder here computes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from archives import encoder_archive
from faulty_proxy import Fault, FaultyProxy
from opensearchpy import OpenSearch
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from tiny_models import TinyModels, documents, tiny

from oskit.archive.encoder import ArchiveEncoder
from oskit.cluster.index.mapping import IndexSettings, delete_index
from oskit.cluster.ingest.load import ingest
from oskit.data.chunks import Chunking
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.playground.offer import Offer

__all__ = ["tiny"]

pytestmark = pytest.mark.integration

QUERY = "how long does it take to get a building permit"
HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
ROUNDING = 2**-8
"""Weights are stored with 9 significant bits: at most this part of a score may be missing."""


def texts() -> list[Document]:
    """Words; markup; right to left with emoji; without a title; huge."""
    return [
        *(replace(document, title="") for document in documents(20)),
        Document("hostile", f"building permit {HOSTILE}", HOSTILE, {"note": HOSTILE}),
        Document(
            "rtl",
            "building permit \u05e9\u05dc\u05d5\u05dd \u202eabc \N{GRINNING FACE}",
            "\u05e9\u05dc\u05d5\u05dd \N{GRINNING FACE}",
        ),
        Document("huge", "take a permit " + "quick brown fox " * 60_000),
    ]


@dataclass
class Names:
    """Indexes of the same documents, and a URL that offers them."""

    features: str
    vector: str
    chunks: str
    alias: str


@pytest.fixture(scope="module")
def names(client: OpenSearch, tiny: TinyModels) -> Iterator[Names]:
    own = uuid.uuid4().hex[:6]
    made = Names(*(f"ingtest-page-{what}-{own}" for what in ("features", "vector", "chunks", "alias")))
    settings = {
        made.features: IndexSettings(),
        made.vector: IndexSettings(kind="sparse_vector"),
        made.chunks: IndexSettings(chunking=Chunking(16, 4)),
    }
    for name, how in settings.items():
        docs = texts()[:-1] if name == made.chunks else texts()
        ingest(client, name, docs, encoder=tiny.encoder, model_id=tiny.encoder_id, settings=how)
    client.indices.put_alias(index=made.features, name=made.alias)
    yield made
    for name in settings:
        delete_index(client, name)


@pytest.fixture(scope="module")
def collection(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One query's best and third best documents are relevant, the other's is not among them."""
    first, second, third, *_ = sorted(exact(tiny), key=lambda name: -exact(tiny)[name])
    ids = {one.title or one.id: one.id for one in texts()}
    qrels = {"q1": {ids[first]: 1, ids[second]: 0, ids[third]: 2}, "q2": {"d5": 1}}
    made = Collection({"q1": QUERY, "q2": "quick brown fox"}, qrels, tuple(texts()[:1]))
    return made.write(tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def between(cluster_url: str) -> Iterator[FaultyProxy]:
    """Stands between the playground and the cluster, and lets it be away."""
    with FaultyProxy(cluster_url, Fault("", "reset", times=0)) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def url(between: FaultyProxy, names: Names, tiny: TinyModels, collection: Path) -> Iterator[str]:
    """Of a playground in a process of its own."""
    command = [sys.executable, "-m", "oskit", "playground", *vars(names).values(), "--url", between.url]
    command += [
        "--archive",
        str(tiny.archive),
        "--collection",
        str(collection),
        "--port",
        "0",
        "--json",
        "-q",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        told = ""
        while not told.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            told += line
        yield json.loads(told)["url"]
        process.terminate()
        # Nothing was changed in the cluster, or it would be said here.
        assert [line for line in process.stderr.read().splitlines() if "trying again in" not in line] == []
    assert process.returncode == 0


def installed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        reason = f"there is no {program}; on Debian: apt-get install chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = installed("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(installed("chromedriver")))
    yield driver
    driver.quit()


class Page:
    """The page in a browser."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        driver.get("about:blank")
        self.resize(1280, 900)
        driver.get(url)
        self.until(lambda: self.script("return document.activeElement.id") == "query")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def script(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def until(self, is_so: Callable[[], object]) -> None:
        WebDriverWait(self.driver, 60, 0.05).until(lambda _: is_so())

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def press(self, *keys: str) -> None:
        self.script("return document.activeElement").send_keys(*keys)

    def settle(self) -> None:
        self.until(lambda: not self.all('.side[aria-busy="true"]'))

    def choose(self, side: int, **values: str) -> None:
        for name, value in values.items():
            control = self.all(".way")[side].find_element(By.NAME, name)
            if control.tag_name == "select":
                self.until(
                    lambda control=control, value=value: any(
                        o.get_attribute("value") == value and o.is_enabled() for o in Select(control).options
                    )
                )
                Select(control).select_by_value(value)
            else:
                control.clear()
                control.send_keys(value, Keys.TAB)
        self.settle()

    def ask(self, query: str) -> None:
        field = self.driver.find_element(By.ID, "query")
        field.clear()
        field.send_keys(query, Keys.ENTER)
        self.settle()

    def hits(self, side: int) -> list[tuple[str, float]]:
        """Id or title, and score."""
        found = self.script(
            "return [...document.querySelectorAll('.side')[arguments[0]].querySelectorAll('.hit')].map("
            "hit => [hit.querySelector('.name').textContent, hit.querySelector('.score').textContent])",
            side,
        )
        return [(name, float(score.replace(",", ""))) for name, score in found]

    def tokens(self, side: int, place: int) -> tuple[dict[str, tuple[float, float, float]], float]:
        """What matched of a hit, by its table: query, document, product; and their sum."""
        hit = self.all(".side")[side].find_elements(By.CSS_SELECTOR, ".hit")[place]
        if "open" not in str(hit.get_attribute("class")):
            self.script("arguments[0].querySelector('.toggle').click()", hit)
        rows, total = self.script(
            "return [[...arguments[0].querySelectorAll('.matched tbody tr')].map("
            "row => [...row.cells].map(cell => cell.textContent)),"
            "arguments[0].querySelector('.matched .sum').textContent]",
            hit,
        )
        return {
            token: tuple(map(float, (query, doc, product))) for token, query, doc, _, product in rows
        }, float(total)

    def problems(self) -> list[str]:
        return [one.text for one in self.all(".problem") if one.is_displayed()]

    def check_clean(self) -> None:
        """Nothing ran that was a document's, nothing came from elsewhere, and the console is empty."""
        assert self.script("return window.pwned ?? null") is None
        asked = self.script("return performance.getEntriesByType('resource').map(one => one.name)")
        origin = self.script("return location.origin")
        assert asked and all(one.startswith(origin) for one in asked)
        assert [
            entry
            for entry in self.driver.get_log("browser")
            if not re.search("status of 50[23]", entry["message"])
        ] == []


@pytest.fixture
def page(chromium: webdriver.Chrome, url: str) -> Iterator[Page]:
    opened = Page(chromium, url)
    yield opened
    opened.check_clean()


def exact(tiny: TinyModels) -> dict[str, float]:
    docs = texts()
    scores = (
        tiny.encoder.document_matrix([one.passage for one in docs]) @ tiny.encoder.query_matrix([QUERY]).T
    ).toarray()
    return {
        one.title or one.id: float(score) for one, score in zip(docs, scores[:, 0], strict=True) if score > 0
    }


def test_both_sides_show_exact_scores_and_the_tokens_that_make_them(
    page: Page, tiny: TinyModels, names: Names, client: OpenSearch
) -> None:
    assert "token" not in page.script("return location.href")
    page.choose(1, index=names.vector, encoder=f"archive:{tiny.encoder.archive.name}")
    page.ask(QUERY)
    wanted = exact(tiny)
    best = sorted(wanted.values(), reverse=True)[:10]
    (query,) = tiny.encoder.query_weights([QUERY])
    by_name = {one.title or one.id: one for one in texts()}
    for side in (0, 1):
        hits = page.hits(side)
        assert [score for _, score in hits] == pytest.approx(best, rel=2 * ROUNDING)
        for place in (0, 4, 9):
            name, score = hits[place]
            assert score == pytest.approx(wanted[name], rel=ROUNDING)
            matched, total = page.tokens(side, place)
            (document,) = tiny.encoder.document_weights([by_name[name].passage])
            assert matched.keys() == query.keys() & document.keys()
            for token, (in_query, in_document, product) in matched.items():
                assert (in_query, in_document) == pytest.approx((query[token], document[token]), abs=1e-3)
                assert product == pytest.approx(query[token] * document[token], abs=1e-3)
            assert total == pytest.approx(wanted[name], abs=1e-3)
    page.script(
        "window.copied = []; navigator.clipboard.writeText = async text => { window.copied.push(text); }"
    )
    for side, index in enumerate((names.features, names.vector)):
        page.all(".copy")[side].click()
        page.until(lambda side=side: len(page.script("return window.copied")) > side)
        found = client.search(index=index, body=json.loads(page.script("return window.copied")[side]))[
            "hits"
        ]["hits"]
        told = [hit["_source"].get("title") or hit["_id"] for hit in found]
        assert told == [name for name, _ in page.hits(side)]
    bars = page.script(
        "return [...document.querySelectorAll('#query-bars table')].map(table => [...table.rows].map("
        "row => [row.cells[0].textContent, row.cells[2].textContent]))"
    )
    for shown in bars:
        heaviest = sorted(query.items(), key=lambda item: -item[1])[: len(shown)]
        assert {token: float(weight) for token, weight in shown} == pytest.approx(dict(heaviest), abs=1e-3)
    assert len(bars) == 2


def test_a_node_that_stops_is_told_and_the_page_goes_on_when_it_is_back(
    page: Page, between: FaultyProxy, names: Names
) -> None:
    page.ask(QUERY)
    before = [page.hits(side) for side in (0, 1)]
    assert all(before)
    try:
        between.faults[0].times = 10**6
        page.ask(QUERY)
        told = page.problems()
        assert len(told) == 2
        assert all("closed the connection" in one and "asked again" in one for one in told), told
        page.choose(1, index=names.vector)  # whose description cannot be had now
        page.driver.refresh()  # nor can what is offered
        page.until(lambda: any("closed the connection" in one for one in page.problems()))
    finally:
        between.faults[0].times = 0
    page.until(lambda: page.hits(0) and page.hits(1))
    page.settle()
    assert page.hits(0) == before[0]
    assert not page.problems()
    assert page.all(".way")[1].find_element(By.NAME, "index").get_attribute("value") == names.vector


def test_what_moved_between_bm25_and_a_hybrid_search_through_an_alias(page: Page, names: Names) -> None:
    page.choose(0, by="bm25")
    page.choose(1, index=names.alias, by="hybrid", fusion="l2")
    page.script(
        "const weight = document.querySelectorAll('[name=weight]')[1]; weight.value = 0.8;"
        "weight.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    page.ask(QUERY)
    first, second = ([name for name, _ in page.hits(side)] for side in (0, 1))
    assert first and second and first != second
    tags = page.script(
        "return [...document.querySelectorAll('.side:nth-child(2) .hit')].map("
        "hit => hit.querySelector('.top .tag').textContent)"
    )
    for place, (name, tag) in enumerate(zip(second, tags, strict=True)):
        if name not in first:
            assert tag == "only in B"
        else:
            moved = first.index(name) - place
            assert tag == (f"{'▲' if moved > 0 else '▼'} {abs(moved)}" if moved else f"= {place + 1} in A")
    both = set(first) & set(second)
    told = page.driver.find_element(By.ID, "moved-told").text
    assert told.startswith(
        f"{len(both)} in both, {len(first) - len(both)} only in A, {len(second) - len(both)} only in B"
    )
    assert len(page.all("#lines path")) == len(both)
    matched, total = page.tokens(0, 0)
    assert total == pytest.approx(page.hits(0)[0][1], abs=2e-3)  # idf x tf
    assert {"building", "permit"} & matched.keys()
    page.tokens(1, 0)
    shares = page.script(
        "return [...document.querySelectorAll('.side:nth-child(2) .more table:not(.matched) tbody tr')].map("
        "row => parseFloat(row.cells[4].textContent))"
    )
    assert sum(shares) == pytest.approx(100, abs=1)


def test_a_document_in_chunks_shows_its_best_passage_and_the_tokens_of_that(
    page: Page, tiny: TinyModels, names: Names
) -> None:
    page.choose(1, index=names.chunks)
    page.ask("quick brown fox")
    (query,) = tiny.encoder.query_weights(["quick brown fox"])
    for place, (_, score) in enumerate(page.hits(1)[:3]):
        matched, total = page.tokens(1, place)
        assert total == pytest.approx(score, rel=ROUNDING)
        assert matched.keys() <= query.keys()
        hit = page.all(".side")[1].find_elements(By.CSS_SELECTOR, ".hit")[place]
        assert "best passage, from character" in hit.find_element(By.CSS_SELECTOR, ".facts").text


def test_judged_queries_by_the_keyboard_alone(page: Page, names: Names) -> None:
    page.press(Keys.ESCAPE)
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: len(page.all(".figures dd")) == 8)
    page.settle()
    ndcg = (1 + 2 / math.log2(4)) / (2 + 1 / math.log2(3))
    for side in (0, 4):
        assert page.all(".figures dd")[side].text.startswith(f"{ndcg:.3f}")
    assert [tag.text for tag in page.all(".side:first-child .tag.relevant")] == [
        "relevant (1)",
        "relevant (2)",
    ]
    assert page.driver.find_element(By.ID, "standing").text.startswith(
        "Judged query 1 of 2 · q1 · 2 relevant"
    )
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: page.driver.find_element(By.ID, "query").get_attribute("value") == "quick brown fox")
    page.press(Keys.ARROW_LEFT)
    page.until(lambda: page.driver.find_element(By.ID, "query").get_attribute("value") == QUERY)
    page.settle()
    page.press("/")
    assert page.script("return document.activeElement.id") == "query"
    page.press(Keys.ARROW_DOWN, Keys.NULL)
    page.press(Keys.ARROW_DOWN)
    focused = "[...document.activeElement.parentElement.children].indexOf(document.activeElement)"
    assert page.script(f"return {focused}") == 1
    page.press(Keys.ENTER)
    assert page.script("return document.activeElement.querySelectorAll('.matched tbody tr').length > 0")
    assert page.script("return getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.press(Keys.ARROW_RIGHT)
    assert page.script(
        "return document.activeElement.closest('.side') === document.querySelectorAll('.side')[1]"
    )
    page.press(Keys.ESCAPE)


def test_texts_stay_texts_and_a_phone_needs_no_sideways_scrolling(page: Page, names: Names) -> None:
    page.resize(390, 844)
    page.ask("building permit")
    shown = {name for side in (0, 1) for name, _ in page.hits(side)}
    assert HOSTILE in shown and "\u05e9\u05dc\u05d5\u05dd \N{GRINNING FACE}" in shown
    for toggle in page.all(".toggle"):
        page.script("arguments[0].click()", toggle)
    page.driver.find_element(By.ID, "text").send_keys(HOSTILE)
    page.script("document.querySelector('#weigh button').click()")
    page.until(lambda: page.all("#text-bars tr") or page.problems())
    assert not page.problems()
    assert page.script("return document.documentElement.scrollWidth") == 390
    assert page.script("return document.querySelectorAll('main script, main img').length") == 0


def test_words_and_texts_that_are_too_many_or_none_are_told(page: Page, tiny: TinyModels) -> None:
    page.choose(0, by="bm25")
    page.ask("\u200b …")
    assert page.all(".hits .quiet")[0].text == "No document matched."
    page.script("document.getElementById('query').value = arguments[0]", "building permit quick " * 1700)
    page.press(Keys.ENTER)
    page.settle()
    assert len(page.hits(1)) == 10
    page.script("document.getElementById('text').value = arguments[0]", "building permit " * 60_000)
    Select(page.driver.find_element(By.ID, "kind")).select_by_value("query")
    page.script("document.querySelector('#weigh button').click()")
    page.until(lambda: page.all("#text-bars tbody tr"))
    (weights,) = tiny.encoder.query_weights(["building permit " * 60_000])
    assert page.all("#text-bars tbody tr td")[2].text == f"{max(weights.values()):.3f}"


def test_an_outdated_answer_never_takes_the_place_of_a_newer_one(page: Page) -> None:
    page.script(
        "const real = window.fetch; let first = 2;"
        "window.fetch = async (where, how) => {"  # as if aborting came too late
        "  const answer = await real(where, {...how, signal: undefined});"
        "  if (where.endsWith('search') && first-- > 0) {"
        "    await new Promise(done => setTimeout(done, 1500)); window.late = (window.late ?? 0) + 1; }"
        "  return answer; }"
    )
    field = page.driver.find_element(By.ID, "query")
    field.send_keys("quick", Keys.ENTER)
    assert all(spinner.is_displayed() for spinner in page.all(".side .spinner"))
    page.script("document.getElementById('query').value = 'building permit'")
    field.send_keys(Keys.ENTER)
    page.settle()
    shown = page.hits(0)
    page.until(lambda: page.script("return window.late") == 2)
    assert page.hits(0) == shown and any(name == HOSTILE for name, _ in shown)


def test_an_index_that_goes_away_is_one_line_and_the_other_side_goes_on(
    page: Page, client: OpenSearch, names: Names, tiny: TinyModels
) -> None:
    page.choose(1, index=names.chunks)
    page.ask(QUERY)
    assert page.hits(0) and page.hits(1)
    client.indices.delete(index=names.chunks)
    page.ask("quick brown fox")
    (problem,) = page.problems()
    assert names.chunks in problem and "\n" not in problem
    assert page.hits(0) and not page.hits(1)
    page.choose(1, index=names.vector)
    assert page.hits(1) and not page.problems()


def test_an_index_whose_encoder_is_not_known_is_searched_by_bm25_alone(
    client: OpenSearch, tmp_path: Path
) -> None:
    name, other = f"ingtest-page-{uuid.uuid4().hex[:6]}", encoder_archive(tmp_path / "other.zip", seed=3)
    try:
        ingest(client, name, documents(3), encoder=ArchiveEncoder.open(other))
        about = Offer(client, [name]).index(name)
        assert about["encoders"] == [] and about["without"]["bm25"] == ""
        assert "not recorded" in about["without"]["sparse"] or "not deployed" in about["without"]["sparse"]
        offer = Offer(client)
        assert name in offer.names() and not [one for one in offer.names() if one.startswith(".")]
    finally:
        delete_index(client, name)
