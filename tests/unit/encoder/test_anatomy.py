"""One notion of an encoder taken apart: what loads exports, what exports loads again."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import (
    Router,
    SparseStaticEmbedding,
    SpladePooling,
    Transformer,
)

from exporters import export_encoder
from exporters.texts import parity_texts
from oskit.archive.encoder import ArchiveEncoder
from oskit.encoder.anatomy import dissect
from oskit.encoder.head.projection import random_projection
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import EncoderError
from tests import tiny

TEXTS = ["a concrete bridge over the water", "", "road", "hello hello world, bro och betong"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("bert", tmp_path_factory.mktemp("anatomy"), padding=5)


def _parts(folder: Path) -> tuple[Transformer, SpladePooling]:
    return Transformer(str(folder), transformer_task="fill-mask"), SpladePooling("max")


def whole(folder: Path) -> list[Any]:
    return list(_parts(folder))


def routed(folder: Path) -> list[Any]:
    transformer, pooling = _parts(folder)
    return [Router.for_query_document([transformer, pooling], [transformer, pooling])]


def routed_before_the_pooling(folder: Path) -> list[Any]:
    transformer, pooling = _parts(folder)
    return [Router.for_query_document([transformer], [transformer]), pooling]


def projected(folder: Path) -> list[Any]:
    transformer = Transformer(str(folder))
    inner, outer = (random_projection(32, size, std=0.3, seed=size) for size in (32, 166))
    return [transformer, inner, outer, SpladePooling("max")]


def table(folder: Path) -> list[Any]:
    transformer, pooling = _parts(folder)
    weights = 0.5 + torch.arange(len(transformer.tokenizer)) % 7 / 4
    queries = SparseStaticEmbedding(transformer.tokenizer, weights)
    return [Router.for_query_document([queries], [transformer, pooling])]


@pytest.mark.parametrize("modules", [whole, routed, routed_before_the_pooling, projected])
def test_what_exports_loads_again_and_computes_the_same(
    modules: Callable[[Path], list[Any]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.export.parity_texts", lambda: parity_texts()[::8])
    plain = SparseEncoder(modules=modules(folder), device="cpu")
    expected = plain.encode_document(TEXTS).to_dense().numpy()
    expected[1] = 0  # an empty text
    plain.save_pretrained(str(tmp_path / "saved"))
    (archive,) = export_encoder(plain, tmp_path / "out", formats=["onnx"])
    loaded = NeuralSparseEncoder.from_pretrained(tmp_path / "saved", device="cpu", fallback=False)
    expected = expected * loaded.vocabulary.weight_mask()
    for encoder in (loaded, ArchiveEncoder.open(archive)):
        np.testing.assert_allclose(encoder.document_matrix(TEXTS).toarray(), expected, atol=1e-4)
        np.testing.assert_allclose(encoder.query_matrix(TEXTS).toarray(), expected, atol=1e-4)
    torch.testing.assert_close(
        loaded.encode_query(TEXTS).to_dense(), plain.encode_query(TEXTS).to_dense(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("modules", [whole, routed, routed_before_the_pooling, projected, table])
def test_widths_and_parts_are_those_that_run(modules: Callable[[Path], list[Any]], folder: Path) -> None:
    encoder = SparseEncoder(modules=modules(folder), device="cpu")
    anatomy = dissect(encoder)
    assert anatomy.width == 166 == encoder.encode_document(TEXTS).shape[1] == anatomy.vocabulary.size
    assert anatomy.output.weight.shape[0] == anatomy.width
    weights = anatomy.query_weights(anatomy.vocabulary)
    assert (weights is None) == (anatomy.architecture == "symmetric") == (modules is not table)
    assert weights is None or weights.shape == (166,)


def test_what_cannot_be_used_is_refused_with_its_modules(folder: Path) -> None:
    transformer, pooling = _parts(folder)
    other = deepcopy(transformer)
    queries = SparseStaticEmbedding(transformer.tokenizer)
    for modules, message in (
        ([transformer, pooling, pooling], "has the modules Transformer → SpladePooling → SpladePooling"),
        ([transformer], "has the modules Transformer:"),
        ([], "has the modules nothing"),
        ([Router.for_query_document([other, pooling], [transformer, pooling])], "sends queries through"),
        (
            [Router.for_query_document([queries], [transformer]), pooling],
            "SparseStaticEmbedding → SpladePool",
        ),
        ([Router({"a": [transformer], "b": [transformer]}), pooling], "has the routes a, b, not query and"),
    ):
        with pytest.raises(EncoderError, match=message) as caught:
            dissect(modules)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("bert", {"max_position_embeddings": 40}, 40),
        ("roberta", {"max_position_embeddings": 42}, 40),
        ("mpnet", {"max_position_embeddings": 42}, 40),
        ("electra", {"max_position_embeddings": 40}, 40),
        ("modernbert", {"max_position_embeddings": 40}, 40),
    ],
)
def test_a_text_as_long_as_there_are_positions_and_no_longer_is_read(
    kind: tiny.Kind, options: dict[str, int], expected: int, tmp_path: Path
) -> None:
    """Told by the table of positions and its padding index, not by the architecture's name."""
    path = tiny.build(kind, tmp_path / "e", **options)
    config = json.loads((path / "config.json").read_text())
    assert config["max_position_embeddings"] == next(iter(options.values()))
    encoder = NeuralSparseEncoder.from_pretrained(path, device="cpu")
    assert encoder.anatomy.positions == encoder.max_length == expected
    ids = torch.full((1, expected), encoder.tokenizer.convert_tokens_to_ids("a"))
    encoder.anatomy.model(ids, attention_mask=torch.ones_like(ids))
    if kind != "modernbert":  # rotary positions have no end
        ids = torch.cat([ids, ids[:, :1]], dim=1)
        with pytest.raises((IndexError, RuntimeError)):
            encoder.anatomy.model(ids, attention_mask=torch.ones_like(ids))
