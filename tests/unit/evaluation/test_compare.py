"""The comparison: rounding is not reported, everything else is."""

from __future__ import annotations

import numpy as np
import pytest
from small_collection import SmallCollection, WordEncoder, blocks_of, exact_run

from oskit.evaluation.live.comparison import MAX_LISTED, compare
from oskit.evaluation.live.rounding import EXACT, Storage, quantize_to_byte, truncate_to_feature

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def many() -> SmallCollection:
    """200 random documents and 12 random queries over 40 words."""
    rng = np.random.default_rng(7)

    def text(words: int) -> str:
        chosen = rng.choice(len(WORDS), size=words, replace=False)
        return " ".join(f"{WORDS[i]}:{rng.uniform(0.05, 3.5):.6f}" for i in chosen)

    return SmallCollection(
        texts={f"d{i}": text(12) for i in range(200)}, queries={f"q{i}": text(5) for i in range(12)}
    )


def _cluster(collection, k, *, storage=EXACT, noise=0.0, seed=1, change=None):
    """What a cluster returns that stores weights as ``storage`` says, from encoder output with ``noise``."""
    rng = np.random.default_rng(seed)
    encoder = WordEncoder(WORDS)
    documents = encoder.document_matrix(list(collection.texts.values())).toarray()
    queries = encoder.query_matrix(list(collection.queries.values())).toarray()
    documents = np.where(documents > 0, documents + rng.uniform(-noise, noise, documents.shape), 0)
    if change is not None:
        change(documents)
    documents = documents.astype(np.float32)
    if storage.bytes:
        documents = quantize_to_byte(documents, storage.ceiling_ingest)
        queries = quantize_to_byte(queries, storage.ceiling_search)
    else:
        documents = truncate_to_feature(documents)
    scores = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    names = list(collection.texts)
    run = {}
    for query, row in zip(collection.queries, scores, strict=True):
        order = [i for i in np.argsort(-row, kind="stable") if row[i] > 0][:k]
        run[query] = {names[i]: float(row[i]) for i in order}
    return run


@pytest.mark.parametrize("storage", [Storage(), Storage(features=False, bytes=True), Storage(bytes=True)])
@pytest.mark.parametrize("block", [17, 512])
def test_rounding_and_noise_are_not_differences(many, storage, block):
    actual = Storage(features=not storage.bytes, bytes=storage.bytes)
    cluster = _cluster(many, 50, storage=actual, noise=1.5e-4)
    with blocks_of(block):
        result = compare(cluster, WordEncoder(WORDS), many, k=50, storage=storage)
    assert sum(result.counts.values()) == 0
    assert result.hits == sum(len(hits) for hits in cluster.values())
    # The rankings do differ, so the silence above means something.
    assert any(list(cluster[q]) != list(result.exact[q]) for q in many.queries)
    assert result.exact == exact_run(WordEncoder(WORDS), many, k=50)


def test_a_wrong_weight_in_one_document_is_found(many):
    encoder = WordEncoder(WORDS)
    query = many.queries["q3"]
    word = WORDS.index(query.split()[0].partition(":")[0])
    holder = next(i for i, text in enumerate(many.texts.values()) if f"{WORDS[word]}:" in text)

    def change(documents):
        documents[holder, word] *= 1.05

    result = compare(_cluster(many, 200, change=change), encoder, many, k=200)
    assert result.counts["score"] > 0
    assert {item.document_id for item in result.disagreements} == {f"d{holder}"}
    found = next(item for item in result.disagreements if item.query_id == "q3" and item.kind == "score")
    assert found.cluster_score > found.high >= found.low > found.exact_score * (1 - 2.0**-8)
    assert list(result.exact["q3"])[found.exact_rank - 1] == f"d{holder}"


def test_a_missing_document_is_found(many):
    cluster = _cluster(many, 20)
    best = next(iter(cluster["q0"]))
    spare = _cluster(many, 21)["q0"]
    cluster["q0"] = {d: s for d, s in spare.items() if d != best}
    result = compare(cluster, WordEncoder(WORDS), many, k=20)
    assert result.counts == {"score": 0, "missing": 1, "unknown": 0, "rank": 0}
    (item,) = result.disagreements
    assert (item.query_id, item.document_id, item.cluster_score, item.exact_rank) == ("q0", best, None, 1)


def test_a_short_list_lacks_every_match_that_is_not_in_it(many):
    cluster = _cluster(many, 500)
    dropped = list(cluster["q1"])[-1]
    del cluster["q1"][dropped]
    result = compare(cluster, WordEncoder(WORDS), many, k=500)
    assert [(item.kind, item.document_id) for item in result.disagreements] == [("missing", dropped)]


def test_a_pruned_query_is_found(many):
    pruned = SmallCollection(many.texts, {q: " ".join(text.split()[:-1]) for q, text in many.queries.items()})
    result = compare(_cluster(pruned, 30), WordEncoder(WORDS), many, k=30)
    assert result.counts["score"] > 0
    assert all(item.cluster_score < item.low for item in result.disagreements if item.kind == "score")


def test_an_unknown_document_and_a_wrong_order_are_found(many):
    cluster = _cluster(many, 10)
    hits = list(cluster["q2"].items())
    cluster["q2"] = dict([hits[-1], *hits[1:-1], ("stranger", 0.5)])
    result = compare(cluster, WordEncoder(WORDS), many, k=10)
    kinds = {(item.kind, item.document_id) for item in result.disagreements}
    assert ("unknown", "stranger") in kinds
    assert ("rank", hits[-1][0]) in kinds
    assert ("missing", hits[0][0]) in kinds


def test_a_swap_within_rounding_is_none():
    collection = SmallCollection({"a": "cat:1.000", "b": "cat:1.003"}, {"q": "cat"})
    encoder = WordEncoder(["cat"])
    for order in (["a", "b"], ["b", "a"]):
        result = compare({"q": dict.fromkeys(order, 1.0)}, encoder, collection, k=2)
        assert sum(result.counts.values()) == 0
    far = SmallCollection({"a": "cat:1.00", "b": "cat:1.10"}, {"q": "cat"})
    assert compare({"q": {"a": 1.0, "b": 1.1}}, encoder, far, k=2).counts["rank"] == 1


def test_everything_is_counted_and_only_so_much_is_listed():
    texts = {f"d{i}": "cat" for i in range(MAX_LISTED + 50)}
    collection = SmallCollection(texts, {"q": "cat"})
    result = compare({"q": {}}, WordEncoder(["cat"]), collection, k=1000)
    assert result.counts["missing"] == MAX_LISTED + 50
    assert len(result.disagreements) == MAX_LISTED
