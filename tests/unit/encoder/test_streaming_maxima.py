"""Maxima of logits that are never all there at once, beside the formula that makes them all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oskit.encoder.head.maxima import Tokens, maximum_logits

BATCH, LENGTH, HIDDEN, VOCABULARY = 5, 9, 4, 150
TILES = (None, 1 << 9, 1 << 13)
"""Bytes: everything in one tile, the narrowest tiles there are, and some of each."""


def mask() -> Tensor:
    """Full, empty, padded right, padded left, and with a hole."""
    rows = ["111111111", "000000000", "111100000", "000001111", "110110000"]
    return torch.tensor([[int(bit) for bit in row] for row in rows])


def inputs(shift: float, *, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states, weight and bias in double precision; ``shift`` makes few or many maxima positive."""
    generator = torch.Generator().manual_seed(3)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    hidden, weight, offset = made(BATCH * LENGTH, HIDDEN), made(VOCABULARY, HIDDEN), made(VOCABULARY) + shift
    tensors = [hidden.requires_grad_(), weight.requires_grad_(), offset.requires_grad_()]
    return tensors[0], tensors[1], tensors[2] if bias else None


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor) -> Tensor:
    """What sentence-transformers' SpladePooling does before its logarithm."""
    logits = torch.nn.functional.linear(hidden.view(*counts.shape, -1), weight, bias)
    return (logits * counts.unsqueeze(-1)).relu().max(dim=1).values


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shift", [-5.0, -2.0, 0.0, 9.0], ids=["none", "few", "some", "all"])
def test_values_and_gradients_are_those_of_the_plain_head(shift: float, bias: bool, tile: int | None) -> None:
    tensors = inputs(shift, bias=bias)
    given = [tensor for tensor in tensors if tensor is not None]
    expected = plain(*tensors, mask())
    maxima = maximum_logits(*tensors, Tokens.of_mask(mask()), tile_bytes=tile)
    torch.testing.assert_close(maxima, expected)
    towards = torch.randn(maxima.shape, dtype=torch.double, generator=torch.Generator().manual_seed(4))
    gradients = torch.autograd.grad(maxima, given, towards)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, given, towards))
    with torch.no_grad():
        assert torch.equal(maximum_logits(*tensors, Tokens.of_mask(mask()), tile_bytes=tile), maxima)


@pytest.mark.parametrize("shift", [-2.0, 9.0], ids=["few", "all"])
def test_gradcheck(shift: float) -> None:
    given = zip(inputs(shift), (3 * LENGTH, 70, 70), strict=True)
    tensors = [tensor[:rows].detach().requires_grad_() for tensor, rows in given if tensor is not None]

    def computed(*tensors: Tensor) -> Tensor:
        return maximum_logits(*tensors, Tokens.of_mask(mask()[:3]), tile_bytes=1 << 12)

    assert torch.autograd.gradcheck(computed, tensors)


def test_a_text_without_tokens_weighs_nothing_and_learns_nothing() -> None:
    hidden, weight, bias = inputs(9.0)
    maxima = maximum_logits(hidden, weight, bias, Tokens.of_mask(mask()))
    assert maxima[0].min() > 0
    assert not maxima[1].any()
    maxima[1].sum().backward()
    assert hidden.grad is not None and not hidden.grad.any()
    empty = maximum_logits(hidden, weight, bias, Tokens.of_mask(torch.zeros(BATCH, LENGTH)))
    assert not empty.any()
    empty.sum().backward()


@pytest.mark.parametrize("shift", [0.0, 9.0], ids=["some", "all"])
def test_of_equal_logits_the_first_has_the_gradient(shift: float) -> None:
    _, weight, bias = inputs(shift)
    whole = weight.detach().round(), (bias if bias is None else bias.detach().round())
    same = torch.ones(LENGTH, HIDDEN, dtype=torch.double, requires_grad=True)  # exact in any order of sums
    counts = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 1, 1]])
    maximum_logits(same, *whole, Tokens.of_mask(counts)).sum().backward()
    assert same.grad is not None
    assert same.grad.any(dim=1).tolist() == [False, False, True, *[False] * 6]


def test_texts_without_padding_between_them() -> None:
    hidden, weight, bias = inputs(0.0)
    bounds = torch.tensor([0, 7, 7, 40, 45])
    maxima = maximum_logits(hidden, weight, bias, Tokens.of_bounds(bounds))
    logits = hidden @ weight.T + bias
    nothing = torch.zeros(VOCABULARY)
    expected = torch.stack([logits[:7].amax(0), nothing, logits[7:40].amax(0), logits[40:].amax(0)])
    torch.testing.assert_close(maxima, expected.relu())


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("shift", [-2.0, 9.0], ids=["few", "all"])
def test_a_model_that_diverged_is_seen(shift: float, track: bool) -> None:
    hidden, weight, bias = (tensor.detach() for tensor in inputs(shift) if tensor is not None)
    hidden[2] = torch.nan
    maxima = maximum_logits(hidden, weight.requires_grad_(track), bias, Tokens.of_mask(mask()))
    assert maxima[0].isnan().all()
    assert not maxima[1:].isnan().any()
    if track:
        maxima[1:].sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision(dtype: torch.dtype, autocast: bool) -> None:
    tensors = [tensor.detach().float().requires_grad_() for tensor in inputs(0.0) if tensor is not None]
    given = tensors if autocast else [tensor.to(dtype) for tensor in tensors]
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        maxima = maximum_logits(*given, Tokens.of_mask(mask()))
        expected = plain(*given, mask().to(dtype))
    assert maxima.dtype == expected.dtype == dtype
    torch.testing.assert_close(maxima, expected)
    gradients = torch.autograd.grad(maxima.float().sum(), tensors)
    references = torch.autograd.grad(expected.float().sum(), tensors)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    torch.testing.assert_close(gradients, references, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("shift", [-5.0, 9.0], ids=["few", "all"])
def test_the_logits_are_never_all_there(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when they are computed, nor for the way back."""
    tile, made, saved = 1 << 13, [], []
    linear = torch.nn.functional.linear

    def recorded(*tensors: Tensor) -> Tensor:
        made.append(linear(*tensors))
        return made[-1]

    monkeypatch.setattr(torch.nn.functional, "linear", recorded)
    hidden, weight, bias = inputs(shift)

    def kept(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        maximum_logits(hidden, weight, bias, Tokens.of_mask(mask()), tile_bytes=tile)
    assert sum(logits.numel() for logits in made) > tile // 8
    assert max(logits.numel() * logits.element_size() for logits in made) <= tile
    assert {tuple(tensor.shape) for tensor in saved} == {hidden.shape, weight.shape, (BATCH, VOCABULARY)}
