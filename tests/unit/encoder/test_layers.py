"""The first layers alone, with a head that still understands them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge

from oskit.encoder.loader.report import UntrainedProjectionWarning
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.layers import keep_layers, translator
from oskit.errors import DataError, EncoderError
from tests import tiny


def logits(encoder: NeuralSparseEncoder) -> torch.Tensor:
    """Of texts that nothing was fitted to."""
    features: Any = encoder.preprocess(tiny.sentences(20, seed=1))
    with torch.no_grad():
        for module in encoder.anatomy.logit_modules:
            features = module(features)
    found: torch.Tensor = features["token_embeddings"]
    return found


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "xlmr"])
def test_the_head_of_a_cut_encoder_says_nearly_what_it_said(kind: Any, tmp_path: Path) -> None:
    whole = NeuralSparseEncoder.from_pretrained(tiny.build(kind, tmp_path / kind)).eval()
    expected = logits(whole)
    cut, bare = copy.deepcopy(whole), copy.deepcopy(whole)
    keep_layers(cut, 1, tiny.sentences(300))
    for module in bare.anatomy.transformer.model.modules():
        if isinstance(module, torch.nn.ModuleList):
            del module[1:]
    errors = [float((logits(encoder) - expected).square().mean()) for encoder in (cut, bare)]
    assert cut.anatomy.layers == 1
    assert errors[0] < 0.7 * errors[1]


def test_a_random_projection_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.warns(UntrainedProjectionWarning):
        encoder = NeuralSparseEncoder.from_pretrained(tiny.build("bert-headless", tmp_path / "headless"))
    projection: Any = encoder.anatomy.projection
    before = projection.linear.weight.clone()
    keep_layers(encoder, 1, tiny.sentences(50))
    assert encoder.is_untrained
    assert torch.equal(projection.linear.weight, before)


def test_all_layers_are_no_change(tmp_path: Path) -> None:
    encoder = NeuralSparseEncoder.from_pretrained(tiny.build("bert", tmp_path / "bert")).eval()
    before = logits(encoder)
    keep_layers(encoder, 2, tiny.sentences(50))
    assert torch.equal(logits(encoder), before)


def test_more_layers_than_there_are_and_no_texts_are_refused(tmp_path: Path) -> None:
    encoder = NeuralSparseEncoder.from_pretrained(tiny.build("bert", tmp_path / "bert"))
    with pytest.raises(EncoderError, match=r"3 layers are to be kept, but .* has 2"):
        keep_layers(encoder, 3, tiny.sentences(50))
    with pytest.raises(DataError, match="no texts"):
        keep_layers(encoder, 1, [])
    assert encoder.anatomy.layers == 2


def test_the_map_is_that_of_ridge_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(500, 6, generator=generator) + 3
    targets = states @ torch.randn(6, 6, generator=generator) + torch.randn(500, 6, generator=generator)
    weight, bias = translator(states, targets)
    centered = states - states.mean(0)
    alpha = 1e-3 * float((centered.T @ centered).diagonal().mean())
    reference = Ridge(alpha=alpha).fit(states.double().numpy(), targets.double().numpy())
    assert torch.allclose(weight, torch.from_numpy(reference.coef_).float(), atol=1e-4)
    assert torch.allclose(bias, torch.from_numpy(reference.intercept_).float(), atol=1e-3)
