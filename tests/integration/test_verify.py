"""The proof on a real OpenSearch: an index that is right passes, and each way of being wrong is found.

The encoder is made by hand (texts spell out their weights), so what the index must hold is known exactly and
no model is needed. The demo's test does the same with a trained one.
"""

from __future__ import annotations

import dataclasses
import io
import json
import uuid
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from opensearchpy import OpenSearch, helpers
from rich.console import Console
from scipy.sparse import csr_matrix
from tokenizers import Tokenizer
from tokenizers.models import BPE

from oskit.archive.token_weights import TokenWeightsMixin
from oskit.cli import main
from oskit.cluster.index.mapping import (
    EncoderIdentity,
    IndexInfo,
    IndexSettings,
    SparseVectorParameters,
    index_body,
)
from oskit.cluster.index.recreate import create
from oskit.cluster.search.hybrid import Hybrid
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.errors import SearchError, UsageError, VerificationError
from oskit.evaluation.live.verify import verify
from oskit.evaluation.offline.exact_scores import rank_exactly
from oskit.evaluation.reports.terminal import print_verification
from oskit.evaluation.reports.verification import write_verification

pytestmark = pytest.mark.integration

WORDS = [f"w{i}" for i in range(50)]
DOCUMENTS = 240
K = 60


@dataclasses.dataclass
class WordVocabulary:
    """Every word is its own key."""

    keys: list[str]

    unknown_id = None

    @property
    def size(self) -> int:
        """Number of words."""
        return len(self.keys)

    def tokenizer(self) -> Tokenizer:
        """Knows no piece: the texts are weights, not language."""
        return Tokenizer(BPE())


class WordEncoder(TokenWeightsMixin):
    """``"w1:1.5 w2:0.3"`` is the vector with w1 = 1.5 and w2 = 0.3."""

    architecture = "symmetric"
    vocabulary = WordVocabulary(WORDS)

    def document_matrix(self, texts):
        """The weights that the texts spell out."""
        dense = np.zeros((len(texts), len(WORDS)), dtype=np.float32)
        for row, text in enumerate(texts):
            for part in text.split():
                word, _, weight = part.partition(":")
                dense[row, WORDS.index(word)] = float(weight)
        return csr_matrix(dense)

    query_matrix = document_matrix


@pytest.fixture(scope="module")
def collection() -> Collection:
    """240 random documents; queries use the words up to w39, documents all of them."""
    rng = np.random.default_rng(3)

    def text(words: int, vocabulary: int, largest: float) -> str:
        chosen = rng.choice(vocabulary, size=words, replace=False)
        return " ".join(f"{WORDS[i]}:{rng.uniform(0.05, largest):.6f}" for i in chosen)

    documents = tuple(Document(id=f"d{i}", text=text(14, 50, 3.4)) for i in range(DOCUMENTS))
    queries = {f"q{i}": text(8, 40, 5.0) for i in range(20)}
    plain = Collection(queries=queries, qrels={q: {"d0": 1} for q in queries}, corpus=documents)
    # What the exact ranking puts first is relevant, so that quality is known: 1.
    best = {q: {next(iter(hits)): 1} for q, hits in rank_exactly(WordEncoder(), plain, k=1).run.items()}
    return dataclasses.replace(plain, qrels=best, name="by-hand")


@pytest.fixture
def make_index(client: OpenSearch, collection: Collection) -> Iterator:
    """Makes an index of the collection, with what ``change`` did to its documents, and removes it."""
    made = []

    def make(
        kind="rank_features", threshold=1_000_000, change=None, sha256=None, shards=None, prune=None
    ) -> str:
        name = f"oskit-test-proof-{uuid.uuid4().hex[:10]}"
        made.append(name)
        sparse = kind == "sparse_vector"
        info = IndexInfo(
            name, kind, "id" if sparse else "token", encode="client",
            encoder=EncoderIdentity(sha256=sha256), prune=prune,
        )  # fmt: skip
        parameters = SparseVectorParameters(approximate_threshold=threshold if sparse else None)
        settings = IndexSettings(kind, shards=shards or 1, replicas=0, sparse_vector=parameters)
        create(client, info.name, index_body(info, settings))
        documents = list(collection.documents())
        weights = WordEncoder().document_weights(
            [document.passage for document in documents], key="id" if sparse else "token"
        )
        stored = {
            document.id: {"embedding": vector, "passage": document.passage}
            for document, vector in zip(documents, weights, strict=True)
        }
        if change is not None:
            change(stored)
        helpers.bulk(client, ({"_index": name, "_id": key, **body} for key, body in stored.items()))
        client.indices.refresh(index=name)
        return name

    yield make
    for name in made:
        client.indices.delete(index=name, ignore_unavailable=True)


