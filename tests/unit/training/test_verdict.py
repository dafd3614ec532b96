"""What a run says of its encoder, as far as its queries can tell."""

from __future__ import annotations

import pytest

from oskit.training.report.figures import Figures
from oskit.training.report.verdict import gains, is_worse, verdict


def figures(own: float, pooled: float | None, flops: float) -> Figures:
    """Forty queries that are all alike up to a little noise."""
    per_query = {str(number): own + number % 2 / 100 for number in range(40)}
    pooled_per_query = {} if pooled is None else dict.fromkeys(per_query, pooled)
    return Figures(own, own, own, flops, 9, 90, 40, 400, per_query, pooled, pooled_per_query)


@pytest.mark.parametrize(
    ("before", "after", "worse", "told"),
    [
        # The case of the issue: the pairs alone called an encoder worse that judgements called better.
        ((0.71, 0.40), (0.69, 0.45), False, "better than before by pooled judgements; by own answers alone it"
         " is WORSE than before, at FLOPS 1.00 in place of 4.00"),
        ((0.71, 0.40), (0.75, 0.45), False, "better than before, by pooled judgements and by own answers"),
        ((0.71, 0.40), (0.71, 0.40), False, "not to be told from before, by pooled judgements and by own"),
        ((0.71, 0.40), (0.69, 0.35), True, "WORSE than before, by pooled judgements and by own answers"),
        ((0.71, 0.40), (0.71, 0.35), True, "by own answers alone it is not to be told from before"),
        ((0.71, 0.40), (0.75, 0.35), False, "WORSE than before by pooled judgements; by own answers"),
        ((0.71, None), (0.69, None), True, "the encoder is WORSE than before, at FLOPS"),
        ((0.71, None), (0.75, None), False, "the encoder is better than before, at FLOPS"),
    ],
)  # fmt: skip
def test_judgements_that_disagree_are_no_verdict(
    before: tuple[float, float | None], after: tuple[float, float | None], worse: bool, told: str
) -> None:
    first, last = figures(*before, 4.0), figures(*after, 1.0)
    gain, own = gains(first, last)
    assert (own is None) == (after[1] is None)
    assert is_worse(gain, own) == worse
    assert told in verdict(first, last, gain, own)
