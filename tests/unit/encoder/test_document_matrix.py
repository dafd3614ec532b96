"""Documents to sparse rows: the numbers of sentence-transformers, in any precision, within bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sentence_transformers import SparseEncoder

from oskit.archive.backends.runtime import Runtime
from oskit.encoder import pipeline
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.opening import open_encoder
from oskit.errors import UsageError
from tests import tiny

TEXTS = [*tiny.sentences(20), "", "road", "long bridge " * 300, " ", "hello hello"]
BF16 = 0.998
"""Least cosine of a text's weights in bfloat16 with those in float32."""


@pytest.fixture(params=["relu", "log1p_relu"], scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    return tiny.build_inference_free(root / "encoder", activation=request.param)


@pytest.fixture
def encoder(folder: Path) -> NeuralSparseEncoder:
    return NeuralSparseEncoder.from_pretrained(folder, device="cpu")


def reference(folder: Path, encoder: NeuralSparseEncoder) -> np.ndarray:
    """What sentence-transformers computes, special tokens and texts without tokens left out."""
    theirs = SparseEncoder(str(folder), device="cpu")
    weights = theirs.encode_document(TEXTS, convert_to_sparse_tensor=False).numpy()
    has_tokens = np.array([bool(ids) for ids in encoder.tokenize_documents(TEXTS)])[:, None]
    return weights * encoder.vocabulary.weight_mask() * has_tokens


@pytest.mark.parametrize("streaming", [True, False])
def test_fp32_is_sentence_transformers(folder: Path, encoder: NeuralSparseEncoder, streaming: bool) -> None:
    encoder.streaming = streaming
    expected, found = reference(folder, encoder), encoder.document_matrix(TEXTS)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-5)
    assert found.dtype == np.float32 and found.has_sorted_indices and (found.data > 0).all()
    encoder.precision = "auto"  # on a CPU nothing else
    assert abs(encoder.document_matrix(TEXTS) - found).max() == 0


def test_bf16_stays_close_and_is_taken_only_if_asked(folder: Path, encoder: NeuralSparseEncoder) -> None:
    expected = reference(folder, encoder)
    encoder.precision = "bf16"
    found = encoder.document_matrix(TEXTS)
    rows = expected.any(axis=1)
    one, other = found.toarray()[rows], expected[rows]
    cosines = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosines.min() > BF16 and found.dtype == np.float32 and np.abs(one - other).max() > 1e-5
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    encoder.precision = "fp16"  # type: ignore[assignment]
    with pytest.raises(UsageError, match="fp16"):
        encoder.document_matrix(TEXTS)


def test_what_a_command_asks_for_is_what_it_computes_in(folder: Path) -> None:
    """Without an option the weights as they are, as archives do; ``auto`` leaves it to the encoder."""
    asked = {None: "fp32", "fp32": "fp32", "auto": "auto", "bf16": "bf16"}
    for precision, expected in asked.items():
        opened = open_encoder(folder, Runtime(precision=precision, device="cpu"))  # type: ignore[arg-type]
        assert isinstance(opened, NeuralSparseEncoder) and opened.precision == expected
    assert NeuralSparseEncoder.from_pretrained(folder, device="cpu").precision == "fp32"


def test_a_batch_is_bounded_by_its_tokens(
    encoder: NeuralSparseEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One huge text among many small ones neither pads them nor makes a batch of all of them."""
    texts = [*tiny.sentences(60), "bridge " * 600]
    expected = encoder.document_matrix(texts)
    monkeypatch.setattr(pipeline, "TOKENS_ON_A_CPU", 128)
    shapes: list[Sequence[int]] = []
    encoder.anatomy.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, arguments: shapes.append(arguments[0].shape)
    )
    found = encoder.document_matrix(texts)
    assert abs(found - expected).max() < 1e-5
    assert all(count == 1 or count * length <= 128 for count, length in shapes)
    assert max(count for count, _ in shapes) > 1


def test_without_the_streaming_head_logits_bound_a_batch(encoder: NeuralSparseEncoder) -> None:
    streamed = encoder.token_budget
    encoder.streaming = False
    assert encoder.token_budget * encoder.vocabulary.size * 4 <= 400_000_000
    encoder.streaming = True
    assert encoder.token_budget == streamed


def test_several_threads_at_once(encoder: NeuralSparseEncoder) -> None:
    expected = encoder.document_matrix(TEXTS)

    def work(_: int) -> csr_matrix:
        return encoder.document_matrix(TEXTS)

    with ThreadPoolExecutor(4) as pool:
        assert all(abs(found - expected).max() < 1e-5 for found in pool.map(work, range(8)))
