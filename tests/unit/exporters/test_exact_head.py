"""The int8 head gives fp32's own weights: on hostile states, in any batch, within the server's limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import Tensor, nn

from exporters import export_encoder
from exporters.exact_head import Feeds, share_of_candidates
from exporters.graph import BakedEncoder
from exporters.onnx import write_onnx
from oskit.archive.backends import ATTENTION_MASK, INPUT_IDS, OUTPUT
from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.text_encoder import Activation
from oskit.errors import UsageError

WIDTH, HIDDEN, TOKENS = 2500, 32, 64
CALM = range(8, TOKENS)
OUTLIER, ZERO, TINY, HUGE, EQUAL, OPPOSITE, FLAT, NAN = range(8)


class States(nn.Module):
    """An encoder whose hidden states are a table's rows, and a projection with columns of every kind."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        states = torch.randn(TOKENS, HIDDEN, generator=random)
        states[OUTLIER, 3] = 1e4
        states[ZERO], states[TINY], states[FLAT] = 0, 1e-30, 1
        states[HUGE] *= 1e3
        states[OPPOSITE] = -states[EQUAL]
        states[NAN, 5] = float("nan")
        self.table = nn.Embedding.from_pretrained(states)
        self.decoder = nn.Linear(HIDDEN, WIDTH, bias=bias)
        with torch.no_grad():
            weight = torch.randn(WIDTH, HIDDEN, generator=random) * 0.2
            if not bias:  # a channel in its place, so that few columns are positive
                states[CALM.start :, 0], weight[:, 0] = 4, -1
            weight[7], weight[11], weight[13, 0] = 0, 1e-20, 1e4
            weight[17], weight[17, :2] = 0, torch.tensor([1.0, -1.0])  # exactly 0 for FLAT
            self.decoder.weight.copy_(weight)
            if bias:
                self.decoder.bias.copy_(-4 + torch.randn(WIDTH, generator=random))
                self.decoder.bias[7], self.decoder.bias[17] = 1.5, 0

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.decoder(self.table(features["input_ids"]))
        return {**features, "token_embeddings": logits}


def feeds(rows: list[list[int]], length: int | None = None) -> Feeds:
    longest = length or max(map(len, rows))
    ids = np.full((len(rows), longest), NAN, np.int64)  # what padding holds must not matter
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {INPUT_IDS: ids, ATTENTION_MASK: mask}


def written(path: Path, module: nn.Module, activation: Activation = "relu") -> onnxruntime.InferenceSession:
    baked = BakedEncoder(
        [module], pooling="max", activation=activation, weight_mask=torch.ones(WIDTH), around=0
    ).eval()
    calm = [feeds([[i]]) for i in CALM]
    example = [torch.from_numpy(calm[0][name]).repeat(2, 3) for name in (INPUT_IDS, ATTENTION_MASK)]
    assert write_onnx(baked, example[0], example[1], path, samples=calm)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def expected(module: nn.Module, batch: Feeds, activation: Activation) -> Any:
    pooling = SpladePooling(pooling_strategy="max", activation_function=activation)
    features = {"input_ids": torch.from_numpy(batch[INPUT_IDS])}
    features["attention_mask"] = torch.from_numpy(batch[ATTENTION_MASK])
    with torch.no_grad():
        logits = module(features)
        padding = (features["attention_mask"] == 0).unsqueeze(-1)
        logits["token_embeddings"] = logits["token_embeddings"].masked_fill(padding, 0)
        return pooling(logits)["sentence_embedding"].to_dense().numpy()


ROWS = [
    *([i] for i in CALM),
    list(CALM),
    [OUTLIER],
    [OUTLIER, *CALM],
    [ZERO],
    [TINY],
    [TINY, ZERO, 9],
    [HUGE, 10],
    [EQUAL] * 40,
    [EQUAL, OPPOSITE],
    [FLAT],
    [FLAT] * 3,
    [int(i) for i in np.random.default_rng(2).choice(list(CALM), 512)],
]


