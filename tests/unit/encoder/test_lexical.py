"""The closed-form head: a text weighs its own words, before any training."""

from __future__ import annotations

import math
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from oskit.encoder.loader.report import UntrainedProjectionWarning
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.lexical_head import discriminant, fit_lexical_head, idf_biases
from oskit.errors import DataError, EncoderError
from tests import tiny


def headless(folder: Path) -> NeuralSparseEncoder:
    """An encoder at random, but one whose states tell their token more than their place and company."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedProjectionWarning)
        encoder = NeuralSparseEncoder.from_pretrained(tiny.build("bert-headless", folder))
    with torch.no_grad():
        for name, parameter in encoder.anatomy.transformer.model.named_parameters():
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
    unseen = tiny.sentences(20, seed=1)
    assert recovered(encoder, unseen) < 0.4
    fit_lexical_head(encoder, tiny.sentences(300))
    assert recovered(encoder, unseen) > 0.8


def test_the_same_texts_give_the_same_head(tmp_path: Path) -> None:
    heads = []
    for name in ("a", "b"):
        projection = fit_lexical_head(headless(tmp_path / name), tiny.sentences(100)).anatomy.projection
        assert projection is not None
        heads.append(projection.linear.weight.detach())
    assert torch.equal(*heads)


def test_special_tokens_are_never_predicted(encoder: NeuralSparseEncoder) -> None:
    fit_lexical_head(encoder, tiny.sentences(200))
    special = encoder.vocabulary.weight_mask() == 0
    raw = encoder.encode_document(["a concrete bridge"], convert_to_sparse_tensor=False)
    assert special.any()
    assert not np.asarray(raw)[0][special].any()


@pytest.mark.parametrize("texts", [[], ["road"]])
def test_too_few_texts_are_refused(encoder: NeuralSparseEncoder, texts: list[str]) -> None:
    with pytest.raises(DataError, match="texts"):
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


def zipf_sentences(count: int, seed: int = 0) -> list[str]:
    """Words of which some are in nearly all sentences and others in few."""
    draw = random.Random(seed)
    shares = [1 / rank for rank in range(1, len(tiny.WORDS) + 1)]
    return [" ".join(draw.choices(tiny.WORDS, shares, k=8)) for _ in range(count)]


@pytest.fixture
def masked(tmp_path: Path) -> NeuralSparseEncoder:
    """An encoder whose masked-language head predicts the tokens that are there, all with much certainty."""
    encoder = NeuralSparseEncoder.from_pretrained(tiny.build("bert", tmp_path / "masked"))
    model: Any = encoder.anatomy.transformer.model
    with torch.no_grad():
        for name, parameter in model.bert.encoder.named_parameters():
            if "LayerNorm" not in name:
                parameter.mul_(0.1)
        # Else they drown the words of so small a model.
        model.bert.embeddings.position_embeddings.weight.zero_()
        transform = model.cls.predictions.transform.dense
        transform.weight.copy_(torch.eye(len(transform.weight)))
        transform.bias.zero_()
        model.cls.predictions.transform.LayerNorm.weight.mul_(4.0)
        model.cls.predictions.bias.fill_(20.0)
    return encoder


def own_weights(encoder: NeuralSparseEncoder, texts: list[str]) -> dict[str, float]:
    """Mean weight of each word over the texts that contain it."""
    found: dict[str, list[float]] = {}
    for text, weights in zip(texts, encoder.document_weights(texts), strict=True):
        for word in set(text.split()):
            found.setdefault(word, []).append(weights.get(word, 0.0))
    return {word: float(np.mean(values)) for word, values in found.items()}


def test_a_masked_language_head_then_weighs_words_by_the_root_of_their_idf(
    masked: NeuralSparseEncoder,
) -> None:
    texts = zipf_sentences(400)
    before = own_weights(masked, texts)
    assert max(before.values()) < 1.5 * min(before.values())
    assert fit_lexical_head(masked, texts) is masked
    idf = {
        word: np.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        for word in before
        if (df := sum(word in text.split() for text in texts)) >= 30  # enough to know its own logit
    }
    after = own_weights(masked, texts)
    words = sorted(idf)
    expected, found = [0.8 * np.sqrt(idf[word]) for word in words], [after[word] for word in words]
    assert np.corrcoef(expected, [before[word] for word in words])[0, 1] < 0.5
    assert np.corrcoef(expected, found)[0, 1] > 0.9
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.1)


def test_biases_by_hand() -> None:
    weight = torch.tensor([[9.0, 9.0], [4.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    bias = torch.tensor([0.5, 2.0, 0.0, 5.0])
    idf = torch.tensor([0.0, 1.0, 4.0])  # token 0 is special, row 3 is no token
    states = torch.tensor([[-1.0, -1.0], [2.0, 0.0], [0.0, 2.0]])
    fitted = idf_biases(states, torch.tensor([0, 1, 2]), weight, bias, idf)
    # Own logits are 4 * 2 and 1 * 2, those elsewhere 0 at most, so 5 is the mean distance, and counts for one
    # occurrence of each.
    first, second = (8 + 5) / 2, (2 + 5) / 2
    assert math.exp(1.6) - 1 > 0.5 * second, "the second would be in texts that lack it"
    assert fitted.tolist() == pytest.approx([0.5, math.exp(0.8) - 1 - first, -0.5 * second, 5.0])


def test_tokens_that_the_texts_lack_are_guessed_by_where_they_are_silent() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 0.1]])
    states = torch.tensor([[9.0, 1.0], [1.0, 9.0], [9.0, 1.0], [1.0, 9.0]])
    idf = torch.tensor([0.0, 1.0, 1.0, 1.0])
    fitted = idf_biases(states, torch.tensor([1, 2, 1, 2]), weight, torch.zeros(4), idf)
    # Its logit elsewhere is 0.1 * (9 + 1); the others' are 8 higher where they are the text's own.
    assert float(fitted[3]) == pytest.approx(math.exp(0.8) - 1 - (1 + 8))


def test_a_head_without_biases_cannot_be_fitted(masked: NeuralSparseEncoder) -> None:
    masked.anatomy.transformer.model.get_output_embeddings().bias = None  # type: ignore[operator]
    with pytest.raises(EncoderError, match="no biases"):
        fit_lexical_head(masked, zipf_sentences(200))


def test_a_head_that_scales_its_logits_cannot_be_fitted(masked: NeuralSparseEncoder) -> None:
    masked.anatomy.transformer.model.cls.register_forward_hook(lambda _, __, logits: 2 * logits)  # type: ignore[operator,union-attr]
    with pytest.raises(EncoderError, match="does more than multiply"):
        fit_lexical_head(masked, zipf_sentences(200))
