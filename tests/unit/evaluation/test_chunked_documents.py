"""Documents in chunks count by their best chunk (MaxP): beside scores computed chunk by chunk."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from rich.console import Console
from scipy.sparse import csr_matrix
from small_collection import blocks_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from oskit.archive.token_weights import Prune, prune_matrix
from oskit.archive.vocabulary import Vocabulary
from oskit.data.chunks import Chunking
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.errors import UsageError
from oskit.evaluation.offline.evaluate import evaluate
from oskit.evaluation.offline.exact_scores import Block, rank_exactly
from oskit.evaluation.offline.pruning_levels import rank_pruned
from oskit.evaluation.reports.evaluation import evaluation_page
from oskit.evaluation.reports.page import render
from oskit.evaluation.reports.terminal import print_evaluation

WORDS = [f"w{number}" for number in range(40)]
CHUNKS = Chunking(16, 4)


class Bag:
    """A word weighs the root of how often it comes in the first 24: what an encoder reads."""

    architecture = "symmetric"
    max_length = 24

    def __init__(self) -> None:
        tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        self.vocabulary = Vocabulary(tokenizer)

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        tokenizer = self.vocabulary.tokenizer()
        dense = np.zeros((len(texts), self.vocabulary.size), dtype=np.float32)
        for row, text in enumerate(texts):
            for token in tokenizer.encode(text).ids[: self.max_length]:
                dense[row, token] += token > 0
        return csr_matrix(np.sqrt(dense))

    query_matrix = document_matrix


@pytest.fixture(scope="module")
def collection() -> Collection:
    """Among others one of 1,500 words, an empty one, one with a title alone; `behind` has w39 at its end."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(f"{draw.choice(WORDS[:39])}{draw.choice(['', '', '.'])}" for _ in range(words))

    documents = [Document(f"d{n}", text(draw.choice([0, 3, 20, 60, 200])), text(n % 3)) for n in range(30)]
    documents += [Document("huge", text(1500)), Document("title", "", "w3 w4"), Document("empty", "")]
    documents.append(Document("behind", f"{text(100)} w39"))
    queries = {f"q{n}": text(4) for n in range(8)} | {"end": "w39"}
    qrels = {query: {f"d{n}": 1} for n, query in enumerate(queries)} | {"end": {"behind": 1}}
    return Collection(queries, qrels, tuple(documents))


def by_hand(
    encoder: Bag, collection: Collection, rule: Prune | None = None
) -> tuple[dict[str, dict[str, float]], int]:
    """Every query's positive scores, and the weights of all chunks."""
    tokenize = encoder.vocabulary.tokenizer().encode
    queries = encoder.query_matrix(list(collection.queries.values())).toarray()
    run: dict[str, dict[str, float]] = {query: {} for query in collection.queries}
    postings = 0
    for document in collection.documents():
        for chunk in CHUNKS.split(document.title, document.text, tokenize):
            vector = encoder.document_matrix([chunk.text])
            vector = vector if rule is None else prune_matrix(vector, rule)
            postings += vector.nnz
            for query, score in zip(run, queries @ vector.toarray()[0], strict=True):
                if score > 0:
                    run[query][document.id] = max(float(score), run[query].get(document.id, 0.0))
    return run, postings


@pytest.mark.parametrize("block", [1, 5, 512])
def test_a_document_counts_by_its_best_chunk(collection: Collection, block: int) -> None:
    encoder, rule = Bag(), Prune.parse("top_k:3")
    with blocks_of(block):
        whole, pruned = rank_pruned(encoder, collection, [rule], k=100, chunking=CHUNKS)  # type: ignore[arg-type]
    for (run, cost), expected in (
        ((whole.run, whole.sparsity), by_hand(encoder, collection)),
        (pruned["top_k:3"], by_hand(encoder, collection, rule)),
    ):
        assert run.keys() == expected[0].keys()
        for query, scores in run.items():
            assert scores == pytest.approx(expected[0][query])
            assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert cost.postings == expected[1]
        assert cost.document_active == pytest.approx(expected[1] / 34), "what a document costs, all in all"
    assert whole.document_ids == [document.id for document in collection.documents()]
    assert whole.chunks is not None and whole.chunks > 150
    cut = rank_exactly(encoder, collection, k=100)  # type: ignore[arg-type]
    assert (cut.chunks, list(cut.run["end"]), list(whole.run["end"])) == (None, [], ["behind"])


def test_short_documents_alone_are_what_they_were(collection: Collection) -> None:
    short = tuple(document for document in collection.documents() if len(document.passage.split()) < 4)
    assert len(short) > 5
    small = Collection(collection.queries, collection.qrels, short)
    found, usual = (rank_exactly(Bag(), small, chunking=chunking) for chunking in (CHUNKS, None))  # type: ignore[arg-type]
    assert (found.run, found.sparsity) == (usual.run, usual.sparsity)


def test_the_report_has_both_rows(collection: Collection) -> None:
    report = evaluate(
        {"bag": Bag},  # type: ignore[dict-item]
        collection,
        k=100,
        chunking=CHUNKS,
        baseline="bag",
        prune_levels=[Prune.parse("top_k:3")],
        resamples=100,
    )
    whole, chunks = report.rows
    assert (whole.name, whole.chunking, whole.chunks) == ("bag", None, None)
    assert (chunks.name, chunks.chunking) == ("bag, chunks", "tokens:16,overlap:4")
    assert chunks.figures.per_query["end"]["nDCG@10"] == 1 > whole.figures.per_query["end"]["nDCG@10"]
    assert chunks.significance[0].baseline == "bag"
    assert [point.rule for point in chunks.pruning] == ["none", "top_k:3"]
    told = f"34 documents in {chunks.chunks} chunks (tokens:16,overlap:4), the best of each counts"
    console = Console(width=200, record=True)
    with console.capture() as captured:
        print_evaluation(console, report)
    assert told in captured.get()
    assert told in render(evaluation_page(report))
    assert report.to_dict()["encoders"][1]["chunks"] == chunks.chunks


def test_chunks_that_the_encoder_would_cut_are_refused_before_anything_is_encoded(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Bag, "document_matrix")
    with pytest.raises(UsageError, match="reads 24 tokens"):
        evaluate({"bag": Bag}, collection, chunking=Chunking(25))  # type: ignore[dict-item]


def test_the_best_of_each_document_from_any_blocks() -> None:
    """As a comparison with a cluster does: bounds of chunks become bounds of documents."""
    scores = np.array([[1.0, 5.0, 2.0, 0.0], [4.0, 3.0, 9.0, 1.0]])
    weights = csr_matrix((4, 2))
    assert Block(0, ["a", "b"], weights, np.array([0, 3])).best(scores).tolist() == [[5, 0], [9, 1]]
    assert Block(0, ["a", "b", "c", "d"], weights).best(scores) is scores
