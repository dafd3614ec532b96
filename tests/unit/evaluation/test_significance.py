"""Paired bootstrap: against values by hand, and against scipy's other test of the same question."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from oskit.errors import DataError
from oskit.evaluation.offline.significance import paired_bootstrap


def by_query(values: np.ndarray) -> dict[str, float]:
    return {f"q{number}": float(value) for number, value in enumerate(values)}


def test_two_queries_by_hand() -> None:
    # Differences 0.2 and 0: a sample's mean is 0, 0.1, 0.1 or 0.2, and about 0.1 it is -0.1, 0, 0 or 0.1.
    found = paired_bootstrap({"a": 0.5, "b": 0.5}, {"a": 0.3, "b": 0.5}, name="BM25")
    assert found.difference == pytest.approx(0.1)
    assert (found.low, found.high) == (pytest.approx(0.0), pytest.approx(0.2))
    assert found.p_value == pytest.approx(0.5, abs=0.02)
    assert (found.wins, found.losses, found.queries, found.baseline) == (1, 0, 2, "BM25")


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05, 0.1])
def test_p_value_beside_the_permutation_test(shift: float) -> None:
    rng = np.random.default_rng(4)
    theirs = rng.uniform(size=80)
    ours = theirs + rng.normal(shift, 0.2, size=80)
    found = paired_bootstrap(by_query(ours), by_query(theirs))
    other = stats.permutation_test(
        (ours - theirs,), np.mean, permutation_type="samples", n_resamples=9999, rng=rng
    )
    assert found.p_value == pytest.approx(other.pvalue, abs=0.03)
    margin = 1.96 * (ours - theirs).std(ddof=1) / np.sqrt(80)
    assert found.low == pytest.approx(found.difference - margin, abs=0.01)
    assert found.high == pytest.approx(found.difference + margin, abs=0.01)
    assert found.is_significant == (found.p_value < 0.05) == (shift >= 0.1 or not found.low < 0 < found.high)


def test_seed_decides() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = by_query(rng.uniform(size=20)), by_query(rng.uniform(size=20))
    first = paired_bootstrap(ours, theirs, resamples=500, seed=1)
    assert first == paired_bootstrap(ours, theirs, resamples=500, seed=1)
    assert first.p_value != paired_bootstrap(ours, theirs, resamples=500, seed=2).p_value


def test_runs_without_spread() -> None:
    same = paired_bootstrap({"a": 0.5, "b": 0.1}, {"a": 0.5, "b": 0.1})
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    better = paired_bootstrap(dict.fromkeys("abcdef", 0.75), dict.fromkeys("abcdef", 0.5))
    assert (better.low, better.high) == (0.25, 0.25)
    assert better.is_significant


@pytest.mark.parametrize("queries", ["a", "ab", "abcde"])
def test_few_queries_prove_nothing(queries: str) -> None:
    """Were the signs chance, n queries would all fall to one side once in 2 ** (n - 1) times."""
    better = paired_bootstrap({q: 0.5 + i / 100 for i, q in enumerate(queries)}, dict.fromkeys(queries, 0.1))
    assert better.p_value == 2.0 ** (1 - len(queries))
    assert not better.is_significant


@pytest.mark.parametrize(("run", "baseline"), [({"a": 1.0}, {"b": 1.0}), ({}, {})])
def test_other_queries_are_refused(run: dict[str, float], baseline: dict[str, float]) -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        paired_bootstrap(run, baseline)