@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_hostile_states_have_fp32s_weights_in_any_batch(
    bias: bool, activation: Activation, tmp_path: Path
) -> None:
    module = States(bias=bias)
    session = written(tmp_path / "model.onnx", module, activation)
    wanted = np.concatenate([expected(module, feeds([row]), activation) for row in ROWS])
    assert (wanted > 0).sum(axis=1)[0] < WIDTH / 10
    alone = np.concatenate([session.run([OUTPUT], feeds([row]))[0] for row in ROWS])
    together = session.run([OUTPUT], feeds(ROWS, length=520))[0]
    # What fp32 rounds in a logit grows with the state, and is the same whoever multiplies.
    table = module.table.weight.detach().abs().amax(1).numpy()
    rounding = np.array([[2e-6 + 2e-7 * table[row].max()] for row in ROWS])
    for found in (alone, together):
        excess = np.abs(found - wanted) - rounding - 2e-5 * wanted
        assert excess.max() <= 0, np.unravel_index(excess.argmax(), excess.shape)
    text_of_nothing = session.run([OUTPUT], feeds([[], [9]]))[0]
    assert not text_of_nothing[0].any()
    np.testing.assert_allclose(text_of_nothing[1], wanted[ROWS.index([9])], rtol=2e-5, atol=2e-6)


def test_a_state_that_is_no_number_leaves_no_column_to_int8(tmp_path: Path) -> None:
    written(tmp_path / "model.onnx", States(bias=True))
    model = onnx.load(str(tmp_path / "model.onnx"))
    few = share_of_candidates(model, [feeds([[9]])])
    assert 0 < few < 0.25
    assert share_of_candidates(model, [feeds([[9, NAN]]), feeds([[9], [NAN]])]) == 1
    assert share_of_candidates(model, [feeds([[9], [9]], length=5)]) == few


def test_the_bound_is_of_integers_that_no_cpu_saturates(tmp_path: Path) -> None:
    """U8S8 without VNNI adds two products in 16 bits; ONNX Runtime 1.16.3 has opset 19 and IR version 9."""
    written(tmp_path / "model.onnx", States(bias=True))
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert model.opset_import[0].version <= 17
    assert model.ir_version <= 9
    tiles = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    ]
    assert sum(tile.shape[1] for tile in tiles) == WIDTH
    assert 2 * 255 * max(int(np.abs(tile.astype(int)).max()) for tile in tiles) < 2**15
    assert sum(tensor.dims == [WIDTH, HIDDEN] for tensor in model.graph.initializer) == 1


def test_an_export_has_the_head_where_it_pays_and_says_so(tmp_path: Path) -> None:
    path = tiny.build("bert", tmp_path / "encoder")
    encoder = SparseEncoder(str(path), device="cpu")
    texts = ["hello world", "the old bridge over the water", "", "a"]
    (dense,) = export_encoder(encoder, tmp_path / "dense", formats=["onnx"])
    assert dense.manifest is not None
    assert dense.manifest.head is None  # half of a random head's columns are positive
    with torch.no_grad():
        encoder[0].model.get_output_embeddings().bias.sub_(encoder_peak(encoder) * 0.8)
    exact, plain = (
        export_encoder(encoder, tmp_path / head, formats=["onnx"], head=head)[0] for head in ("auto", "plain")
    )
    assert exact.manifest is not None
    assert plain.manifest is not None
    assert (exact.manifest.head, plain.manifest.head) == ("exact-int8", None)
    found, wanted = (
        ArchiveEncoder.open(archive).document_matrix(texts).toarray() for archive in (exact, plain)
    )
    assert wanted.any()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(UsageError, match="plain head"):
        export_encoder(encoder, tmp_path / "t", formats=["torchscript"], head="plain")


def encoder_peak(encoder: SparseEncoder) -> float:
    weights = encoder.encode_document(["hello world, the old bridge over the water"]).to_dense()
    return float(torch.expm1(weights).max())
