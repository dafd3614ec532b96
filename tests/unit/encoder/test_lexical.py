"""The closed-form head: a text weighs its own words, before any training."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from oskit.encoder.heads import projection_of
from oskit.encoder.lexical import discriminant, fit_lexical_head
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.report import UntrainedProjectionWarning
from oskit.errors import DataError, EncoderError
from tests import tiny


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(tiny.WORDS, k=8)) for _ in range(count)]


def headless(folder: Path) -> NeuralSparseEncoder:
    """An encoder at random, but one whose states tell their token more than their place and company."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedProjectionWarning)
        encoder = NeuralSparseEncoder.from_pretrained(tiny.build("bert-headless", folder))
    with torch.no_grad():
        for name, parameter in encoder.document_transformer.model.named_parameters():
            if "word_embeddings" not in name and "LayerNorm" not in name:
                parameter.mul_(0.3)
    return encoder


@pytest.fixture
def encoder(tmp_path: Path) -> NeuralSparseEncoder:
    return headless(tmp_path / "headless")


def recovered(encoder: NeuralSparseEncoder, texts: list[str]) -> float:
    """Share of the words of texts that are among the heaviest tokens, as many as the text has words."""
    shares = []
    for text, weights in zip(texts, encoder.document_weights(texts), strict=True):
        words = set(text.split())
        shares.append(len(words & set(list(weights)[: len(words)])) / len(words))
    return float(np.mean(shares))


def test_words_that_were_not_fitted_to_weigh_most(encoder: NeuralSparseEncoder) -> None:
    unseen = sentences(20, seed=1)
    assert recovered(encoder, unseen) < 0.4
    fit_lexical_head(encoder, sentences(300))
    assert recovered(encoder, unseen) > 0.8


def test_it_counts_as_a_head_and_survives_saving(encoder: NeuralSparseEncoder, tmp_path: Path) -> None:
    assert encoder.is_untrained
    assert fit_lexical_head(encoder, sentences(200)) is encoder
    assert (encoder.is_untrained, encoder.load_report.head) == (False, "pretrained")
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = NeuralSparseEncoder.from_pretrained(tmp_path / "saved")
    assert again.document_weights(["concrete bridge"]) == encoder.document_weights(["concrete bridge"])


def test_the_same_texts_give_the_same_head(tmp_path: Path) -> None:
    heads = []
    for name in ("a", "b"):
        projection = projection_of(
            fit_lexical_head(headless(tmp_path / name), sentences(100)).document_modules
        )
        assert projection is not None
        heads.append(projection.linear.weight.detach())
    assert torch.equal(*heads)


def test_special_tokens_are_never_predicted(encoder: NeuralSparseEncoder) -> None:
    fit_lexical_head(encoder, sentences(200))
    special = encoder.vocabulary.weight_mask() == 0
    raw = encoder.encode_document(["a concrete bridge"], convert_to_sparse_tensor=False)
    assert special.any()
    assert not np.asarray(raw)[0][special].any()


def test_only_a_projection_of_its_own_is_fitted(tmp_path: Path, encoder: NeuralSparseEncoder) -> None:
    masked = NeuralSparseEncoder.from_pretrained(tiny.build("bert", tmp_path / "masked"))
    with pytest.raises(EncoderError, match="masked-language head"):
        fit_lexical_head(masked, sentences(50))
    for texts in ([], ["road"]):
        with pytest.raises(DataError):
            fit_lexical_head(encoder, texts)


def test_it_decides_as_linear_discriminant_analysis_does() -> None:
    generator = torch.Generator().manual_seed(0)
    size, hidden, each = 6, 4, 2000
    means = 2 * torch.randn(size, hidden, generator=generator)
    ids = torch.arange(1, size).repeat_interleave(each)  # token 0 is special and comes at a place of its own
    mixing = torch.randn(hidden, hidden, generator=generator)
    states = means[ids] + torch.randn(len(ids), hidden, generator=generator) @ mixing
    special = torch.zeros(size, dtype=torch.bool)
    special[0] = True
    weight, bias = discriminant(states, ids, torch.eye(size), special)
    ours = (states @ weight.T + bias)[:, 1:].argmax(1) + 1
    theirs = LinearDiscriminantAnalysis(priors=[1 / (size - 1)] * (size - 1)).fit(states, ids).predict(states)
    assert np.mean(ours.numpy() == theirs) > 0.98


def test_own_tokens_have_a_logit_of_two_in_the_median() -> None:
    generator = torch.Generator().manual_seed(0)
    size, hidden = 20, 8
    ids = torch.randint(0, size, (5000,), generator=generator)
    states = 5 * torch.randn(size, hidden, generator=generator)[ids]
    states += 0.5 * torch.randn(len(ids), hidden, generator=generator)
    weight, bias = discriminant(states, ids, torch.eye(size), torch.zeros(size, dtype=torch.bool))
    own = (states @ weight.T + bias).gather(1, ids[:, None])[:, 0]
    assert own.median() == pytest.approx(2.0, abs=1e-3)
    assert float((own > 0).float().mean()) >= 0.9
