"""The loss: each formula by hand and beside sentence-transformers, and what training must not count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers.sparse_encoder.losses import (
    FlopsLoss,
    SparseDistillKLDivLoss,
    SparseMarginMSELoss,
    SparseMultipleNegativesRankingLoss,
)

from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.inference_free import inference_free
from oskit.training.objective.batches import ExampleCollator, KnownPairs, document_id, query_id, routes
from oskit.training.objective.losses import (
    MAX_RELATIVE_COST,
    BatchKLDivLoss,
    IdfFlopsLoss,
    InfoNCE,
    TrainingLoss,
    idf_costs,
)
from oskit.training.recipe.recipe import Recipe
from tests import tiny

ROWS = {
    "query": ["concrete bridge", "old road", "stone wall", "new house"],
    "positive": ["a bridge of concrete", "the road is old", "a wall of stone", "the house is new"],
    "negatives": [["water", "steel"], ["a roof", "a floor"], ["a load", "the beam"], ["hello", "world"]],
    "label": [[9.0, 2.0, 1.0], [8.0, 3.0, 0.0], [7.0, 1.0, 2.0], [9.0, 0.0, 4.0]],
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> NeuralSparseEncoder:
    folder = tiny.build("bert", tmp_path_factory.mktemp("losses") / "bert")
    return NeuralSparseEncoder.from_pretrained(folder, device="cpu").eval()


def columns(encoder: NeuralSparseEncoder, count: int, *, rows: int = 4, seed: int = 0) -> list[torch.Tensor]:
    """Random vectors ``[rows, vocabulary]``, half of their weights 0, special tokens 0."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.as_tensor(encoder.vocabulary.weight_mask())
    shape = (rows, encoder.vocabulary.size)
    return [torch.randn(shape, generator=generator).relu() * mask for _ in range(count)]


def loss_of(
    encoder: NeuralSparseEncoder, loss: dict[str, Any], sparsity: dict[str, Any] | None = None, **kwargs: Any
) -> TrainingLoss:
    sparsity = sparsity or {"documents": {"weight": 0.1}, "queries": {"weight": 0.2}}
    losses = [{"kind": kind, **part} for kind, part in loss.items()]
    values = {"name": "x", "encoder": {"name": "x"}, "data": {"train": ["x"]}}
    recipe = Recipe.model_validate({**values, "loss": losses, "sparsity": sparsity})
    return TrainingLoss(encoder, recipe.loss, recipe.sparsity, **kwargs)


def targets(rows: int = 4, documents: int = 3) -> dict[str, torch.Tensor]:
    """Identities that are all different, and labels."""
    generator = torch.Generator().manual_seed(5)
    return {
        "query_ids": torch.arange(rows),
        "document_ids": torch.arange(1000, 1000 + rows * documents).reshape(rows, documents),
        "label": torch.rand(rows, documents, generator=generator) * 10,
    }


