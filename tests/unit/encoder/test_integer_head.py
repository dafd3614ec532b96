"""The head by 8-bit integers gives fp32's own weights: on hostile states, weights that change, any CPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oskit.encoder.head import integers
from oskit.encoder.head.integers import integers_pay, maxima_of
from oskit.encoder.head.maxima import Tokens, maximum_logits
from oskit.encoder.model import NeuralSparseEncoder
from tests import tiny

HIDDEN, WIDTH = 48, 2100
LENGTHS = [1, 7, 0, 120, 5, 5, 64, 700]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Integers from the first token on, whatever they cost here; rows of each product that was made."""
    made: list[int] = []
    multiply = torch._int_mm

    def counted(left: Tensor, right: Tensor) -> Tensor:
        made.append(len(left))
        return multiply(left, right)

    monkeypatch.setattr(integers, "integers_pay", lambda _: True)
    monkeypatch.setattr(integers, "ENOUGH_TOKENS", 0)
    monkeypatch.setattr(torch, "_int_mm", counted)
    yield made


def inputs(*, bias: float = -4.0) -> tuple[nn.Linear, Tensor, Tokens]:
    """A projection of which few columns become positive, hidden states, and texts of :data:`LENGTHS`."""
    random = torch.Generator().manual_seed(1)
    projection = nn.Linear(HIDDEN, WIDTH).requires_grad_(False)
    projection.weight.copy_(torch.randn(WIDTH, HIDDEN, generator=random) * 0.15)
    projection.bias.copy_(bias + torch.randn(WIDTH, generator=random))
    states = torch.randn(sum(LENGTHS), HIDDEN, generator=random)
    return projection, states, Tokens(torch.arange(len(states)), LENGTHS)


def check(projection: nn.Linear, states: Tensor, tokens: Tokens) -> Tensor:
    """That integers and fp32 agree to what fp32 rounds, and on what is positive unless that is rounding."""
    with torch.no_grad():
        found = maxima_of(projection, states, tokens)
        wanted = maximum_logits(states, projection.weight, projection.bias, tokens)
    norms = torch.linalg.vector_norm(states.double(), dim=1)
    longest = torch.tensor([part.max() if len(part) else 0 for part in norms.split(tokens.lengths)])
    weights = torch.linalg.vector_norm(projection.weight.double(), dim=1)
    rounding = 1e-6 * longest[:, None] * weights + 1e-6 * wanted
    assert torch.equal(found.isnan(), wanted.isnan())
    apart = (found - wanted).abs()
    assert not (apart > rounding).any(), apart.max()
    assert torch.equal((found > 0) | (wanted <= rounding), (wanted > 0) | (wanted <= rounding))
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("factor", [1e-30, 1e-21, 1e-9, 1.0, 1e9, 1e17])
def test_what_is_barely_positive_is_found(products: list[int], factor: float, bias: bool) -> None:
    """Integers alone give half of these columns a negative maximum; states and weights are of any size."""
    random = torch.Generator().manual_seed(5)
    states, weight = (torch.randn(n, HIDDEN, generator=random, dtype=torch.double) for n in (40, WIDTH))
    states[3, 7], weight[::50, 9] = 30, 20  # outliers
    states[:, 0], weight[:, 0] = 1, 0
    barely = torch.arange(WIDTH) % 10 == 0
    lengths = torch.linalg.vector_norm(states, dim=1).max() * torch.linalg.vector_norm(weight, dim=1)
    largest = (states @ weight.T).amax(dim=0)
    offset = torch.where(barely, -largest + 1e-4 * lengths, -4 * largest)
    projection = nn.Linear(HIDDEN, WIDTH, bias=bias).requires_grad_(False)
    if bias:
        projection.bias.copy_(offset * factor)
    else:  # a channel in its place
        weight[:, 0] = offset
    projection.weight.copy_(weight)
    found = check(projection, (states * factor).float(), Tokens(torch.arange(40), [40]))
    assert torch.equal(found[0] > 0, barely)
    if factor == 1:
        projection.weight[:, :] *= torch.logspace(-20, 15, WIDTH)[:, None]
        if bias:
            projection.bias *= torch.logspace(-20, 15, WIDTH)
        found = check(projection, states.float(), Tokens(torch.arange(40), [40]))
        assert torch.equal(found[0] > 0, barely)
    assert products


def test_roundings_that_all_add_up(products: list[int]) -> None:
    """All of the weights to the same side, or all of the states, as random ones never do."""
    even, halves = torch.ones(HIDDEN), torch.arange(HIDDEN) + 0.49
    of_weights, of_states = halves / 63, halves / 127
    of_weights[0] = of_states[0] = 1
    for state, row in ((even, of_weights), (of_states, even)):
        projection = nn.Linear(HIDDEN, WIDTH).requires_grad_(False)
        projection.weight[:], projection.bias[:] = -1, -9
        projection.weight[5], projection.bias[5] = row, -0.999 * (state @ row)
        found = check(projection, state[None], Tokens(torch.arange(1), [1]))
        assert found[0].nonzero().tolist() == [[5]]
    assert products


