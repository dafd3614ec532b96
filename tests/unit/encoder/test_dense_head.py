"""The head in closed form for dense models: vectors compare as mean states do, before any training."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from exporters.export import export_encoder
from oskit.archive.archive import open_archive
from oskit.encoder.loader.report import UntrainedProjectionWarning
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.dense_head import fit_dense_head
from oskit.encoder.surgery.layers import keep_layers
from oskit.encoder.surgery.lexical_head import fit_lexical_head
from oskit.errors import DataError, EncoderError
from tests import tiny

TEXTS = tiny.sentences(120, seed=3)
UNSEEN = [" ".join(tiny.sentences(1 + number % 3, seed=100 + number)) for number in range(40)]


def load(folder: Path) -> NeuralSparseEncoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedProjectionWarning)
        return NeuralSparseEncoder.from_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.build("bert-headless", tmp_path / "dense")


def cosines(folder: Path) -> np.ndarray:
    """Those of sentence-transformers' mean pooling, less the mean of the fitted texts.

    A layer norm takes the mean over dimensions from each vector besides, which counts where these are few.
    """
    transformer = Transformer(str(folder))
    dense = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")]
    )
    center = standardised(dense.encode(TEXTS)).mean(axis=0)
    vectors = standardised(standardised(dense.encode(UNSEEN)) - center)
    found: np.ndarray = vectors @ vectors.T
    return found


def standardised(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def test_vectors_compare_as_the_dense_model_does(folder: Path) -> None:
    wanted = cosines(folder)
    before = load(folder).document_matrix(UNSEEN)
    scores = np.zeros_like(wanted)
    for seed in range(10):  # a vocabulary of some hundred tokens has few directions
        matrix = fit_dense_head(load(folder), TEXTS, active=30, seed=seed).document_matrix(UNSEEN)
        scores += (matrix @ matrix.T).toarray()
    assert agreement(scores, wanted) > 0.95
    assert agreement((before @ before.T).toarray(), wanted) < 0.5


def agreement(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Rank correlation of each text's scores, in the mean."""
    return float(np.mean([spearmanr(*pair).statistic for pair in zip(scores, wanted, strict=True)]))


def test_as_many_dimensions_as_asked_for_and_no_special_token(folder: Path) -> None:
    encoder = fit_dense_head(load(folder), TEXTS, active=20)
    matrix = encoder.document_matrix(TEXTS)
    assert matrix.nnz / len(TEXTS) == pytest.approx(20, rel=0.05)
    special = encoder.vocabulary.weight_mask() == 0
    assert special.any() and not matrix[:, special].nnz
    assert not encoder.is_untrained


def test_a_model_that_is_refused_stays_as_it_was(tmp_path: Path, folder: Path) -> None:
    masked = load(tiny.build("bert", tmp_path / "masked"))
    with pytest.raises(EncoderError, match="masked-language head"):
        fit_dense_head(masked, TEXTS)
    encoder = load(folder)
    before = encoder.document_matrix(UNSEEN)
    with pytest.raises(DataError, match="no texts"):
        fit_dense_head(encoder, [])
    assert (encoder.document_matrix(UNSEEN) != before).nnz == 0
    assert encoder.anatomy.layers == load(folder).anatomy.layers


def test_what_its_tokens_are_is_known_wherever_it_goes(tmp_path: Path, folder: Path) -> None:
    fit_dense_head(load(folder), TEXTS, active=20).save_pretrained(str(tmp_path / "saved"))
    encoder = load(tmp_path / "saved")
    with pytest.raises(EncoderError, match=r"last layer .* pools"):
        keep_layers(encoder, 1, TEXTS)
    before = encoder.document_matrix(UNSEEN)
    with pytest.raises(EncoderError, match="names of directions"):
        fit_lexical_head(encoder, TEXTS)
    assert (encoder.document_matrix(UNSEEN) != before).nnz == 0
    (archive,) = export_encoder(encoder, tmp_path / "out", formats=["onnx"])
    manifest = open_archive(archive.path).manifest
    assert manifest is not None and manifest.vocabulary.directions
    assert any("directions" in note for note in manifest.notes)