def batch_of(
    encoder: NeuralSparseEncoder, **kwargs: Any
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Tokenized columns and targets of the four rows."""
    collate = ExampleCollator(preprocess_fn=encoder.preprocess, negatives=2, **kwargs)
    batch = collate(list(Dataset.from_dict(ROWS)))
    names = ["query", "positive", "negative_1", "negative_2"]
    features = [
        {
            key.removeprefix(f"{name}_"): value
            for key, value in batch.items()
            if key.startswith(f"{name}_") and key != "query_ids"
        }
        for name in names
    ]
    return features, {name: batch[name] for name in ("query_ids", "document_ids", "label")}


def test_kl_and_info_nce_are_those_of_sentence_transformers(encoder: NeuralSparseEncoder) -> None:
    vectors, labels = columns(encoder, 4), targets()
    loss = loss_of(
        encoder,
        {
            "kl": {"temperature": 3, "weight": 0.5},
            "info_nce": {"temperature": 1 / 0.7, "weight": 2},
        },
    )
    parts = loss.parts(vectors, labels)
    kl = SparseDistillKLDivLoss(encoder, temperature=3).compute_loss_from_embeddings(vectors, labels["label"])
    nce = SparseMultipleNegativesRankingLoss(encoder, scale=0.7).compute_loss_from_embeddings(vectors, None)
    flops = FlopsLoss(encoder)
    assert parts["distillation"].item() == pytest.approx(0.5 * kl.item(), rel=1e-5)
    assert parts["contrastive"].item() == pytest.approx(2 * nce.item(), rel=1e-5)
    documents = flops.compute_loss_from_embeddings(torch.cat(vectors[1:])).item()
    assert parts["document_penalty"].item() == pytest.approx(0.1 * documents, rel=1e-5)
    queries = flops.compute_loss_from_embeddings(vectors[0]).item()
    assert parts["query_penalty"].item() == pytest.approx(0.2 * queries, rel=1e-5)


def test_margin_mse_is_that_of_sentence_transformers(encoder: NeuralSparseEncoder) -> None:
    vectors, labels = columns(encoder, 4), targets()
    parts = loss_of(encoder, {"margin_mse": {}}).parts(vectors, labels)
    reference = SparseMarginMSELoss(encoder).compute_loss_from_embeddings(vectors, labels["label"])
    assert parts["distillation"].item() == pytest.approx(reference.item(), rel=1e-5)
    assert "contrastive" not in parts


def test_margin_mse_by_hand(encoder: NeuralSparseEncoder) -> None:
    """Scores 6 and 2, labels 5 and 4: (4 - 1)^2 = 9."""
    query, positive, negative = columns(encoder, 3, rows=1)
    for vector, weight in ((query, 2.0), (positive, 3.0), (negative, 1.0)):
        vector.zero_()
        vector[0, 20] = weight
    labels = {"label": torch.tensor([[5.0, 4.0]])}
    parts = loss_of(encoder, {"margin_mse": {}}).parts([query, positive, negative], labels)
    assert parts["distillation"].item() == pytest.approx(9.0)


def test_special_tokens_count_for_nothing(encoder: NeuralSparseEncoder) -> None:
    """On the cluster [CLS] and [SEP] weigh nothing, so they must not learn to carry a meaning."""
    vectors, labels = columns(encoder, 4), targets()
    loss = loss_of(encoder, {"kl": {}, "info_nce": {}})
    without = loss.parts(vectors, labels)
    special = torch.tensor(sorted(encoder.vocabulary.special_ids))
    loud = [vector.index_fill(1, special, 7.0) for vector in vectors]
    for name, value in loss.parts(loud, labels).items():
        assert value.item() == without[name].item()


def test_a_table_narrower_than_the_output_is_padded(encoder: NeuralSparseEncoder) -> None:
    vectors, labels = columns(encoder, 4), targets()
    vectors[0][:, -3:] = 0
    loss = loss_of(encoder, {"info_nce": {}})
    wide = loss.parts(vectors, labels)["contrastive"]
    narrow = loss.parts([vectors[0][:, :-3], *vectors[1:]], labels)["contrastive"]
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-6)


def test_known_positives_are_no_negatives(encoder: NeuralSparseEncoder) -> None:
    """Two rows; the second row's positive answers the first query too. Scores by hand."""
    examples = Dataset.from_dict({"query": ["q1", "q2", "Q1!"], "positive": ["a", "b", "b"]})
    size = encoder.vocabulary.size
    queries, positives = torch.zeros(2, size), torch.zeros(2, size)
    queries[0, 10], queries[1, 11] = 1.0, 1.0
    positives[0, 10], positives[1, 10], positives[1, 11] = 2.0, 3.0, 5.0
    labels = {
        "query_ids": torch.tensor([query_id("q1"), query_id("q2")]),
        "document_ids": torch.tensor([[document_id("a")], [document_id("b")]]),
    }
    loss = InfoNCE(encoder, 1.0, KnownPairs(examples))
    found = loss.compute_loss_from_embeddings([queries, positives], labels)
    # Query 1 has no negative left; query 2 has scores 0 and 5.
    assert found.item() == pytest.approx((0.0 + math.log(1 + math.exp(-5))) / 2, rel=1e-4)
    unaware = InfoNCE(encoder, 1.0, None).compute_loss_from_embeddings([queries, positives], labels)
    assert unaware.item() == pytest.approx((math.log(1 + math.e) + math.log(1 + math.exp(-5))) / 2, rel=1e-4)


def test_known_pairs_are_pairs(encoder: NeuralSparseEncoder) -> None:
    known = KnownPairs(Dataset.from_dict({"query": ["a", "b"], "positive": ["x", "y"]}))
    queries = torch.tensor([query_id("a"), query_id("b")])
    documents = torch.tensor([document_id("x"), document_id("y"), document_id("z")])
    found = known.contains(queries[:, None], documents[None, :])
    assert found.tolist() == [[True, False, False], [False, True, False]]


@pytest.mark.filterwarnings("ignore:torch.distributed:FutureWarning")
def test_negatives_come_from_all_processes(encoder: NeuralSparseEncoder, tmp_path: Path) -> None:
    """One process of a group of one gathers its own documents, in the order that the mask has."""
    vectors, labels = columns(encoder, 4), targets()
    texts = Dataset.from_dict({"query": ["a"], "positive": ["b"]})
    scores = vectors[0][0] @ torch.cat(vectors[1:]).T
    column, row = divmod(int(scores[1:].argmax()) + 1, 4)
    labels["query_ids"][0], labels["document_ids"][row, column] = query_id("a"), document_id("b")
    loss = InfoNCE(encoder, 1.0, KnownPairs(texts))
    alone = loss.compute_loss_from_embeddings(vectors, labels)
    unaware = InfoNCE(encoder, 1.0, None).compute_loss_from_embeddings(vectors, labels)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        gathered = loss.compute_loss_from_embeddings(vectors, labels)
        assert loss.gather_across_devices
    finally:
        torch.distributed.destroy_process_group()
    assert gathered.item() == pytest.approx(alone.item(), rel=1e-6) and alone.item() < unaware.item()


def test_kl_over_the_batch_by_hand() -> None:
    """Two queries, two documents; student's scores (0, ln 3) / T = 1, targets even."""
    third = math.log(3)
    queries, documents = torch.eye(2), torch.tensor([[0.0, 0.0], [third, third]])
    labels = torch.zeros(2, 2)
    found = BatchKLDivLoss(1.0).compute_loss_from_embeddings([queries, documents], labels)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_kl_over_the_batch_of_one_is_that_over_its_own(encoder: NeuralSparseEncoder) -> None:
    vectors = columns(encoder, 4, rows=1)
    labels = torch.tensor([[9.0, 3.0, 1.0]])
    batch = BatchKLDivLoss(2.0).compute_loss_from_embeddings(vectors, labels)
    own = SparseDistillKLDivLoss(encoder, temperature=2.0).compute_loss_from_embeddings(vectors, labels)
    assert batch.item() == pytest.approx(own.item(), rel=1e-5)


def test_the_order_of_labels_over_the_batch_is_that_of_the_columns(encoder: NeuralSparseEncoder) -> None:
    """Where the teacher's scores are the student's own, there is nothing left to learn."""
    features, found = batch_of(
        encoder, score_matrix=lambda queries, texts: own_scores(encoder, queries, texts)
    )
    loss = loss_of(encoder, {"kl": {"candidates": "batch"}})
    with torch.no_grad():
        parts = loss(features, found)
    assert found["label"].shape == (4, 12)
    assert parts["distillation"].item() == pytest.approx(0.0, abs=1e-4)


def own_scores(encoder: NeuralSparseEncoder, queries: list[str], texts: list[str]) -> np.ndarray:
    scores = encoder.query_matrix(queries) @ encoder.document_matrix(texts).T
    return np.asarray(scores.toarray(), dtype=np.float32)


def test_the_l0_mask_by_hand(encoder: NeuralSparseEncoder) -> None:
    """Vectors with 1 and 3 active dimensions, threshold 2: only the second counts, over a mean of two."""
    vectors = torch.zeros(2, encoder.vocabulary.size)
    vectors[0, 20] = 100.0
    vectors[1, 21:24] = torch.tensor([2.0, 4.0, 6.0])
    sparsity = {"documents": {"weight": 1.0, "threshold": 2}, "queries": None}
    loss = loss_of(encoder, {"info_nce": {}}, sparsity)
    parts = loss.parts([torch.zeros_like(vectors), vectors], targets(2, 1))
    assert parts["document_penalty"].item() == pytest.approx(1.0 + 4.0 + 9.0)
    assert "query_penalty" not in parts


def test_the_idf_aware_penalty_by_hand(encoder: NeuralSparseEncoder) -> None:
    """Means (1, 2) and costs (3, 0.5): 9 + 1."""
    costs = torch.ones(encoder.vocabulary.size)
    costs[20], costs[21] = 3.0, 0.5
    vectors = torch.zeros(2, encoder.vocabulary.size)
    vectors[0, 20], vectors[1, 21] = 2.0, 4.0
    assert IdfFlopsLoss(encoder, costs).compute_loss_from_embeddings(vectors).item() == pytest.approx(10.0)


def test_costs_by_hand() -> None:
    """Two tokens with IDF 1 and 2, in exp(-1) and exp(-2) of the documents, and a special one."""
    mean = (math.exp(-1) + 4 * math.exp(-2)) / (math.exp(-1) + 2 * math.exp(-2))
    costs = idf_costs(np.array([1.0, 2.0, 0.0], dtype=np.float32))
    assert costs.tolist() == pytest.approx([mean, mean / 2, 0.0], rel=1e-6)


def test_a_token_of_all_documents_has_a_bounded_cost_and_the_others_about_1() -> None:
    df = np.array([1000, *[5] * 400])
    idf = np.log1p((1000 - df + 0.5) / (df + 0.5)).astype(np.float32)
    costs = idf_costs(idf).tolist()
    assert costs[0] == MAX_RELATIVE_COST
    assert costs[1:] == pytest.approx([1.0] * 400, rel=1e-3)


def test_without_any_idf_all_tokens_cost_the_same() -> None:
    assert idf_costs(np.zeros(4, dtype=np.float32)).tolist() == [1.0] * 4


def test_the_gradient_cache_changes_neither_loss_nor_gradients(encoder: NeuralSparseEncoder) -> None:
    features, labels = batch_of(encoder)
    known = KnownPairs(Dataset.from_dict(ROWS))
    loss = loss_of(encoder, {"kl": {}, "info_nce": {}}, known=known)
    found = []
    for micro_batch in (None, 4, 3, 1):
        loss.mini_batch_size = micro_batch
        encoder.zero_grad()
        parts = loss([dict(feature) for feature in features], labels)
        torch.stack(list(parts.values())).sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
        found.append(({name: value.item() for name, value in parts.items()}, gradients))
        assert loss.facts is not None
    for parts, gradients in found[1:]:
        assert parts == pytest.approx(found[0][0], rel=1e-4)
        assert torch.allclose(gradients, found[0][1], atol=1e-4, rtol=1e-3)


def test_facts_are_those_of_the_vectors(encoder: NeuralSparseEncoder) -> None:
    """Queries activate 1 of two tokens each, documents both and none: FLOPS = 1/2 * 1/2 + 1/2 * 1/2."""
    queries, documents = (torch.zeros(2, encoder.vocabulary.size) for _ in range(2))
    queries[0, 20], queries[1, 21] = 1.0, 1.0
    documents[0, 20:22] = 1.0
    loss = loss_of(encoder, {"info_nce": {}})
    loss.parts([queries, documents], targets(2, 1))
    assert loss.facts is not None
    assert loss.facts.tolist() == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("trainable", [False, True])
def test_queries_of_a_table_are_penalised_only_if_it_is_trained(tmp_path: Path, trainable: bool) -> None:
    base = NeuralSparseEncoder.from_pretrained(tiny.build("bert", tmp_path / "bert"), device="cpu")
    idf = np.where(base.vocabulary.weight_mask() > 0, 2.0, 0.0).astype(np.float32)
    encoder = inference_free(base, idf, trainable=trainable)
    loss = loss_of(encoder, {"kl": {}, "info_nce": {}})
    features, labels = batch_of(encoder, router_mapping=routes(2))
    parts = loss(features, labels)
    assert ("query_penalty" in parts) is trainable
    torch.stack(list(parts.values())).sum().backward()
    table = encoder.anatomy.queries
    assert table is not None
    assert (table.weight.grad is not None and bool(table.weight.grad.any())) is trainable