def _kinds(report) -> set[str]:
    return {kind for kind, count in report.comparison.counts.items() if count}


@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
def test_a_right_index_passes(client, collection, make_index, tmp_path, kind):
    index = make_index(kind)
    report = verify(client, index, collection, WordEncoder(), k=K, two_phase=kind == "rank_features")
    assert report.failures == []
    report.raise_for_disagreement()
    cluster, exact = report.run("cluster"), report.run("exact")
    assert exact.quality["MRR@10"] == 1.0
    assert cluster.quality["nDCG@10"] == pytest.approx(1.0, abs=0.05)
    assert cluster.overlap_at_10 > 0.95
    assert report.comparison.hits == K * len(collection.queries)
    assert report.vectors.checked == 200
    assert cluster.wall["count"] == len(collection.queries)
    # The rounding is there: scores are below the exact ones, and none above.
    assert -(2.0**-8) < report.comparison.relative_differences.min() < -1e-4
    assert report.comparison.relative_differences.max() < 1e-5
    assert report.run("BM25").quality.keys() == cluster.quality.keys()
    if kind == "rank_features":
        assert report.run("two-phase").recall_of_exact > 0.9
    saved = json.loads(write_verification(report, tmp_path)[0].read_text())
    assert saved["passed"] is True
    assert saved["index"]["documents"] == DOCUMENTS
    assert (tmp_path / "verification.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("kind", "fusion", "shards"),
    [("rank_features", "min_max", 3), ("rank_features", "z_score", 1), ("sparse_vector", "rrf:60", 1),
     ("sparse_vector", "l2", 1)],
)  # fmt: skip
def test_fused_scores_follow_from_the_lists_and_from_exact_scores(
    client, collection, make_index, kind, fusion, shards
):
    def change(stored):
        for number in range(0, DOCUMENTS, 3):
            vector = stored[f"d{number}"]["embedding"]
            stored[f"d{number}"]["embedding"] = {key: weight * 1.5 for key, weight in vector.items()}

    hybrid = Hybrid.parse("bm25=0.3,sparse=0.7", fusion=fusion, depth=50)
    wanted = {"k": K, "hybrid": hybrid, "sample": 5, "examples": 1, "baseline_bm25": False}
    report = verify(client, make_index(kind, shards=shards), collection, WordEncoder(), **wanted)
    assert report.failures == []
    assert report.fused.hits >= 40 * len(collection.queries) and not any(report.fused.counts.values())
    assert 0 < report.fused.largest_difference < 0.02
    assert report.run("hybrid").quality["MRR@10"] > 0.5
    assert json.loads(json.dumps(report.to_dict()))["fused"]["hybrid"]["fusion"] == fusion
    report = verify(client, make_index(kind, change=change), collection, WordEncoder(), **wanted)
    assert report.fused.counts["exact"] > 10 and report.fused.counts["fused"] == 0
    assert "not those of exact scores" in report.failures[-1]


def test_an_approximate_search_is_measured_not_failed(client, collection, make_index):
    report = verify(client, make_index("sparse_vector", threshold=10), collection, WordEncoder(), k=K)
    assert report.index["search"] == "approximate"
    # Weights above 3 are clipped and all are rounded to bytes; every score still follows from that.
    assert report.failures == []
    assert report.comparison.counts["missing"] > 0
    assert 0.2 < report.run("cluster").recall_of_exact < 1
    assert report.wrong_hits == 0
    assert report.vectors.checked > 100


def test_missing_and_foreign_documents_are_counted(client, collection, make_index, tmp_path):
    def change(stored):
        for number in range(12, 232):
            del stored[f"d{number}"]
        stored |= {f"stranger{number}": stored["d11"] for number in range(3)}

    index = make_index(change=change, shards=3)
    # On another shard than its id says: there, but twice; and one that is only there.
    for name in ("d2", "d3"):
        body = client.get_source(index=index, id=name)
        for routing in "abc":
            client.index(index=index, id=name, body=body, routing=routing)
    client.delete(index=index, id="d3")
    report = verify(client, index, collection, WordEncoder(), k=DOCUMENTS, sample=10)
    copies = client.count(index=index, body={"query": {"ids": {"values": ["d2", "d3"]}}})["count"] - 2
    assert (report.missing, len(report.missing_documents)) == (220, 200)
    assert report.extra == 3 + copies
    assert {"stranger0", "stranger1", "stranger2"} <= set(report.extra_documents)
    assert any("lacks document 'd12' and 219 more" in line for line in report.failures)
    assert any(f"{report.extra} are not of the corpus, such as" in line for line in report.failures)
    assert {"missing", "unknown"} <= _kinds(report)
    with pytest.raises(VerificationError, match="'d12'"):
        report.raise_for_disagreement()
    saved = json.loads(write_verification(report, tmp_path)[0].read_text())
    assert (saved["missing"], saved["extra"]) == (220, report.extra)
    said = Console(file=io.StringIO(), width=200)
    print_verification(said, report)
    assert f"220 documents missing, {report.extra} not of the corpus" in said.file.getvalue()


