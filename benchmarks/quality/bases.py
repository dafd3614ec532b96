"""BERTs cut to their first layers, once for all trainings that start from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.models import SavedModel, bert
from benchmarks.quality.data import FAQ_SWEDISH, Workspace, passages, staged
from oskit.encoder.loader.quiet import quiet_libraries
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.layers import keep_layers

_TEXTS = 500
"""Passages that the cut is fitted to, half English, half Swedish."""


def first_layers(model: SavedModel, layers: int | None, work: Workspace) -> Path:
    """Folder of a BERT with its first layers, in the transformers layout.

    The recipe's ``encoder.layers`` does the same, but runs all layers over the texts again for each seed,
    which takes as long as the training here.

    Args:
        model: The whole one.
        layers: How many to keep; None for all.
        work: Holds the texts that the head is fitted to, and the result.
    """
    if layers is None:
        return bert(model)
    folder = work.work / "bases" / f"{model.artifact.name}-first-{layers}"
    if not folder.is_dir():
        files = (work.pairs_file(), work.faq_file(FAQ_SWEDISH))
        texts = [text for file in files for text in passages(file)[: _TEXTS // 2]]
        with staged(folder) as staging, quiet_libraries():
            encoder = NeuralSparseEncoder.from_pretrained(bert(model), max_seq_length=128)
            keep_layers(encoder, layers, texts)
            encoder.anatomy.transformer.model.save_pretrained(staging)
            tokenizer: Any = encoder.anatomy.transformer.tokenizer
            tokenizer.save_pretrained(staging)
    return folder
