"""Stored vectors beside what the model says of their texts: chunks, pruned and hidden ones, data streams."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opensearchpy.exceptions import AuthorizationException

from oskit.cluster.index.mapping import IndexInfo
from oskit.cluster.index.names import Target
from oskit.cluster.ingest.bulk import BulkItem
from oskit.cluster.ingest.proof import Proof
from oskit.cluster.models.registry import ModelInfo
from oskit.data.documents import Document
from oskit.errors import IndexingError

TRUE = {"fox": {"fox": 2.0, "quick": 1.0}, "permit": {"permit": 3.0, "a.b": 0.5}}
MODEL = ModelInfo("m1", "mine", "1", "DEPLOYED", "REMOTE", connector_id="c1")
ITEMS = [
    BulkItem(
        Document(text, text), b"", written={"_index": "i-1", "_id": text, "_seq_no": n, "_primary_term": 1}
    )
    for n, text in enumerate(TRUE)
]


class Cluster:
    """Has one document for each text, and a model that is right where a text comes alone."""

    def __init__(self, sources: dict[str, Any], written_over: dict[str, int] | None = None) -> None:
        self.sources = sources
        self.numbers = {text: n for n, text in enumerate(TRUE)} | (written_over or {})
        self.deleted: list[str] = []
        self.asked = 0
        self.indices = self.transport = self

    def refresh(self, **_: Any) -> None:
        pass

    def mget(self, *, index: str, body: Any) -> Any:
        docs = [
            {"_id": one, "_source": self.sources[one], "_seq_no": self.numbers[one], "_primary_term": 1}
            for one in body["ids"]
        ]
        return {"docs": docs}

    def search(self, *, index: str, body: Any, params: Any) -> Any:
        assert body["seq_no_primary_term"]
        wanted = {"ids": body["query"]["ids"]["values"]}
        return {"hits": {"hits": self.mget(index=index, body=wanted)["docs"]}}

    def bulk(self, *, index: str, body: str) -> Any:
        items = []
        for line in body.splitlines():
            wanted = json.loads(line)["delete"]
            assert (wanted["_index"], wanted["if_primary_term"]) == ("i-1", 1)
            is_same = wanted["if_seq_no"] == self.numbers[wanted["_id"]]
            self.deleted += [wanted["_id"]] * is_same
            items.append({"delete": {"_id": wanted["_id"], "status": 200 if is_same else 409}})
        return {"items": items}

    def perform_request(self, method: str, url: str, params: Any = None, body: Any = None, **_: Any) -> Any:
        self.asked += 1
        (text,) = body["text_docs"]
        return {"inference_results": [{"output": [{"dataAsMap": {"response": [TRUE[text]]}}]}]}


def source(kind: str, text: str, vector: Any) -> dict[str, Any]:
    if kind == "chunks":
        return {"passages": [{"text": text, "embedding": vector}]}
    if kind == "dotted":
        return {"passage": text, "vectors": {"mine": vector}}
    return {"passage": text} if vector is None else {"passage": text, "embedding": vector}


def info(kind: str) -> IndexInfo:
    field = {"chunks": "passages.embedding", "dotted": "vectors.mine"}.get(kind, "embedding")
    nested = "passages" if kind == "chunks" else None
    return IndexInfo("i", "rank_features", "token", field, "passage", "cluster", nested=nested)


@pytest.mark.parametrize("kind", ["plain", "chunks", "dotted", "stream"])
@pytest.mark.parametrize("wrong", ["others", "none", "half"])
def test_what_others_texts_have_is_taken_out(kind: str, wrong: str) -> None:
    target = Target("i", "i", parts=("i-1",) if kind == "stream" else ())
    right = Cluster({text: source(kind, text, TRUE[text]) for text in TRUE})
    Proof(right, target, info(kind), MODEL).check(ITEMS)  # type: ignore[arg-type]
    assert right.asked == 1 and not right.deleted
    vectors = {
        "others": {"fox": TRUE["permit"], "permit": TRUE["fox"]},
        "none": {"fox": {}, "permit": {}},
        "half": {text: {token: weight / 2 for token, weight in TRUE[text].items()} for text in TRUE},
    }[wrong]
    mixed = Cluster({text: source(kind, text, vectors[text]) for text in TRUE})
    with pytest.raises(IndexingError, match="gives texts the weights of others"):
        Proof(mixed, target, info(kind), MODEL).check(ITEMS)  # type: ignore[arg-type]
    assert mixed.deleted == list(TRUE)


def test_what_somebody_has_written_over_is_neither_compared_nor_taken_out() -> None:
    mixed = {text: source("plain", text, {}) for text in TRUE}
    all_others = Cluster(mixed, dict.fromkeys(TRUE, 9))
    Proof(all_others, Target("i", "i"), info("plain"), MODEL).check(ITEMS)  # type: ignore[arg-type]
    assert not all_others.deleted and not all_others.asked

    class Late(Cluster):
        def perform_request(self, *words: Any, **options: Any) -> Any:
            self.numbers["permit"] = 9  # between the look and the deletion
            return super().perform_request(*words, **options)

    late = Late({"fox": mixed["fox"], "permit": mixed["fox"]})
    with pytest.raises(IndexingError, match="but for 1 that somebody has written"):
        Proof(late, Target("i", "i"), info("plain"), MODEL).check(ITEMS)  # type: ignore[arg-type]
    assert late.deleted == ["fox"]


def test_what_cannot_be_compared_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    hidden = Cluster({text: source("plain", text, None) for text in TRUE})
    pruned = Cluster({text: source("plain", text, {text: TRUE[text][text]}) for text in TRUE})
    for cluster in (hidden, pruned):
        Proof(cluster, Target("i", "i"), info("plain"), MODEL).check(ITEMS)  # type: ignore[arg-type]

    class Denied(Cluster):
        def mget(self, **_: Any) -> Any:
            raise AuthorizationException(403, "security_exception", {"error": {"reason": "no permissions"}})

    proof = Proof(Denied({}), Target("i", "i"), info("plain"), MODEL)  # type: ignore[arg-type]
    proof.check(ITEMS)
    proof.check(ITEMS)
    assert len([line for line in caplog.messages if "is not compared" in line]) == 1
