"""Which documents an index has, and which of them go, against an index in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from opensearchpy.exceptions import AuthorizationException

from oskit.cluster.index.mapping import EncoderIdentity, IndexInfo
from oskit.cluster.ingest import missing as missing_module
from oskit.cluster.ingest.known import Known, recipe_of
from oskit.cluster.ingest.missing import Sweeper
from oskit.data.documents import MARK_FIELD, Document
from oskit.data.duplicates import DuplicateFilter

INFO = IndexInfo("i", "rank_features", "token", encode="client", encoder=EncoderIdentity(sha256="ab"))
DOCS = [Document(f"{n}", f"text {n}", fields={"n": n}) for n in range(10)]


@dataclass
class Memory:
    """An index: for each id its version and mark."""

    stored: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    refused: dict[str, list[int]] = field(default_factory=dict)
    transport: Any = None

    def __post_init__(self) -> None:
        shards = {"0": [{"seq_no": {"max_seq_no": 99}}]}
        self.indices = SimpleNamespace(
            refresh=lambda **_: None,
            stats=lambda **_: {"indices": {"i": {"shards": shards}}},
            get_settings=lambda **_: {"i": {"settings": {"index.max_result_window": "3"}}},
        )

    def write(self, documents: list[Document], known: Known) -> None:
        for document in documents:
            version, _ = self.stored.get(document.id, (0, None))
            self.stored[document.id] = version + 1, known.mark(document)

    def mget(self, *, index: str, body: dict[str, Any], params: object) -> dict[str, Any]:
        self.asked.append(len(body["ids"]))
        versions = {identity: self.stored[identity][0] for identity in body["ids"] if identity in self.stored}
        return {"docs": [{"_id": identity, "_version": version} for identity, version in versions.items()]}

    def search(self, *, index: str, body: dict[str, Any], params: object) -> dict[str, Any]:
        marks = [self.stored[identity][1] for identity in body["query"]["ids"]["values"]]
        assert len(marks) <= body["size"]
        return {"hits": {"hits": [{"fields": {MARK_FIELD: [mark]}} if mark else {} for mark in marks]}}

    def count(self, **_: object) -> dict[str, int]:
        return {"count": len(self.stored)}

    def bulk(self, *, body: str, index: str) -> dict[str, Any]:
        items = []
        for identity in [line.split('"')[5] for line in body.splitlines()]:
            status = self.refused[identity].pop(0) if self.refused.get(identity) else 200
            if status == 200:
                del self.stored[identity]
            items.append({"delete": {"status": status, "error": {"type": "x", "reason": f"{status}"}}})
        return {"items": items}


def known(memory: Memory, info: IndexInfo = INFO, **options: Any) -> Known:
    return Known(memory, "i", recipe_of(info, None), **options)


def test_a_document_is_known_by_its_content_its_encoder_and_its_version():
    memory = Memory()
    stage = known(memory, at_once=4)
    assert stage.sift(DOCS) == DOCS and memory.asked == [4, 4, 2]
    memory.write(DOCS, stage)
    assert stage.mark(DOCS[0]) is None, "told once, so that memory is bounded by a window"
    assert known(memory).sift(DOCS) == []

    changed = [replace(DOCS[2], text="other"), replace(DOCS[3], fields={"n": 3, "m": 4}),
               replace(DOCS[4], text_field="body"), replace(DOCS[5], title="text 5", text="")]  # fmt: skip
    assert known(memory).sift([*DOCS[:2], *changed]) == changed
    assert known(memory, reencode=True).sift(DOCS) == DOCS
    for other in (
        replace(INFO, encoder=EncoderIdentity(sha256="cd")),
        replace(INFO, prune="max_ratio:0.1"),
        replace(INFO, kind="sparse_vector", key="id"),
        replace(INFO, passage_field="p"),
        replace(INFO, generation="2"),
    ):
        assert known(memory, other).sift(DOCS) == DOCS

    version, mark = memory.stored["1"]
    memory.stored["1"] = version + 1, mark  # somebody's update, or the same request twice
    memory.stored["2"] = memory.stored["3"]  # somebody's copy
    stage = known(memory)
    assert stage.sift(DOCS) == DOCS[1:3]
    memory.write(DOCS[1:3], stage)
    assert known(memory).sift(DOCS) == [], "the mark fits the version that was found"


def test_title_and_text_change_places_without_another_source():
    """The same fields, but another passage: ``--text-field`` and ``--title-field`` the other way round."""
    memory, first = Memory(), Document("1", "b", "a", text_field="x", title_field="y")
    stage = known(memory)
    memory.write(stage.sift([first]), stage)
    assert known(memory).sift([first]) == []
    turned = Document("1", "a", "b", text_field="y", title_field="x")
    assert known(memory).sift([turned]) == [turned]


DENIED = {"type": "security_exception", "reason": "no permissions"}


@pytest.mark.parametrize("what", ["mget", "mget of this index", "search"])
def test_an_index_that_may_not_be_read_is_told_once_and_all_is_encoded(what: str):
    memory, told = Memory({"0": (1, "m")}), []

    def refused(*, body: dict[str, Any], **_: object) -> dict[str, Any]:
        if what == "mget of this index":
            return {"docs": [{"_id": identity, "error": DENIED} for identity in body["ids"]]}
        raise AuthorizationException(403, "security_exception", {"error": DENIED})

    setattr(memory, what.split()[0], refused)
    stage = known(memory, notify=told.append)
    assert stage.sift(DOCS[:5]) + stage.sift(DOCS[5:]) == DOCS
    assert len(told) == 1 and told[0].startswith(
        "All documents are encoded: Cannot see what the index 'i' has"
    )
    assert stage.mark(DOCS[0]) is None, "or a stranger's version would be taken for ours"


def test_deletions_are_repeated_while_the_cluster_is_busy_and_never_take_what_was_changed(monkeypatch):
    memory, counts = Memory({f"{n}": (1, "m") for n in range(6)}), []
    memory.refused = {"2": [429, 200], "3": [409]}
    monkeypatch.setattr(missing_module.time, "sleep", lambda _: None)

    def scan(*_: object, size: int, **__: object) -> Iterator[dict[str, Any]]:
        assert size == 3, "a page is no larger than the index lets it be"
        yield from ({"_id": identity, "_seq_no": 1, "_primary_term": 1} for identity in list(memory.stored))

    monkeypatch.setattr(missing_module, "scan", scan)
    with closing(DuplicateFilter()) as seen:
        for document in DOCS[:2]:
            seen.check(document)
        sweeper = Sweeper(memory, "i")
        memory.stored["new"] = 1, "m"  # by the load; it makes the share of what goes no smaller
        seen.check(Document("new", ""))
        found = sweeper.look(seen)
        assert (found.count, found.of, found.examples) == (4, 6, ("2", "3", "4"))
        sweeper.sweep(seen, counts.append)
    assert sum(counts) == 3 and sorted(memory.stored) == ["0", "1", "3", "new"]
