"""Is one run better than another, or was it the choice of queries? By paired bootstrap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from oskit.errors import DataError
from oskit.evaluation.offline.metrics import MAIN_MEASURE

RESAMPLES = 10_000
CONFIDENCE = 0.95

Verdict = Literal["better", "worse", "no difference"]

_BATCH = 500
_TIE = 1e-9


@dataclass(frozen=True)
class Significance:
    """The difference between a run and a baseline over the same queries.

    Attributes:
        difference: Mean of the run's value minus the baseline's.
        low: Lower end of the confidence interval of the difference; ``high`` is the upper one.
        p_value: How often chance alone would give a difference at least as large, in either direction.
        wins: Queries on which the run is better; ``losses``: on which it is worse.
        resamples: Bootstrap samples.
    """

    measure: str
    baseline: str
    difference: float
    low: float
    high: float
    p_value: float
    queries: int
    wins: int
    losses: int
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    seed: int = 0

    @property
    def is_significant(self) -> bool:
        """Whether the p-value is below 1 - confidence."""
        return self.p_value < 1 - self.confidence

    @property
    def verdict(self) -> Verdict:
        """Whether the run is better or worse than the baseline, or these queries cannot tell."""
        if not self.is_significant:
            return "no difference"
        return "better" if self.difference > 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        """All attributes, for JSON."""
        return {**asdict(self), "significant": self.is_significant}


def paired_bootstrap(
    run: Mapping[str, float],
    baseline: Mapping[str, float],
    *,
    measure: str = MAIN_MEASURE,
    name: str = "baseline",
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Significance:
    """Compare two runs query by query.

    Queries are drawn with replacement, each with both of its values, and the mean difference is taken for
    each sample (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 16; for
    retrieval Smucker, Allan and Carterette, CIKM 2007, section 3.3). The interval is the percentile interval
    of these means. The p-value is the share of samples whose mean is at least as far from the difference as
    the difference is from 0: what samples would do if there were none. The observation counts as one sample,
    so it is never 0.

    Args:
        run: Value of each query.
        baseline: Value of each query; the same queries.
        name: Name of the baseline.

    Raises:
        DataError: The runs have different queries, or none.
    """
    from scipy import stats

    if not run or run.keys() != baseline.keys():
        raise DataError(
            f"{len(run)} and {len(baseline)} queries cannot be compared pairwise",
            hint="Both runs must be measured with the same judgements.",
        )
    differences = np.array([run[query] - baseline[query] for query in run], dtype=np.float64)
    observed = float(differences.mean())
    low, high, p_value = observed, observed, 1.0
    # Without any spread there is nothing to resample, and scipy would warn of a degenerate distribution.
    if len(differences) > 1 and np.ptp(differences) > 0:
        found = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=resamples,
            batch=_BATCH,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        low, high = map(float, found.confidence_interval)
        # The samples' means have the observed one as their expectation.
        extreme = np.abs(found.bootstrap_distribution - observed) >= abs(observed) - _TIE
        p_value = float((1 + extreme.sum()) / (1 + resamples))
    elif len(differences) > 1 and abs(observed) > _TIE:
        # The same difference on every query: no sample of them can have another mean.
        p_value = 1 / (1 + resamples)
    # Were the signs chance, n queries would all fall to one side as often as this: few queries prove nothing.
    p_value = max(p_value, 2.0 ** (1 - len(differences)))
    return Significance(
        measure=measure,
        baseline=name,
        difference=observed,
        low=low,
        high=high,
        p_value=p_value,
        queries=len(differences),
        wins=int((differences > _TIE).sum()),
        losses=int((differences < -_TIE).sum()),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
