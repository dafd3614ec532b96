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


def verdict(
    before: Figures, after: Figures, gain: Significance, own: Significance | None, *, held_out: bool
) -> str:
    """By which judgements the encoder is better or worse than it was, and at which cost, in one line.

    Args:
        before: The encoder as it was.
        after: The encoder.
        gain: By the yardstick.
        own: By held-out queries' own answers alone, if the yardstick knows more.
        held_out: Whether the queries were held out of the training data. These say how their own kind is
            found, which repeats the words of its answers: an encoder that they place behind may be the better
            one for users (benchmarks/README.md), so they are no verdict on it.
    """
    words = _ON_HELD_OUT if held_out else _WORDS
    if own is None:
        told = words[gain.verdict]
    elif own.verdict == gain.verdict:
        told = f"{words[gain.verdict]}, by pooled judgements and by own answers alone"
    else:
        told = f"{words[gain.verdict]} by pooled judgements; by own answers alone it is {words[own.verdict]}"
    where = "on held-out queries " if held_out else ""
    return (
        f"{where}the encoder is {told}, at FLOPS {after.flops:.2f} in place of {before.flops:.2f} and "
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
_ON_HELD_OUT = {**_WORDS, "worse": "behind what it was"}
