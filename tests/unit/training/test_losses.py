"""The objective: published recipes as configurations, beside sentence-transformers and formulas by hand."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from sentence_transformers.sparse_encoder.losses import (
    SparseDistillKLDivLoss,
    SparseMarginMSELoss,
    SparseMultipleNegativesRankingLoss,
    SpladeLoss,
)

from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.inference_free import inference_free
from oskit.training.objective.losses import MAX_RELATIVE_COST, idf_costs
from oskit.training.objective.objective import TrainingLoss
from oskit.training.recipe.objective import Losses, SparsityPart
from tests import tiny

ROWS, COUNT = 4, 3
NO_PENALTY = {"documents": {"weight": 0}, "queries": None}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> NeuralSparseEncoder:
    folder = tiny.build("bert", tmp_path_factory.mktemp("losses") / "bert")
    return NeuralSparseEncoder.from_pretrained(folder, device="cpu").eval()


def loss_of(
    encoder: NeuralSparseEncoder, *losses: dict[str, Any], sparsity: dict[str, Any] | None = None, **more: Any
) -> TrainingLoss:
    parts = TypeAdapter(Losses).validate_python(losses or ({"kind": "info_nce"},))
    return TrainingLoss(encoder, parts, SparsityPart.model_validate(sparsity or NO_PENALTY), **more)


Vectors = tuple[torch.Tensor, torch.Tensor]


def vectors(encoder: NeuralSparseEncoder, *, rows: int = ROWS, count: int = COUNT, seed: int = 0) -> Vectors:
    """Queries ``[rows, vocabulary]`` and documents ``[count * rows, vocabulary]``, half of the weights 0."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.as_tensor(encoder.vocabulary.weight_mask())
    size = encoder.vocabulary.size
    made = (torch.randn(number, size, generator=generator).relu() * mask for number in (rows, rows * count))
    queries, documents = made
    return queries, documents


