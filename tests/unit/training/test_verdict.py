"""What a run says of its encoder, as far as its queries can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oskit.training.data.facts import DataFacts
from oskit.training.report.choice import Candidate, Choice
from oskit.training.report.figures import Figures
from oskit.training.report.lengths import Lengths
from oskit.training.report.result import StageResult


def figures(own: float, pooled: float | None, flops: float) -> Figures:
    """Forty queries that are all alike up to a little noise."""
    per_query = {str(number): own + number % 2 / 100 for number in range(40)}
    pooled_per_query = {} if pooled is None else dict.fromkeys(per_query, pooled)
    return Figures(own, own, own, flops, 9, 90, 40, 400, per_query, pooled, pooled_per_query)


def stage(
    before: Figures, after: Figures, held_out: int, pooling: dict[str, Any] | None = None
) -> StageResult:
    one = Candidate(1, 0.5, 1.0, 3.0)
    data = DataFacts(examples=9, negatives=1, held_out=held_out, pooling=pooling)
    choice, lengths = Choice("within 9 FLOPS", one, one), Lengths(128, None, 128)
    return StageResult("x", Path("x"), Path("x/best"), 2, choice, before, after, data, 1.0, lengths)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        # Pairs alone called encoders worse that people's judgements called better.
        ((0.71, 0.40), (0.69, 0.45), "on held-out queries the encoder is better than before by pooled "
         "judgements; by own answers alone it is behind what it was, at FLOPS 1.00 in place of 4.00"),
        ((0.71, 0.40), (0.75, 0.45), "better than before, by pooled judgements and by own answers alone"),
        ((0.71, 0.40), (0.71, 0.40), "not to be told from before, by pooled judgements and by own"),
        ((0.71, 0.40), (0.69, 0.35), "behind what it was, by pooled judgements and by own answers alone"),
        ((0.71, 0.40), (0.75, 0.35), "behind what it was by pooled judgements; by own answers alone it is "
         "better than before"),
        ((0.71, None), (0.69, None), "the encoder is behind what it was, at FLOPS"),
    ],
)  # fmt: skip
def test_held_out_queries_tell_by_which_judgements_and_call_no_encoder_worse(
    before: tuple[float, float | None], after: tuple[float, float | None], told: str
) -> None:
    first, last = figures(*before, 4.0), figures(*after, 1.0)
    found = stage(first, last, held_out=40)
    assert (found.own_gain is None) == (after[1] is None)
    assert told in found.verdict and "WORSE" not in found.verdict


@pytest.mark.parametrize(
    ("after", "told"),
    [(0.69, "the encoder is WORSE than before"), (0.75, "the encoder is better than before")],
)
def test_judged_queries_are_a_verdict(after: float, told: str) -> None:
    first, last = figures(0.71, None, 4.0), figures(after, None, 1.0)
    found = stage(first, last, held_out=0)
    assert found.verdict.startswith(told) and found.limits == []


def test_what_held_out_queries_cannot_tell_is_said() -> None:
    both = figures(0.5, None, 1.0), figures(0.6, None, 1.0)
    (alone,) = stage(*both, held_out=40).limits
    assert "know their own answers alone" in alone
    pooling = {"own": 1.2, "same": 0.3, "subject": 2.0, "taught": None, "overlap": 0.9}
    known, cannot = stage(*both, 40, pooling).limits
    assert "0.3 texts nearly the same, 2.0 of the same subject" in known and "teachers" not in known
    assert "repeat 90% of their words" in cannot and "evaluation.collection" in cannot
