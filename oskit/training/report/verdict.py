"""Whether training made the encoder better, as far as its queries can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oskit.evaluation.offline.significance import Significance, paired_bootstrap
from oskit.training.report.figures import Figures


def gains(before: Figures, after: Figures) -> tuple[Significance, Significance | None]:
    """What training brought by the yardstick, and by held-out queries' own answers if that is another one."""
    name = "before training"
    gain = paired_bootstrap(after.quality_per_query, before.quality_per_query, name=name)
    return gain, None if after.pooled is None else paired_bootstrap(
        after.per_query, before.per_query, name=name
    )


def is_worse(gain: Significance, own: Significance | None) -> bool:
    """Whether it is worse for certain: significantly, and not better by own answers."""
    return gain.verdict == "worse" and (own is None or own.verdict != "better")


def verdict(before: Figures, after: Figures, gain: Significance, own: Significance | None) -> str:
    """By which judgements the encoder is better or worse than it was, and at which cost, in one line."""
    if own is None:
        told = _WORDS[gain.verdict]
    elif own.verdict == gain.verdict:
        told = f"{_WORDS[gain.verdict]}, by pooled judgements and by own answers alone"
    else:
        told = f"{_WORDS[gain.verdict]} by pooled judgements; by own answers alone it is "
        told += _WORDS[own.verdict]
    return (
        f"the encoder is {told}, at FLOPS {after.flops:.2f} in place of {before.flops:.2f} and "
        f"{after.document_active:.0f} tokens a document in place of {before.document_active:.0f}"
    )


def limits(pooling: Mapping[str, Any] | None, gain: Significance) -> list[str]:
    """What held-out queries know, and what they cannot tell.

    Args:
        pooling: What pooling found, ``PoolFacts``; None where own answers are all that is known.
        gain: Its interval says which differences are too small.
    """
    half = (gain.high - gain.low) / 2
    cannot = f"differences below {half:.3f}, and how other people ask"
    if pooling is None:
        return [f"held-out queries know their own answers alone; they cannot tell {cannot}"]
    taught = pooling["taught"]
    more = "" if taught is None else f", {taught:.1f} that the teachers place high"
    return [
        f"held-out queries have {pooling['own']:.1f} answers of their own; pooled judgements add "
        f"{pooling['same']:.1f} texts nearly the same, {pooling['subject']:.1f} of the same subject{more}",
        f"they cannot tell {cannot}: their own answers repeat {pooling['overlap']:.0%} of their words; "
        "judged queries of users can (evaluation.collection)",
    ]


_WORDS = {
    "better": "better than before",
    "worse": "WORSE than before",
    "no difference": "not to be told from before",
}
