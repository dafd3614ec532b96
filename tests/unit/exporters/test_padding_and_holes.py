"""Outputs wider than the tokenizer, and token ids with holes: no weight is lost, none is made up.

The reference is sentence-transformers' own ``encode_query`` and ``encode_document``, and what the server does
with ``idf.json``: it looks a token up by its text and takes 1 for what it does not find.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tiny
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import (
    Router,
    SparseStaticEmbedding,
    SpladePooling,
    Transformer,
)

from exporters import export_encoder
from oskit.archive.encoder import ArchiveEncoder
from oskit.encoder.document_frequencies import corpus_idf
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.inference_free import inference_free
from oskit.errors import EncoderError

Shape = Literal["padded", "hole", "hole and padded"]
SHAPES: tuple[Shape, ...] = ("padded", "hole", "hole and padded")
LAST = tiny.WORDS[-1]
TEXTS = [f"hello {LAST} {LAST}", "the concrete bridges of the old road", "[MASK] hej [CLS]", "", "🙂"]


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.export.parity_texts", lambda: TEXTS)


def build(folder: Path, shape: Shape) -> Path:
    """A BERT with six columns too many, or no token at the id of ``hello``; its bias pulls these up."""
    tiny.build("bert", folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    tokens = content["model"]["vocab"]
    size = len(tokens)
    if "hole" in shape:
        hole = tokens["hello"]
        content["model"]["vocab"] = {token: i + (i >= hole) for token, i in tokens.items()}
        (folder / "tokenizer.json").write_text(json.dumps(content))
        size += 1
    wide = size + 6 * ("padded" in shape)
    resize(folder, wide, [*range(size, wide), *([hole] if "hole" in shape else [])])
    return folder


def resize(folder: Path, width: int, pulled_up: Sequence[int] = ()) -> None:
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.resize_token_embeddings(width, mean_resizing=False)
    model.get_output_embeddings().bias.data[list(pulled_up)] = 5.0
    model.save_pretrained(folder)


def with_table(folder: Path, weights: torch.Tensor) -> SparseEncoder:
    """Queries by a table, as sentence-transformers' own documentation builds it."""
    documents = Transformer(str(folder), transformer_task="fill-mask")
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(documents.tokenizer, weights, frozen=True)],
        document_modules=[documents, SpladePooling("max")],
    )
    return SparseEncoder(modules=[router], similarity_fn_name="dot", device="cpu")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_symmetric_encoder_of_an_odd_vocabulary(shape: Shape, tmp_path: Path) -> None:
    folder = build(tmp_path / "e", shape)
    encoder = NeuralSparseEncoder.from_pretrained(folder, device="cpu")
    plain = SparseEncoder(str(folder), device="cpu").encode_document(TEXTS).to_dense().numpy()
    width, known = plain.shape[1], len(encoder.tokenizer) + ("hole" in shape)
    assert width == known + 6 * ("padded" in shape)
    expected = plain * encoder.vocabulary.weight_mask()
    expected[3] = 0  # the empty text; sentence-transformers weighs its [CLS] and [SEP]
    for archive in export_encoder(encoder, tmp_path / "out"):
        assert archive.manifest is not None
        assert archive.manifest.vocabulary.size == width
        opened = ArchiveEncoder.open(archive)
        np.testing.assert_allclose(opened.document_matrix(TEXTS).toarray(), expected, atol=1e-4)
        np.testing.assert_allclose(opened.query_matrix(TEXTS).toarray(), expected, atol=1e-4)
        keys = set(opened.document_weights([TEXTS[0]])[0])
        assert keys and keys <= set(encoder.tokenizer.get_vocab())
    np.testing.assert_allclose(encoder.document_matrix(TEXTS).toarray(), expected, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_inference_free_encoder_of_an_odd_vocabulary(shape: Shape, tmp_path: Path) -> None:
    folder = build(tmp_path / "e", shape)
    tokens = with_table(folder, torch.ones(1)).tokenizer.get_vocab()
    # sentence-transformers loads as many as there are tokens; it encodes with as many as the ids need.
    weights = 0.5 + torch.arange(max(tokens.values()) + 1) % 7 / 4
    encoder = with_table(folder, weights)
    document, query = export_encoder(encoder, tmp_path / "out", formats=["onnx"])
    idf = json.loads(query.read("idf.json"))
    opened = ArchiveEncoder.open(document)
    special = opened.vocabulary.special_ids
    assert idf == {
        token: 0.0 if i in special else pytest.approx(float(weights[i])) for token, i in tokens.items()
    }
    mask = opened.vocabulary.weight_mask()
    expected = encoder.encode_query(TEXTS).to_dense().numpy()
    expected = np.pad(expected, ((0, 0), (0, len(mask) - expected.shape[1]))) * mask
    assert expected[0, tokens[LAST]] > 0
    np.testing.assert_allclose(opened.query_matrix(TEXTS).toarray(), expected, atol=1e-6)
    alone = ArchiveEncoder.open(query)
    assert alone.query_weights(TEXTS) == opened.query_weights(TEXTS)
    np.testing.assert_allclose(alone.query_matrix(TEXTS).toarray(), expected, atol=1e-6)
    documents = encoder.encode_document(TEXTS).to_dense().numpy() * mask
    documents[3] = 0
    np.testing.assert_allclose(opened.document_matrix(TEXTS).toarray(), documents, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_idf_json_of_an_odd_vocabulary_reaches_the_archive_whole(shape: Shape, tmp_path: Path) -> None:
    folder = build(tmp_path / "e", shape)
    base = NeuralSparseEncoder.from_pretrained(folder, device="cpu")
    vector = corpus_idf([f"hello {LAST}", "hello", "the road"], base.vocabulary)
    table = {base.vocabulary.key_of(i): float(weight) for i, weight in enumerate(vector) if weight > 0}
    assert LAST in table
    (folder / "idf.json").write_text(json.dumps(table))
    encoders = [NeuralSparseEncoder.from_pretrained(folder, device="cpu")]
    if shape == "padded":
        encoders.append(inference_free(base, vector))
    for encoder in encoders:
        assert encoder.query_weights([LAST]) == [pytest.approx({LAST: table[LAST]})]
        *_, query = export_encoder(encoder, tmp_path / encoder.load_report.layout, formats=["onnx"])
        idf = json.loads(query.read("idf.json"))
        assert {token: idf[token] for token in table} == pytest.approx(table)
        assert set(idf) == set(base.tokenizer.get_vocab())


def test_a_hole_with_only_a_special_token_behind_it_costs_nothing(tmp_path: Path) -> None:
    """As in CamemBERT, whose last id is that of <mask>: the table has one weight a token, and is saved."""
    folder = tiny.build("bert", tmp_path / "e")
    content = json.loads((folder / "tokenizer.json").read_text())
    last = len(content["model"]["vocab"])
    content["model"]["vocab"]["[MASK]"] = last
    for token in content["added_tokens"]:
        token["id"] = last if token["content"] == "[MASK]" else token["id"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    resize(folder, last + 1)
    base = NeuralSparseEncoder.from_pretrained(folder, device="cpu")
    assert base.vocabulary.size == last + 1 == len(base.tokenizer) + 1
    encoder = inference_free(base, base.vocabulary.weight_mask())
    encoder.save_pretrained(str(tmp_path / "saved"))
    plain = SparseEncoder(str(tmp_path / "saved"), device="cpu")
    assert plain.encode_query([f"hello {LAST}"]).to_dense().sum() == 2
    *_, query = export_encoder(encoder, tmp_path / "out", formats=["onnx"])
    found = ArchiveEncoder.open(query).query_weights(TEXTS)
    assert found == [pytest.approx(row) for row in encoder.query_weights(TEXTS)]
    assert json.loads(query.read("idf.json"))["[MASK]"] == 0


def test_a_table_that_would_not_load_again_is_not_saved(tmp_path: Path) -> None:
    base = NeuralSparseEncoder.from_pretrained(build(tmp_path / "padded", "padded"), device="cpu")
    inference_free(base, base.vocabulary.weight_mask()).save_pretrained(str(tmp_path / "saved"))
    again = SparseEncoder(str(tmp_path / "saved"), device="cpu")
    assert again.encode_query([LAST]).to_dense().sum() == 1
    base = NeuralSparseEncoder.from_pretrained(build(tmp_path / "hole", "hole"), device="cpu")
    with pytest.raises(EncoderError, match="sav"):
        inference_free(base, base.vocabulary.weight_mask()).save_pretrained(str(tmp_path / "lost"))
    assert not (tmp_path / "lost").exists()
