"""The loss and the gradients of one batch in some processes: ``python -m … FOLDER PROCESSES...``.

Writes ``FOLDER/N.pt`` for each number of processes. They are forked, for torch takes seconds to import.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import distributed

from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.inference_free import inference_free
from oskit.training.objective.objective import Targets, TrainingLoss, add_up
from oskit.training.recipe.objective import Losses, SparsityPart
from tests import tiny

ROWS, COUNT = 8, 3

CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], bool]] = {
    "own": (
        [{"kind": "kl"}, {"kind": "margin_mse", "weight": 0.05, "pairs": "all"}],
        {"documents": {"weight": 0.1}, "queries": {"weight": 0.2}},
        False,
    ),
    "batch": (
        [
            {"kind": "kl", "candidates": "batch", "temperature": 1},
            {"kind": "margin_mse", "candidates": "batch"},
            {"kind": "info_nce"},
        ],
        {
            "documents": {"weight": 0.1, "kind": "idf_flops", "over": "slot", "threshold": 20},
            "queries": {"weight": 0.2, "kind": "l1", "top_k": 8},
        },
        False,
    ),
    "table": (
        [{"kind": "kl"}, {"kind": "info_nce"}],
        {"documents": {"weight": 0.1}, "queries": {"weight": 0.2}},
        True,
    ),
}


class _Teachers:
    """A dense one, whose embeddings come with the batch."""

    def labels(self, targets: Targets) -> torch.Tensor:
        documents = targets["teacher_documents"].transpose(0, 1).flatten(0, 1)
        return targets["teacher_queries"] @ documents.T


def targets() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.rand(ROWS, COUNT, generator=generator) * 10
    labels[2, 1] = torch.nan  # unknown, on one process of several
    positives = torch.zeros(ROWS, COUNT, dtype=torch.bool)
    positives[:, 0] = True
    positives[5, 0] = False
    positives[1, 2] = True
    ids = torch.arange(ROWS * COUNT).reshape(ROWS, COUNT)
    ids[7, 2] = ids[0, 0]  # the positive of another process's query
    return {
        "query_ids": torch.arange(ROWS),
        "document_ids": ids,
        "positives": positives,
        "labels": labels,
        "teacher_queries": torch.randn(ROWS, 4, generator=generator),
        "teacher_documents": torch.randn(ROWS, COUNT, 4, generator=generator),
    }


def run(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder / f'group-{size}'}", rank=rank, world_size=size
        )
    found = {
        f"{name} {micro}": _one(folder, rank, size, *case, micro)
        for name, case in CASES.items()
        for micro in (None, 1)
    }
    if rank == 0:
        torch.save(found, folder / f"{size}.pt")
    if size > 1:
        distributed.destroy_process_group()


def _one(
    folder: Path,
    rank: int,
    size: int,
    losses: list[dict[str, Any]],
    sparsity: dict[str, Any],
    table: bool,
    micro: int | None,
) -> tuple[dict[str, float], torch.Tensor]:
    encoder = NeuralSparseEncoder.from_pretrained(folder / "bert", device="cpu").train()
    idf = np.where(encoder.vocabulary.weight_mask() > 0, 2.0, 0.0).astype(np.float32)
    if table:
        encoder = inference_free(encoder, idf, trainable=True)
    loss = TrainingLoss(
        encoder,
        TypeAdapter(Losses).validate_python(losses),
        SparsityPart.model_validate(sparsity),
        idf=idf,
        teachers=_Teachers(),
    )
    loss.mini_batch_size = micro
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    queries = tiny.sentences(ROWS, seed=1)[mine]
    documents = [text for slot in range(COUNT) for text in tiny.sentences(ROWS, seed=2 + slot)[mine]]
    features = [
        {**encoder.preprocess(texts, task=task), "task": task}
        for texts, task in ((queries, "query"), (documents, "document"))
    ]
    parts = loss(features, {name: value[mine] for name, value in targets().items()})
    torch.stack(list(parts.values())).sum().backward()
    add_up(encoder.parameters())
    gradients = [each.grad.flatten() for each in encoder.parameters() if each.grad is not None]
    return {name: value.item() for name, value in parts.items()}, torch.cat(gradients)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    context = multiprocessing.get_context("fork")
    for number in map(int, sys.argv[2:]):
        ranks = [context.Process(target=run, args=(where, rank, number)) for rank in range(number)]
        for each in ranks:
            each.start()
        for each in ranks:
            each.join()
        if any(each.exitcode for each in ranks):
            sys.exit(1)