def test_a_wrong_weight_in_one_document(client, collection, make_index):
    def change(stored):
        token = next(word for word in stored["d5"]["embedding"] if int(word[1:]) < 40)
        stored["d5"]["embedding"][token] *= 1.02

    index = make_index(change=change)
    report = verify(client, index, collection, WordEncoder(), k=DOCUMENTS, sample=DOCUMENTS)
    assert {item.document_id for item in report.comparison.disagreements} == {"d5"}
    assert [item["document_id"] for item in report.vectors.wrong] == ["d5"]
    assert any("score that rounding does not explain" in line for line in report.failures)


def test_what_no_query_meets_is_seen_in_the_stored_vectors(client, collection, make_index):
    def change(stored):
        lacking, more, *_ = (name for name in stored if "w49" in stored[name]["embedding"])
        del stored[lacking]["embedding"]["w49"]
        unused = next(word for word in WORDS[40:] if word not in stored[more]["embedding"])
        stored[more]["embedding"][unused] = 0.02
        changed.update(lacking=lacking, more=more, unused=unused)

    changed: dict[str, str] = {}
    report = verify(client, make_index(change=change), collection, WordEncoder(), k=K, sample=DOCUMENTS)
    assert _kinds(report) == set()
    wrong = {item["document_id"]: item for item in report.vectors.wrong}
    assert wrong.keys() == {changed["lacking"], changed["more"]}
    assert list(wrong[changed["lacking"]]["lacks"]) == ["w49"]
    assert wrong[changed["more"]]["extra"] == {changed["unused"]: 0.02}
    (line,) = report.failures
    assert "other weights in the index" in line and "lacks 1 token ('w49'" in line


def test_a_pruned_load_is_called_so(client, collection, make_index):
    """Into an index that records none: of all documents, or of a few, which are not in the sample."""

    def change(stored, names=None):
        for name in names or stored:
            vector = stored[name]["embedding"]
            largest = max(vector.values())
            stored[name]["embedding"] = {t: w for t, w in vector.items() if w > 0.1 * largest}

    report = verify(client, make_index(change=change), collection, WordEncoder(), k=K)
    assert "score" in _kinds(report)
    assert len(report.vectors.wrong) > 50
    assert "as if it was loaded with --prune, and records no pruning" in report.failures[0]
    index = make_index(change=lambda stored: change(stored, ["d3", "d5", "d7", "d9"]))
    report = verify(client, index, collection, WordEncoder(), k=DOCUMENTS, sample=2)
    assert {item["document_id"] for item in report.vectors.wrong} <= {"d3", "d5", "d7", "d9"}
    assert "with --prune" in report.failures[0]
    whole = verify(client, make_index(prune="max_ratio:0.1"), collection, WordEncoder(), k=K)
    assert any("records pruning by max_ratio:0.1, and they look" in line for line in whole.failures)


def test_an_analyzer_is_named_as_the_cause(client, collection, make_index):
    report = verify(client, make_index(), collection, WordEncoder(), by="analyzer", analyzer="bert-uncased")
    assert report.vectors.wrong == []
    assert "'bert-uncased' gives queries weights of its own" in report.failures[0]


@pytest.mark.incident(
    during="`verify`",
    what="the index is deleted or made anew, or its alias moves",
    then="an error says which, and nothing is said of the index",
)
def test_another_index_under_the_same_name_gets_no_verdict(client, collection, make_index, incident):
    """Deleted, made anew, moved, or written to: at once while it is verified."""
    index, other, alias = make_index(), make_index(), f"oskit-test-proof-{uuid.uuid4().hex[:8]}"
    client.indices.put_alias(index=index, name=alias)

    def verified(name, step, happens):
        def on_step(what):
            if what == step:
                happens()

        return verify(client, name, collection, WordEncoder(), k=5, sample=5, on_step=on_step)

    def write():
        client.index(index=index, id="d3", body=client.get_source(index=index, id="d3"))

    def move():
        actions = [{"remove": {"index": index, "alias": alias}}, {"add": {"index": other, "alias": alias}}]
        client.indices.update_aliases(body={"actions": actions})

    def make_anew():
        client.indices.delete(index=index)
        client.indices.create(index=index)

    asking = f"asking {len(collection.queries)} queries by tokens"
    report = verified(alias, asking, write)
    assert report.passed and any("documents were written" in line for line in report.warnings)
    for name, step, happens, said in (
        (alias, "asking BM25", move, f"'{alias}' was moved to '{other}'"),
        (index, asking, make_anew, "was deleted and made anew while it was verified"),
        (other, asking, lambda: client.indices.delete(index=other), "was deleted while it was verified"),
    ):
        with pytest.raises(SearchError) as told:
            verified(name, step, happens)
        incident.said(told.value, said)


