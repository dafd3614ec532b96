"""Tiny teachers with random weights: a dense one, a sparse one, a cross-encoder."""

from __future__ import annotations

from pathlib import Path

from tests import tiny


def build_dense(folder: Path) -> Path:
    """A sentence-transformers model with mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    base = tiny.build("bert-headless", folder.with_name(f"{folder.name}-base"))
    transformer = Transformer(str(base))
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save_pretrained(str(folder))
    return folder


def build_sparse(folder: Path) -> Path:
    """An encoder with a head of its own."""
    return tiny.build("bert", folder)


def build_cross_encoder(folder: Path) -> Path:
    """A cross-encoder with one output."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    base = tiny.build("bert-headless", folder.with_name(f"{folder.name}-base"))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = AutoConfig.from_pretrained(base, num_labels=1)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny.fast_tokenizer("bert").save_pretrained(folder)
    return folder