def targets(rows: int = ROWS, count: int = COUNT, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Identities that are all different; the first document of each query is its positive."""
    generator = torch.Generator().manual_seed(5)
    positives = torch.zeros(rows, count, dtype=torch.bool)
    positives[:, 0] = True
    return {
        "query_ids": torch.arange(rows),
        "document_ids": torch.arange(1000, 1000 + rows * count).reshape(rows, count),
        "positives": positives,
        "labels": torch.rand(rows, count, generator=generator) * 10,
        **more,
    }


def columns(queries: torch.Tensor, documents: torch.Tensor) -> list[torch.Tensor]:
    """As sentence-transformers has them: queries, first documents, second ones, …"""
    return [queries, *documents.split(len(queries))]


def grads(parts: dict[str, torch.Tensor], *leaves: torch.Tensor) -> torch.Tensor:
    """Of the sum, by the weights that are there: what is 0 the encoder's ReLU keeps."""
    found = torch.autograd.grad(torch.stack(list(parts.values())).sum(), leaves)
    return torch.cat([gradient[leaf > 0] for gradient, leaf in zip(found, leaves, strict=True)])


def test_splade_with_sentence_transformers_own_classes(encoder: NeuralSparseEncoder) -> None:
    """The whole sum and its gradient, of the three losses that sentence-transformers trains SPLADE by."""
    sparsity = {"documents": {"weight": 0.1}, "queries": {"weight": 0.2}}
    for part, theirs in (
        ({"kind": "kl", "temperature": 3}, SparseDistillKLDivLoss(encoder, temperature=3.0)),
        ({"kind": "margin_mse"}, SparseMarginMSELoss(encoder)),
        ({"kind": "info_nce", "temperature": 0.5}, SparseMultipleNegativesRankingLoss(encoder, scale=2.0)),
    ):
        leaves = [each.requires_grad_() for each in vectors(encoder)]
        parts = loss_of(encoder, part, sparsity=sparsity).parts(*leaves, targets())
        embeddings = columns(*leaves)
        reference = SpladeLoss(encoder, theirs, 0.1, 0.2)
        expected = {
            "base": theirs.compute_loss_from_embeddings(embeddings, targets()["labels"]),
            "documents": 0.1
            * reference.document_regularizer.compute_loss_from_embeddings(torch.cat(embeddings[1:])),
            "queries": 0.2 * reference.query_regularizer.compute_loss_from_embeddings(embeddings[0]),
        }
        for found, value in zip(parts.values(), expected.values(), strict=True):
            assert found.item() == pytest.approx(value.item(), rel=1e-5)
        assert torch.allclose(grads(parts, *leaves), grads(expected, *leaves), rtol=1e-4, atol=1e-5)


def test_splade_plus_plus(encoder: NeuralSparseEncoder) -> None:
    """EnsembleDistil: margin-MSE of pairs; FLOPS of positives and of negatives, halved, and of queries."""
    queries, documents = vectors(encoder, count=2)
    labels = targets(count=2)
    sparsity = {"documents": {"weight": 5e-4, "over": "slot"}, "queries": {"weight": 2e-3}}
    parts = loss_of(encoder, {"kind": "margin_mse"}, sparsity=sparsity).parts(queries, documents, labels)

    query, positive, negative = (column.double().numpy() for column in columns(queries, documents))
    margin = (query * positive).sum(1) - (query * negative).sum(1)
    taught = (labels["labels"][:, 0] - labels["labels"][:, 1]).numpy()
    flops = [(np.abs(column).mean(0) ** 2).sum() for column in (query, positive, negative)]
    assert parts["margin_mse"].item() == pytest.approx(((margin - taught) ** 2).mean(), rel=1e-5)
    assert parts["document_penalty"].item() == pytest.approx(1e-3 * (flops[1] + flops[2]) / 2, rel=1e-5)
    assert parts["query_penalty"].item() == pytest.approx(2e-3 * flops[0], rel=1e-5)


def test_splade_v3(encoder: NeuralSparseEncoder) -> None:
    """KL at temperature 1 and .05 margin-MSE of all pairs; FLOPS of all documents, L1 of queries; top-k."""
    queries, documents = vectors(encoder)
    sparsity = {
        "documents": {"weight": 1e-2, "top_k": 5},
        "queries": {"weight": 5e-3, "kind": "l1", "top_k": 3},
    }
    losses = {"kind": "kl", "temperature": 1}, {"kind": "margin_mse", "pairs": "all", "weight": 0.05}
    labels = targets()
    parts = loss_of(encoder, *losses, sparsity=sparsity).parts(queries, documents, labels)

    asked, there = pruned(queries, 3), pruned(documents, 5)
    taught = labels["labels"].double().numpy()
    kl, mse = 0.0, 0.0
    for row in range(ROWS):
        scores = [float(asked[row] @ there[slot * ROWS + row]) for slot in range(COUNT)]
        mine, theirs = softmax(scores), softmax(taught[row].tolist())
        kl += sum(t * math.log(t / m) for t, m in zip(theirs, mine, strict=True)) / ROWS
        for one, other in itertools.product(range(COUNT), repeat=2):
            difference = (scores[one] - scores[other]) - (taught[row, one] - taught[row, other])
            mse += difference**2 / (ROWS * COUNT * COUNT)
    assert parts["kl"].item() == pytest.approx(kl, rel=1e-4)
    assert parts["margin_mse"].item() == pytest.approx(0.05 * mse, rel=1e-4)
    flops = 1e-2 * (there.mean(0) ** 2).sum()
    assert parts["document_penalty"].item() == pytest.approx(flops, rel=1e-5)
    assert parts["query_penalty"].item() == pytest.approx(5e-3 * asked.sum(1).mean(), rel=1e-5)


def test_opensearch_doc_v3(encoder: NeuralSparseEncoder) -> None:
    """KL at 1 over all documents of the batch, the teachers' scores times 30; FLOPS slot by slot, L0 mask."""
    queries, documents = vectors(encoder, count=2)
    threshold = int((documents > 0).sum(1).float().median())
    sparsity = {"documents": {"weight": 0.08, "threshold": threshold, "over": "slot"}, "queries": None}
    taught = torch.randn(ROWS, 2 * ROWS, generator=torch.Generator().manual_seed(1)) * 30
    loss = loss_of(
        encoder,
        {"kind": "kl", "temperature": 1, "t_squared": False, "candidates": "batch"},
        sparsity=sparsity,
        teachers=Teachers(taught),
    )
    parts = loss.parts(queries, documents, targets(count=2))

    scores = (queries @ documents.T).double()
    kl = torch.nn.functional.kl_div(
        scores.log_softmax(1), taught.double().softmax(1), reduction="batchmean"
    ).item()
    assert parts["kl"].item() == pytest.approx(kl, rel=1e-4)
    penalty = 0.0
    for slot in documents.double().split(ROWS):
        longer = (slot > 0).sum(1) > threshold
        penalty += float(((slot * longer[:, None]).mean(0) ** 2).sum())
    assert 0 < parts["document_penalty"].item() == pytest.approx(0.08 * penalty, rel=1e-5)
    assert "query_penalty" not in parts


class Teachers:
    """Labels of a batch that are known."""

    def __init__(self, labels: torch.Tensor) -> None:
        self._labels = labels

    def labels(self, _: Any) -> torch.Tensor:
        return self._labels


def pruned(rows: torch.Tensor, count: int) -> Any:
    """The largest weights of each row, by sorting."""
    found = rows.double().numpy().copy()
    for row in found:
        row[np.argsort(-row)[count:]] = 0
    return found


def softmax(values: list[float]) -> list[float]:
    whole = [math.exp(value - max(values)) for value in values]
    return [value / sum(whole) for value in whole]


def test_temperature_squared_is_a_choice(encoder: NeuralSparseEncoder) -> None:
    kl = [
        loss_of(encoder, {"kind": "kl", "temperature": 3, "t_squared": squared})
        .parts(*vectors(encoder), targets())["kl"]
        .item()
        for squared in (False, True)
    ]
    assert kl[1] == pytest.approx(9 * kl[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
def test_candidates_of_unknown_score_are_left_out(encoder: NeuralSparseEncoder, kind: str) -> None:
    """As if the batch had never had them; a query with one label alone teaches nothing."""
    queries, documents = vectors(encoder)
    labels = targets()
    some = labels["labels"].clone()
    some[:, 2] = torch.nan
    found = loss_of(encoder, {"kind": kind}).parts(queries, documents, labels | {"labels": some})
    shorter = {name: value if value.ndim == 1 else value[:, :2] for name, value in labels.items()}
    without = loss_of(encoder, {"kind": kind}).parts(queries, documents[: 2 * ROWS], shorter)
    assert found[kind].item() == pytest.approx(without[kind].item(), rel=1e-5)

    some[1, 1] = torch.nan
    three = loss_of(encoder, {"kind": kind}).parts(queries, documents, labels | {"labels": some})
    rows = [0, 2, 3]
    kept = {name: value[rows] for name, value in shorter.items()}
    fewer = torch.cat([column[rows] for column in documents[: 2 * ROWS].split(ROWS)])
    alone = loss_of(encoder, {"kind": kind}).parts(queries[rows], fewer, kept)
    assert three[kind].item() == pytest.approx(alone[kind].item(), rel=1e-5)

    leaf = queries.clone().requires_grad_()
    none = loss_of(encoder, {"kind": kind}).parts(
        leaf, documents, labels | {"labels": torch.full((ROWS, COUNT), torch.nan)}
    )
    assert none[kind].item() == 0 and not grads(none, leaf).any()


@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
def test_over_a_batch_of_one_query_all_candidates_are_its_own(
    encoder: NeuralSparseEncoder, kind: str
) -> None:
    given = vectors(encoder, rows=1)
    labels = targets(rows=1)
    own = loss_of(encoder, {"kind": kind}).parts(*given, labels)
    batch = loss_of(encoder, {"kind": kind, "candidates": "batch"}, teachers=Teachers(labels["labels"]))
    assert batch.parts(*given, labels)[kind].item() == pytest.approx(own[kind].item(), rel=1e-5)


def test_two_losses_of_a_kind_have_two_names(encoder: NeuralSparseEncoder) -> None:
    parts = loss_of(encoder, {"kind": "kl"}, {"kind": "kl", "temperature": 1}).parts(
        *vectors(encoder), targets()
    )
    assert list(parts) == ["kl", "kl_2", "document_penalty"]


def test_special_tokens_count_for_nothing(encoder: NeuralSparseEncoder) -> None:
    """On the cluster [CLS] and [SEP] weigh nothing, so they must not learn to carry a meaning."""
    given = vectors(encoder)
    loss = loss_of(encoder, {"kind": "kl"}, {"kind": "info_nce"}, sparsity={"documents": {"weight": 1}})
    without = loss.parts(*given, targets())
    special = torch.tensor(sorted(encoder.vocabulary.special_ids))
    loud = (each.index_fill(1, special, 7.0) for each in given)
    for name, value in loss.parts(*loud, targets()).items():
        assert value.item() == without[name].item()


def test_a_table_narrower_than_the_output_is_padded(encoder: NeuralSparseEncoder) -> None:
    queries, documents = vectors(encoder)
    queries[:, -3:] = 0
    loss = loss_of(encoder)
    wide = loss.parts(queries, documents, targets())["info_nce"]
    narrow = loss.parts(queries[:, :-3], documents, targets())["info_nce"]
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-6)


def test_known_positives_are_no_negatives(encoder: NeuralSparseEncoder) -> None:
    """Scores by hand: query 1 with documents (2, 3), query 2 with (0, 5), each its own first."""
    size = encoder.vocabulary.size
    queries, documents = torch.zeros(2, size), torch.zeros(2, size)
    queries[0, 10], queries[1, 11] = 1.0, 1.0
    documents[0, 10], documents[1, 10], documents[1, 11] = 2.0, 3.0, 5.0
    ids = {"query_ids": torch.tensor([7, 8]), "document_ids": torch.tensor([[3], [4]])}
    labels = targets(2, 1, **ids)
    plain = (math.log(1 + math.e) + math.log(1 + math.exp(-5))) / 2
    assert loss_of(encoder).parts(queries, documents, labels)["info_nce"].item() == pytest.approx(
        plain, rel=1e-4
    )

    class Known:
        def contains(self, queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
            return (queries == 7) & (documents == 4)  # the second document answers the first query too

    aware = loss_of(encoder, known=Known()).parts(queries, documents, labels)["info_nce"]
    assert aware.item() == pytest.approx(math.log(1 + math.exp(-5)) / 2, rel=1e-4)
    # The same document twice, and a query whose first document is not known to answer it.
    twice = loss_of(encoder).parts(queries, documents, labels | {"document_ids": torch.tensor([[3], [3]])})
    assert twice["info_nce"].item() == pytest.approx(0, abs=1e-6)
    unknown = labels | {"positives": torch.tensor([[True], [False]])}
    one = loss_of(encoder).parts(queries, documents, unknown)["info_nce"]
    assert one.item() == pytest.approx(math.log(1 + math.e), rel=1e-4)


def test_own_candidates_of_info_nce(encoder: NeuralSparseEncoder) -> None:
    """Among three documents, the third another positive."""
    queries, documents = vectors(encoder)
    labels = targets()
    labels["positives"][:, 2] = True
    found = loss_of(encoder, {"kind": "info_nce", "candidates": "own"}).parts(queries, documents, labels)
    first, second, _ = documents.split(ROWS)
    scores = torch.stack([(queries * first).sum(1), (queries * second).sum(1)], dim=1)
    expected = torch.nn.functional.cross_entropy(scores, torch.zeros(ROWS, dtype=torch.long))
    assert found["info_nce"].item() == pytest.approx(expected.item(), rel=1e-5)
    batch = loss_of(encoder).parts(queries, documents, labels)["info_nce"]
    all_scores = queries @ documents.T
    all_scores[torch.arange(ROWS), 2 * ROWS + torch.arange(ROWS)] = -torch.inf
    expected = torch.nn.functional.cross_entropy(all_scores, torch.arange(ROWS))
    assert batch.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_l0_mask_and_costs_by_hand(encoder: NeuralSparseEncoder) -> None:
    """Vectors with 1 and 3 active dimensions, threshold 2: only the second counts, over a mean of two."""
    documents = torch.zeros(2, encoder.vocabulary.size)
    documents[0, 20] = 100.0
    documents[1, 21:24] = torch.tensor([2.0, 4.0, 6.0])
    sparsity = {"documents": {"weight": 1.0, "threshold": 2}, "queries": None}
    loss = loss_of(encoder, sparsity=sparsity)
    parts = loss.parts(torch.zeros_like(documents), documents, targets(2, 1))
    assert parts["document_penalty"].item() == pytest.approx(1.0 + 4.0 + 9.0)

    idf = np.ones(encoder.vocabulary.size, dtype=np.float32)
    idf[20], idf[21:24] = 0.5, 2.0
    costs = idf_costs(idf)
    sparsity["documents"]["kind"] = "idf_flops"  # type: ignore[index]
    parts = loss_of(encoder, sparsity=sparsity, idf=idf).parts(
        torch.zeros_like(documents), documents, targets(2, 1)
    )
    assert parts["document_penalty"].item() == pytest.approx(14 * costs[21].item() ** 2, rel=1e-5)


def test_costs_by_hand() -> None:
    """Two tokens with IDF 1 and 2, in exp(-1) and exp(-2) of the documents, and a special one."""
    mean = (math.exp(-1) + 4 * math.exp(-2)) / (math.exp(-1) + 2 * math.exp(-2))
    costs = idf_costs(np.array([1.0, 2.0, 0.0], dtype=np.float32))
    assert costs.tolist() == pytest.approx([mean, mean / 2, 0.0], rel=1e-6)
    assert idf_costs(np.zeros(4, dtype=np.float32)).tolist() == [1.0] * 4, "without any IDF all are the same"


def test_a_token_of_all_documents_has_a_bounded_cost_and_the_others_about_1() -> None:
    df = np.array([1000, *[5] * 400])
    idf = np.log1p((1000 - df + 0.5) / (df + 0.5)).astype(np.float32)
    costs = idf_costs(idf).tolist()
    assert costs[0] == MAX_RELATIVE_COST
    assert costs[1:] == pytest.approx([1.0] * 400, rel=1e-3)


def test_facts_are_those_of_the_vectors(encoder: NeuralSparseEncoder) -> None:
    """Queries activate 1 of two tokens each, documents both and none: FLOPS = 1/2 * 1/2 + 1/2 * 1/2."""
    queries, documents = (torch.zeros(2, encoder.vocabulary.size) for _ in range(2))
    queries[0, 20], queries[1, 21] = 1.0, 1.0
    documents[0, 20:22] = 1.0
    loss = loss_of(encoder)
    loss.parts(queries, documents, targets(2, 1))
    assert [loss.values[name].item() for name in ("query_dims", "document_dims", "flops")] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("trainable", [False, True])
def test_queries_of_a_table_are_penalised_only_if_it_is_trained(tmp_path: Path, trainable: bool) -> None:
    base = NeuralSparseEncoder.from_pretrained(tiny.build("bert", tmp_path / "bert"), device="cpu")
    idf = np.where(base.vocabulary.weight_mask() > 0, 2.0, 0.0).astype(np.float32)
    encoder = inference_free(base, idf, trainable=trainable)
    both = {"documents": {"weight": 0.1}, "queries": {"weight": 0.2}}
    loss = loss_of(encoder, {"kind": "kl"}, sparsity=both)
    texts = tiny.sentences(ROWS * (1 + COUNT))
    for size in (None, 3):
        loss.mini_batch_size = size
        encoder.zero_grad()
        features = [
            encoder.preprocess(texts[:ROWS], task="query") | {"task": "query"},
            encoder.preprocess(texts[ROWS:], task="document") | {"task": "document"},
        ]
        parts = loss(features, targets())
        assert ("query_penalty" in parts) is trainable
        torch.stack(list(parts.values())).sum().backward()
        table = encoder.anatomy.queries
        assert table is not None
        assert (table.weight.grad is not None and bool(table.weight.grad.any())) is trainable


def test_the_objective_is_the_same_with_one_process_two_and_eight(tmp_path: Path) -> None:
    """Losses and gradients of whole batches and of micro batches, over gloo."""
    tiny.without_dropout(tiny.build("bert", tmp_path / "bert"))
    module = "tests.unit.training.objective_in_processes"
    done = subprocess.run(
        [sys.executable, "-m", module, str(tmp_path), "1", "2", "8"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    one, *several = (torch.load(tmp_path / f"{number}.pt") for number in (1, 2, 8))
    for case, (parts, gradients) in one.items():
        assert gradients.abs().max() > 0.01
        whole_parts, whole_gradients = one[f"{case.split()[0]} None"]
        for found, their_gradients in (each[case] for each in several):
            assert found == pytest.approx(parts, rel=1e-4)
            assert torch.allclose(their_gradients, gradients, rtol=1e-3, atol=1e-5 * gradients.abs().max())
        assert parts == pytest.approx(whole_parts, rel=1e-4), "micro batches"
        assert torch.allclose(gradients, whole_gradients, rtol=1e-3, atol=1e-5 * gradients.abs().max()), (
            "micro batches"
        )
