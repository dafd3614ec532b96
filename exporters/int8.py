"""The search for what of an encoder bears 8-bit integers: all of it, or all but what costs ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.quantize import Scheme, Site, calibrate, choose, find_sites, quantise
from exporters.ranking import RankingSample, compare_rankings, listwise_loss
from oskit.archive.backends import ATTENTION_MASK, INPUT_IDS
from oskit.archive.manifest import Retrieval
from oskit.errors import ExportError, ParityError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from tokenizers import Tokenizer

_CALIBRATION = 64
"""Documents, and half as many queries, by which scales are set."""

_LEAST_SHARE = 0.5
"""Of the multiplications that must be in integers, for an archive to be worth being approximate."""

_TRIED = 100
"""Documents and queries by which one layer's damage is measured."""

Vectors = tuple["csr_matrix", "csr_matrix"]
"""Of a sample's documents and queries."""

Encode = Callable[[Path, Sequence[str], Sequence[str]], Vectors]
"""Vectors of documents and queries, by a model file."""


@dataclass(frozen=True)
class Quantised:
    """Outcome of :func:`quantise_model`.

    Attributes:
        retrieval: What it does to the sample's ranking.
        sites: What is in integers, for :func:`exporters.quantize.quantise`.
        share: Of the multiplications with constant weights that are in integers.
        kept: Names of the products that stay in fp32.
    """

    retrieval: Retrieval
    sites: Sequence[tuple[Site, Scheme]]
    share: float
    kept: tuple[str, ...]


def quantise_model(
    plain: Path,
    target: Path,
    sample: RankingSample,
    tokenizer: Tokenizer,
    expected: Vectors,
    encode: Encode,
    tell: Callable[[str], None] = lambda _: None,
) -> Quantised:
    """Find how much of an ONNX model may be quantised for its ranking's sake.

    Args:
        plain: The fp32 model, with its weights as initializers.
        target: File for what is tried.
        sample: Texts to calibrate with and to rank.
        tokenizer: The archive's.
        expected: The encoder's vectors of the sample.
        encode: Runs a model file.
        tell: Told what is tried, in a few words.

    Raises:
        ExportError: The model has nothing to quantise.
        ParityError: Even with half of the work in fp32 the ranking changes too much.
    """
    import onnx

    model = onnx.load(str(plain))
    sites = find_sites(model)
    if not sites:
        raise ExportError("the encoder has no linear layer to quantise", hint="Leave --quantize out.")
    tell("how large activations are")
    texts = [*sample.documents[-_CALIBRATION:], *sample.queries[-_CALIBRATION // 2 :]]
    calibrate(model, sites, [_feed(tokenizer.encode(text).ids) for text in texts])
    schemes = [(site, choose(site)) for site in sites]

    tried = count(1)

    def attempt(which: Sequence[tuple[Site, Scheme]], texts: int | None = None) -> Vectors:
        tell(f"attempt {next(tried)}, {len(which)} of {len(schemes)} layers in integers")
        onnx.save(quantise(model, which), str(target))
        return encode(target, sample.documents[:texts], sample.queries[:texts])

    work = np.array([site.weights.size for site in sites], dtype=np.float64)
    work /= work.sum()
    retrieval = compare_rankings(sample, expected, attempt(schemes))
    if retrieval.holds:
        return Quantised(retrieval, schemes, 1.0, ())
    before = expected[0][:_TRIED], expected[1][:_TRIED]
    damage = np.array([listwise_loss(before, attempt([scheme], _TRIED)) for scheme in schemes])
    order = [int(i) for i in np.argsort(-damage / work, kind="stable")]
    # As few as needed go back to fp32: bisected, since more in fp32 is nearer to the encoder.
    most = int((np.cumsum(work[order]) <= 1 - _LEAST_SHARE).sum())
    low, high, found = 0, most + 1, retrieval
    while high - low > 1:
        middle = (low + high) // 2
        outcome = compare_rankings(sample, expected, attempt(_without(schemes, order[:middle])))
        if outcome.holds:
            high, found = middle, outcome
        else:
            low, retrieval = middle, outcome
    if high > most:
        raise ParityError(
            "this encoder does not bear 8-bit integers: even with "
            f"{work[order[:most]].sum():.0%} of the work in fp32, {retrieval.told()}",
            hint="Export it without --quantize, or calibrate with texts like those that will be indexed.",
        )
    kept = order[:high]
    names = tuple(name for i in sorted(kept) for name in sites[i].nodes)
    return Quantised(found, _without(schemes, kept), round(float(1 - work[kept].sum()), 3), names)


def _without(schemes: Sequence[tuple[Site, Scheme]], places: Sequence[int]) -> list[tuple[Site, Scheme]]:
    return [scheme for i, scheme in enumerate(schemes) if i not in set(places)]


def _feed(ids: Sequence[int]) -> dict[str, Any]:
    row = np.array([ids], dtype=np.int64)
    return {INPUT_IDS: row, ATTENTION_MASK: np.ones_like(row)}