def test_texts_of_any_length_in_a_batch(products: list[int]) -> None:
    found = check(*inputs())
    assert found.any(dim=1).tolist() == [length > 0 for length in LENGTHS]
    assert products


def test_what_is_no_number_is_as_in_fp32(products: list[int]) -> None:
    for value in (float("nan"), float("inf")):
        projection, states, tokens = inputs()
        states[3, 5] = value
        found = maxima_of(projection, states, tokens)
        wanted = maximum_logits(states, projection.weight, projection.bias, tokens)
        torch.testing.assert_close(found, wanted, equal_nan=True)
        projection.weight[9, 1], states[3, 5] = value, 1
        found = maxima_of(projection, states, tokens)
        wanted = maximum_logits(states, projection.weight, projection.bias, tokens)
        torch.testing.assert_close(found, wanted, equal_nan=True)


def test_weights_that_change_count_at_once(products: list[int]) -> None:
    """Also where no version counter sees it, as in averages of weights and in pruning."""
    projection, states, tokens = inputs()
    before = check(projection, states, tokens)
    projection.weight.data[1000:] *= 3
    assert not torch.equal(check(projection, states, tokens), before)
    projection.weight.data[7, 3] += 100
    assert check(projection, states, tokens)[0, 7] > 1 or states[0, 3] < 0
    projection.bias.data += 1
    check(projection, states, tokens)
    projection.weight = nn.Parameter(projection.weight.flip(0), requires_grad=False)
    check(projection, states, tokens)
    assert products


def test_it_stops_where_too_many_columns_are_left(
    products: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integers, "ENOUGH_TOKENS", 1000)
    projection, states, tokens = inputs(bias=0.0)
    counts = []
    for batch in range(20):
        if batch == 12:
            projection.bias -= 5
        check(projection, states, tokens)
        counts.append(len(products))
    tries = np.flatnonzero(np.diff([0, *counts]))
    # It waits for some 1,000 tokens of 902 a batch, 1,000, 2,000 and 4,000; then the head has become sparse.
    assert tries.tolist() == [2, 5, 9, 15, 16, 17, 18, 19]


def test_training_and_narrow_numbers_go_the_usual_way(products: list[int]) -> None:
    projection, states, tokens = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert maxima_of(projection, states, tokens).dtype == torch.bfloat16
    assert maxima_of(projection.double(), states.double(), tokens).dtype == torch.float64
    projection.float().requires_grad_()
    maxima_of(projection, states, tokens).sum().backward()
    assert projection.weight.grad is not None and projection.weight.grad.any()
    assert not products


def test_settings_of_precision_are_heeded(products: list[int]) -> None:
    """In torch's older way and in its newer one; the two may not be mixed."""
    inputs_ = inputs()
    try:
        torch.set_float32_matmul_precision("medium")
        maxima_of(*inputs_)
        assert not products
    finally:
        torch.set_float32_matmul_precision("highest")
    check(*inputs_)
    assert products
    if not hasattr(torch.backends.mkldnn, "matmul"):  # an older torch
        return
    settings: Any = torch.backends
    for own, precision in ((settings.cuda.matmul, "tf32"), (settings.mkldnn.matmul, "bf16")):
        products.clear()
        before = own.fp32_precision
        try:
            own.fp32_precision = precision
            maxima_of(*inputs_)
            assert bool(products) == (own is settings.cuda.matmul), "of another device, it does not matter"
        finally:
            own.fp32_precision = before


def test_a_torch_that_cannot_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = torch._int_mm

    def saturating(left: Tensor, right: Tensor) -> Tensor:
        """As 16-bit sums of two products do, on a CPU where the weights' 7 bits are not enough."""
        pairs = left.short()[:, :, None] * right.short()[None]
        halves = (pairs[:, ::2].int() + pairs[:, 1::2].int()).clamp(-(2**13), 2**13 - 1)
        return halves.sum(dim=1).int()

    def refusing(left: Tensor, right: Tensor) -> Tensor:
        raise RuntimeError("not implemented for this CPU")

    for broken in (saturating, refusing, None):
        if broken is None:
            monkeypatch.delattr(torch, "_int_mm")
        else:
            monkeypatch.setattr(torch, "_int_mm", broken)
        assert integers_pay.__wrapped__(32) is False
    monkeypatch.setattr(torch, "_int_mm", multiply, raising=False)
    assert integers_pay.__wrapped__(32) in (True, False)


def test_an_encoder_gives_the_same_vectors_in_any_thread(products: list[int], tmp_path: Path) -> None:
    encoder = NeuralSparseEncoder.from_pretrained(tiny.build("bert", tmp_path), device="cpu")
    head: Any = encoder.anatomy.output
    with torch.no_grad():
        head.bias -= 0.8 * float(encoder.document_matrix(["hello world, the old bridge"]).expm1().max())
    texts = [*tiny.sentences(40), "", "long bridge " * 300]
    encoder.streaming = False
    expected = encoder.document_matrix(texts)
    encoder.streaming = True
    assert not products or products.clear() is None
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoder.document_matrix(texts), range(8)):
            assert found.nnz and abs(found - expected).max() < 1e-5
    assert products
