"""The encoder as training starts from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import EncoderError
from oskit.training.loop.student import finish_student, load_student, plain_attention
from oskit.training.recipe.recipe import EncoderPart
from tests import tiny


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_without_dropout_training_computes_what_inference_does(kind, tmp_path):
    folder = str(tiny.build(kind, tmp_path / kind))
    usual, exact = (
        load_student(EncoderPart(name=folder, dropout=dropout), seed=0).train() for dropout in (None, 0.0)
    )
    texts = ["the old stone bridge", "water"]
    expected = exact.eval().encode(texts, convert_to_sparse_tensor=False)
    with torch.no_grad():
        for encoder, same in ((usual, False), (exact, True)):
            encoder.train()
            torch.manual_seed(0)
            features = encoder.preprocess(texts)
            found = encoder(features)["sentence_embedding"]
            assert torch.allclose(found, expected, atol=1e-5) is same


def test_the_saved_configuration_keeps_its_dropout(tmp_path):
    folder = tiny.build("bert", tmp_path / "bert")
    encoder = load_student(EncoderPart(name=str(folder), dropout=0.0), seed=0)
    encoder.save_pretrained(str(tmp_path / "saved"))
    assert '"hidden_dropout_prob": 0.1' in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize("saved", [False, True])
def test_a_lexical_head_is_for_bases_not_for_encoders_that_were_trained(saved, tmp_path):
    folder = tiny.build("bert", tmp_path / "bert")
    encoder = NeuralSparseEncoder.from_pretrained(folder)
    with torch.no_grad():
        encoder.anatomy.transformer.model.get_output_embeddings().bias.fill_(50.0)
    if saved:
        encoder.save_pretrained(str(tmp_path / "kept"))
    else:
        encoder.anatomy.transformer.model.save_pretrained(folder)
    part = EncoderPart(name=str(tmp_path / "kept" if saved else folder), head="lexical")
    passages = Dataset.from_dict({"text": ["the old stone bridge over the water"] * 20})
    found = finish_student(load_student(part, seed=0), part, passages=passages, idf=None, seed=0)
    bias = found.anatomy.transformer.model.get_output_embeddings().bias
    assert bool((bias == 50).all()) is saved


def test_a_base_that_cannot_get_a_dense_head_is_refused_before_data_is_read(tmp_path):
    folder = tiny.build("bert", tmp_path / "bert")
    with pytest.raises(EncoderError, match="masked-language head"):
        load_student(EncoderPart(name=str(folder), head="dense"), seed=0)
    NeuralSparseEncoder.from_pretrained(folder).save_pretrained(str(tmp_path / "kept"))
    load_student(EncoderPart(name=str(tmp_path / "kept"), head="dense"), seed=0)  # it has its head


def test_plain_attention_computes_the_same_and_is_not_saved(tmp_path):
    folder = tiny.build("bert", tmp_path / "base")
    encoder, plain = (NeuralSparseEncoder.from_pretrained(folder, seed=0) for _ in range(2))
    plain_attention(plain, 129)
    assert plain.anatomy.transformer.model.config._attn_implementation != "eager", "long texts"
    plain_attention(plain, 128)
    assert plain.anatomy.transformer.model.config._attn_implementation == "eager"
    texts = [*tiny.WORDS[:4], " ".join(tiny.WORDS[:9])]
    np.testing.assert_allclose(
        plain.document_matrix(texts).toarray(), encoder.document_matrix(texts).toarray(), atol=1e-5
    )
    plain.save_pretrained(str(tmp_path / "saved"))
    assert "eager" not in "".join(path.read_text() for path in (tmp_path / "saved").rglob("*.json"))
