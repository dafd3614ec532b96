"""The encoder as training starts from it."""

from __future__ import annotations

import pytest
import torch

from oskit.training.recipe import EncoderPart
from oskit.training.student import load_student
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