def test_a_search_pipeline_that_prunes_queries(client, collection, make_index):
    pipeline = f"oskit-test-proof-{uuid.uuid4().hex[:8]}"
    two_phase = {"prune_ratio": 0.6, "expansion_rate": 1.0, "max_window_size": 1000}
    processor = {"neural_sparse_two_phase_processor": {"two_phase_parameter": two_phase}}
    client.http.put(f"/_search/pipeline/{pipeline}", body={"request_processors": [processor]})
    try:
        index = make_index()
        client.indices.put_settings(index=index, body={"index.search.default_pipeline": pipeline})
        report = verify(client, index, collection, WordEncoder(), k=K)
    finally:
        client.indices.put_settings(index=index, body={"index.search.default_pipeline": None})
        client.http.delete(f"/_search/pipeline/{pipeline}")
    assert any(pipeline in warning for warning in report.warnings)
    assert any("it is the queries that the cluster changes" in line for line in report.failures)
    assert "missing" in _kinds(report)
    # The documents themselves are right, and are found to be.
    assert report.vectors.wrong == []
    assert not report.passed


def test_an_index_of_another_encoder(client, collection, make_index):
    class Other(WordEncoder):
        """Weights everything a little more."""

        def document_matrix(self, texts):
            return super().document_matrix(texts) * np.float32(1.01)

    report = verify(client, make_index(), collection, Other(), k=K)
    assert "score" in _kinds(report)
    assert len(report.vectors.wrong) == report.vectors.checked == 200


def test_an_index_that_another_archive_made(client, collection, make_index):
    class Archived(WordEncoder):
        """Comes from an archive."""

        archive = SimpleNamespace(
            name="words", path="words.zip", sha256="a" * 64, model_format="ONNX", manifest=None
        )

    assert verify(client, make_index(sha256="a" * 64), collection, Archived(), k=5, sample=5).passed
    report = verify(client, make_index(sha256="b" * 64), collection, Archived(), k=5, sample=5)
    assert [line for line in report.failures if "another encoder" in line and "bbbbbbbbbbbb" in line]


def test_point_15_a_right_index_of_a_bad_encoder(
    client, collection, make_index, cluster_url, tmp_path, monkeypatch, capsys
):
    class Blind(WordEncoder):
        """Every text is the same."""

        def document_matrix(self, texts):
            return csr_matrix(np.eye(1, len(WORDS), dtype=np.float32)[[0] * len(texts)])

        query_matrix = document_matrix

    def change(stored):
        for body in stored.values():
            body["embedding"] = {WORDS[0]: 1.0}

    texts = {document.id: document.passage for document in list(collection.documents())[::8]}
    known = dataclasses.replace(collection, queries=texts, qrels={name: {name: 1} for name in texts})
    index = make_index(change=change)
    monkeypatch.setattr("oskit.cli.commands.verify._encoder", lambda *_: Blind())
    command = ["verify", str(known.write(tmp_path / "known")), "--index", index, "--archive", "blind"]
    command += ["--url", cluster_url, "--quiet"]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["passed"] is True
    assert report["quality"]["verdict"] == "worse"
    assert report["quality"]["difference"] < -0.5
    assert "worse than BM25" in said.err
    assert main([*command, "--require-quality", "--report", str(tmp_path / "proof")]) == 9
    assert 'class="verdict warn"' in (tmp_path / "proof" / "verification.html").read_text()
    said = capsys.readouterr()
    assert "The cluster agrees" in said.out
    assert "Quality: BM25 in this index is better than the encoder by 0." in said.out
    assert main([*command, "--no-bm25", "--require-quality"]) == 2


def test_what_cannot_be_verified_is_one_line(client, collection, make_index):
    encoder = WordEncoder()
    with pytest.raises(SearchError, match="there is no index"):
        verify(client, "oskit-test-no-such-index", collection, encoder)
    with pytest.raises(UsageError, match="model id"):
        verify(client, "x", collection, encoder, by="model")
    with pytest.raises(UsageError, match="10001"):
        verify(client, "x", collection, encoder, k=10_001)
    index = make_index("sparse_vector")
    with pytest.raises(UsageError, match="two-phase"):
        verify(client, index, collection, encoder, two_phase=True)
