"""From the teachers' scores to labels: arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oskit.training.recipe.teachers import Normalization


def weighted_average(
    scores: Iterable[tuple[NDArray[np.float32], Normalization, float]], counts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The average over the teachers that know a candidate; NaN where none does.

    Args:
        scores: Of each teacher its scores of all candidates, query after query, NaN where unknown; how they
            are normalised; its weight.
        counts: How many candidates each query has, ``[queries]``.
    """
    total = np.zeros(int(counts.sum()))
    labels = np.zeros_like(total)
    for raw, how, weight in scores:
        normalized = normalize_scores(raw, counts, how)
        known = ~np.isnan(normalized)
        labels[known] += weight * normalized[known]
        total[known] += weight
    with np.errstate(invalid="ignore"):
        return (labels / total).astype(np.float32)


def normalize_scores(
    scores: NDArray[np.floating[Any]], counts: NDArray[np.int64], how: Normalization = "minmax"
) -> NDArray[np.float64]:
    """Scores of each query's candidates, query after query, to [0, 1], or as they are by ``none``; ``[n]``.

    It is ``(s - min) / (max - min)``, 0 where all known scores of a query are equal, NaN where unknown.
    """
    wide = np.asarray(scores, dtype=np.float64)
    if how == "none" or not len(wide):
        return wide
    counts = counts[counts > 0]
    starts = np.cumsum(counts) - counts
    lowest = np.repeat(np.fmin.reduceat(wide, starts), counts)
    spread = np.repeat(np.fmax.reduceat(wide, starts), counts) - lowest
    normalized = np.where(np.isnan(wide), np.nan, 0.0)
    np.divide(wide - lowest, spread, out=normalized, where=spread > 0)
    return normalized


def alike(labels: NDArray[np.float32], counts: NDArray[np.int64]) -> int:
    """Queries with several labels that are all the same; NaN is none."""
    owners = np.repeat(np.arange(len(counts)), counts)[~np.isnan(labels)]
    known = labels[~np.isnan(labels)]
    if not len(known):
        return 0
    firsts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    several = np.diff(np.r_[firsts, len(owners)]) > 1
    return int((several & (np.maximum.reduceat(known, firsts) == np.minimum.reduceat(known, firsts))).sum())
